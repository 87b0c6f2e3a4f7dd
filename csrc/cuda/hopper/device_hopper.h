// What kernels for compute capability 9.0a need of the machine besides device.h: barriers that count bytes,
// the copy engine, products of a warp group. Where no nvcc compiles, host/hopper.h stands in for it.
#pragma once
#include "device.h"
#include "launch.h"
#ifndef __CUDACC__
#include "host/hopper.h"
#else
#include <cuda.h>

namespace symconv {
namespace {

// ---- barriers in shared memory: 8 bytes each; a phase ends when all arrivals and all bytes have come

__device__ __forceinline__ void start_barrier(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}
// Barriers that were started, to the copy engine.
__device__ __forceinline__ void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrives, and says how many bytes the copy engine will bring.
__device__ __forceinline__ void expect(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
// Until the phase of this parity has ended.
__device__ __forceinline__ void await(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\nAGAIN:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra AGAIN;\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// ---- the copy engine

// A box of a map, zeros outside of it, to an address that 128 divides; the map lies in the kernel's
// parameters.
__device__ __forceinline__ void copy_box(uint32_t to, const CUtensorMap* map, uint32_t barrier, int channel,
                                         int column, int row, int image) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, "
      "%6}], [%2];" ::"r"(to),
      "l"(map), "r"(barrier), "r"(channel), "r"(column), "r"(row), "r"(image)
      : "memory");
}
// Bytes as they lie; 16 divides both addresses and their number.
__device__ __forceinline__ void copy_bytes(uint32_t to, const void* from, int bytes, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}

// ---- registers of a warp group of 128 threads

template <int N>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

// ---- products of a warp group, which run on their own

// Between ldmatrix, or whatever else wrote A's registers or the sums, and the next product.
__device__ __forceinline__ void product_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void product_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int N>  // until all but the last N committed groups have ended
__device__ __forceinline__ void product_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// The instruction: d (64 x N, float32) += a (64 x 16) b (16 x N). A warp brings 16 rows of a and keeps their
// sums, in the fragments of mma.sync; b lies in shared memory as a descriptor says.
template <class T, int N>
__device__ __forceinline__ void add_product(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b);

#define SYMCONV_SUMS8(i)                                                                      \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define SYMCONV_SUMS16(i) SYMCONV_SUMS8(i), SYMCONV_SUMS8(i + 8)
#define SYMCONV_SUMS32(i) SYMCONV_SUMS16(i), SYMCONV_SUMS16(i + 16)
#define SYMCONV_SUMS64(i) SYMCONV_SUMS32(i), SYMCONV_SUMS32(i + 32)
#define SYMCONV_NAMES16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define SYMCONV_NAMES32 \
  SYMCONV_NAMES16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define SYMCONV_NAMES64                                                                               \
  SYMCONV_NAMES32                                                                                     \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, " \
  "%51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
// It adds to d; neither operand is negated; b is K-major.
#define SYMCONV_GROUP_MULTIPLY(T, type, n, names, sums, a_and_b)                                             \
  template <>                                                                                                \
  __device__ __forceinline__ void add_product<T, n>(float (&d)[n / 2], const uint32_t (&a)[4], uint64_t b) { \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" names "}, " a_and_b    \
                 ", 1, 1, 1, 0;"                                                                             \
                 : sums                                                                                      \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                      \
  }
#define SYMCONV_GROUP_MULTIPLIES(T, type)                                                              \
  SYMCONV_GROUP_MULTIPLY(T, type, 32, SYMCONV_NAMES16, SYMCONV_SUMS16(0), "{%16, %17, %18, %19}, %20") \
  SYMCONV_GROUP_MULTIPLY(T, type, 64, SYMCONV_NAMES32, SYMCONV_SUMS32(0), "{%32, %33, %34, %35}, %36") \
  SYMCONV_GROUP_MULTIPLY(T, type, 128, SYMCONV_NAMES64, SYMCONV_SUMS64(0), "{%64, %65, %66, %67}, %68")
SYMCONV_GROUP_MULTIPLIES(Bfloat16, "bf16")
SYMCONV_GROUP_MULTIPLIES(Float16, "f16")
#undef SYMCONV_GROUP_MULTIPLIES
#undef SYMCONV_GROUP_MULTIPLY
#undef SYMCONV_NAMES64
#undef SYMCONV_NAMES32
#undef SYMCONV_NAMES16
#undef SYMCONV_SUMS64
#undef SYMCONV_SUMS32
#undef SYMCONV_SUMS16
#undef SYMCONV_SUMS8

// The same with b as N rows of 16 elements, swizzled over SPAN bytes of a row (32, 64 or 128), at a shared
// address. Descriptor: K-major, kind of swizzle, eight rows from one group of rows to the next.
template <class T, int N, int SPAN>
__device__ __forceinline__ void product(float (&d)[N / 2], const uint32_t (&a)[4], uint32_t weights) {
  static_assert(SPAN == 32 || SPAN == 64 || SPAN == 128);
  constexpr uint64_t kind = SPAN == 32 ? 3 : SPAN == 64 ? 2 : 1;
  constexpr uint64_t fixed = kind << 62 | uint64_t{SPAN * 8 / 16} << 32 | uint64_t{1} << 16;
  add_product<T, N>(d, a, fixed | (weights & 0x3FFFF) >> 4);
}

}  // namespace

}  // namespace symconv
#endif
