// All that the kernels need of the machine: with hopper/device_hopper.h, which has what 9.0a alone has, the
// only file with inline PTX and CUDA's own types.
//
// Kernels name a place in shared memory by a 32-bit address and reach it, and global memory, through these
// functions alone: host/device.h, which stands in for this file where no nvcc compiles, then sees every
// access.
#pragma once
#ifndef __CUDACC__
#include "host/device.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "types.h"

namespace symconv {
namespace {

using uint128 = uint4;

// ---- shared memory

__device__ __forceinline__ uint32_t shared_memory() {  // address of the launch's dynamic shared memory
  extern __shared__ __align__(128) uint8_t memory[];
  return static_cast<uint32_t>(__cvta_generic_to_shared(memory));
}
__device__ __forceinline__ uint32_t shared_load(uint32_t address) {
  uint32_t v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address) : "memory");
  return v;
}
__device__ __forceinline__ void shared_store(uint32_t address, uint32_t v) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(v) : "memory");
}
// Four registers at once; 16 divides the address.
__device__ __forceinline__ uint128 shared_load16(uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address)
               : "memory");
  return v;
}
__device__ __forceinline__ void shared_store16(uint32_t address, uint128 v) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z),
               "r"(v.w)
               : "memory");
}

// Two registers at once; 8 divides the address.
__device__ __forceinline__ uint2 shared_load8(uint32_t address) {
  uint2 v;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address) : "memory");
  return v;
}
__device__ __forceinline__ void shared_store8(uint32_t address, uint2 v) {
  asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(address), "r"(v.x), "r"(v.y) : "memory");
}

// ---- copies that run on their own: 16 bytes, of which `bytes` are read and the rest are zeros

__device__ __forceinline__ void copy16(uint32_t target, const void* source, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source), "r"(bytes));
}
// The same of 4 bytes.
__device__ __forceinline__ void copy4(uint32_t target, const void* source, int bytes) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(target), "l"(source), "r"(bytes));
}
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>  // until all but the last N groups of this thread have arrived
__device__ __forceinline__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// ---- matrix units. Of a lane l: fragments are those of the PTX manual

// Four 8 x 8 matrices of 16 bits (or 8 x 4 of 32 bits): lane 8m + i gives the address of row i of matrix m,
// and gets of each matrix row l / 4, bytes 4 (l % 4) and up.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
// Two of them: lanes 0 to 15 give the addresses.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[2], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(address)
               : "memory");
}
// Four 8 x 8 matrices of 16 bits, each transposed: a lane gets column l / 4, rows 2 (l % 4) and the next.
__device__ __forceinline__ void load_transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// d (16 x 8, float32) += a (16 x 32 bytes) b (32 bytes x 8): m16n8k16 of 16 bits, m16n8k8 of TF32.
template <class T>
__device__ __forceinline__ void multiply(float* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
#define SYMCONV_MULTIPLY(type, name)                                                                         \
  template <>                                                                                                \
  __device__ __forceinline__ void multiply<type>(float* d, const uint32_t (&a)[4], uint32_t b0,              \
                                                 uint32_t b1) {                                              \
    asm volatile("mma.sync.aligned." name " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                            \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                            \
  }
SYMCONV_MULTIPLY(Bfloat16, "m16n8k16.row.col.f32.bf16.bf16.f32")
SYMCONV_MULTIPLY(Float16, "m16n8k16.row.col.f32.f16.f16.f32")
SYMCONV_MULTIPLY(Float32, "m16n8k8.row.col.f32.tf32.tf32.f32")
#undef SYMCONV_MULTIPLY

// ---- elements in a register

namespace bits {
template <class V>
__device__ __forceinline__ V as(uint32_t a) {
  return *reinterpret_cast<V*>(&a);
}
template <class V>
__device__ __forceinline__ uint32_t of(V a) {
  return *reinterpret_cast<uint32_t*>(&a);
}
}  // namespace bits

// Elementwise a + b and a - b of the fold. float16 sums are halved, so that they cannot overflow: twice
// the sum is kFold<T> times what is returned.
template <class T>
inline constexpr float kFold = 1.0f;
template <>
inline constexpr float kFold<Float16> = 2.0f;

template <class T>
__device__ __forceinline__ uint32_t fold_add(uint32_t a, uint32_t b);
template <class T>
__device__ __forceinline__ uint32_t fold_subtract(uint32_t a, uint32_t b);
template <>
__device__ __forceinline__ uint32_t fold_add<Bfloat16>(uint32_t a, uint32_t b) {
  return bits::of(__hadd2(bits::as<__nv_bfloat162>(a), bits::as<__nv_bfloat162>(b)));
}
template <>
__device__ __forceinline__ uint32_t fold_subtract<Bfloat16>(uint32_t a, uint32_t b) {
  return bits::of(__hsub2(bits::as<__nv_bfloat162>(a), bits::as<__nv_bfloat162>(b)));
}
template <>
__device__ __forceinline__ uint32_t fold_add<Float16>(uint32_t a, uint32_t b) {  // a / 2 + b / 2
  const __half2 half = __float2half2_rn(0.5f);
  return bits::of(__hfma2(bits::as<__half2>(a), half, __hmul2(bits::as<__half2>(b), half)));
}
template <>
__device__ __forceinline__ uint32_t fold_subtract<Float16>(uint32_t a, uint32_t b) {
  const __half2 half = __float2half2_rn(0.5f);
  return bits::of(__hfma2(bits::as<__half2>(a), half, __hneg2(__hmul2(bits::as<__half2>(b), half))));
}
template <>
__device__ __forceinline__ uint32_t fold_add<Float32>(uint32_t a, uint32_t b) {
  return __float_as_uint(__uint_as_float(a) + __uint_as_float(b));
}
template <>
__device__ __forceinline__ uint32_t fold_subtract<Float32>(uint32_t a, uint32_t b) {
  return __float_as_uint(__uint_as_float(a) - __uint_as_float(b));
}

// What a register of the fragment of a product must hold: float32 rounded to TF32, 16 bits as they are.
template <class T>
__device__ __forceinline__ uint32_t operand(uint32_t a) {
  if constexpr (T::kBytes == 4) asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(a) : "f"(__uint_as_float(a)));
  return a;
}

// Two elements of 16 bits of floats, rounded to nearest even, and floats of elements.
template <class T>
__device__ __forceinline__ uint32_t pack2(float low, float high);
template <>
__device__ __forceinline__ uint32_t pack2<Bfloat16>(float low, float high) {
  return bits::of(__floats2bfloat162_rn(low, high));
}
template <>
__device__ __forceinline__ uint32_t pack2<Float16>(float low, float high) {
  return bits::of(__floats2half2_rn(low, high));
}
template <class T>
__device__ __forceinline__ float low_of(uint32_t a);  // of the register's first element
template <>
__device__ __forceinline__ float low_of<Bfloat16>(uint32_t a) {
  return __uint_as_float(a << 16);
}
template <>
__device__ __forceinline__ float low_of<Float16>(uint32_t a) {
  return __low2float(bits::as<__half2>(a));
}
template <>
__device__ __forceinline__ float low_of<Float32>(uint32_t a) {
  return __uint_as_float(a);
}
template <class T>
__device__ __forceinline__ float high_of(uint32_t a);  // of the second, of 16 bits
template <>
__device__ __forceinline__ float high_of<Bfloat16>(uint32_t a) {
  return __uint_as_float(a & 0xffff0000u);
}
template <>
__device__ __forceinline__ float high_of<Float16>(uint32_t a) {
  return __high2float(bits::as<__half2>(a));
}

// ---- global memory: elements by index, and 4, 8 or 16 bytes at once where the size divides the address

template <class T>
__device__ __forceinline__ float load_element(const void* from, int64_t index) {
  if constexpr (T::kBytes == 4)
    return __ldg(static_cast<const float*>(from) + index);
  else
    return low_of<T>(__ldg(static_cast<const uint16_t*>(from) + index));
}
template <class T>
__device__ __forceinline__ void store_element(void* to, int64_t index, float v) {
  if constexpr (T::kBytes == 4)
    static_cast<float*>(to)[index] = v;
  else
    static_cast<uint16_t*>(to)[index] = static_cast<uint16_t>(pack2<T>(v, 0.0f));
}
__device__ __forceinline__ uint32_t global_load4(const void* from) {
  return __ldg(static_cast<const uint32_t*>(from));
}
__device__ __forceinline__ uint2 global_load8(const void* from) {
  return __ldg(static_cast<const uint2*>(from));
}
__device__ __forceinline__ uint128 global_load16(const void* from) {
  return __ldg(static_cast<const uint4*>(from));
}
__device__ __forceinline__ void global_store4(void* to, uint32_t v) { *static_cast<uint32_t*>(to) = v; }
__device__ __forceinline__ void global_store8(void* to, uint2 v) { *static_cast<uint2*>(to) = v; }
__device__ __forceinline__ void global_store16(void* to, uint128 v) { *static_cast<uint4*>(to) = v; }
// Written by an earlier kernel of the same launch sequence or this one: not through the read-only path.
__device__ __forceinline__ float work_load(const float* from) { return *from; }
__device__ __forceinline__ void work_store(float* to, float v) { *to = v; }

// ---- threads

__device__ __forceinline__ int thread() { return threadIdx.x; }
__device__ __forceinline__ int lane() { return threadIdx.x % 32; }
__device__ __forceinline__ int block() { return blockIdx.x; }
__device__ __forceinline__ int blocks() { return gridDim.x; }
__device__ __forceinline__ int threads() { return blockDim.x; }
__device__ __forceinline__ void barrier() { __syncthreads(); }
__device__ __forceinline__ void warp_barrier() { __syncwarp(); }
__device__ __forceinline__ float shuffle_xor(float v, int mask) {
  return __shfl_xor_sync(0xffffffffu, v, mask);
}
__device__ __forceinline__ uint32_t shuffle_xor(uint32_t v, int mask) {
  return __shfl_xor_sync(0xffffffffu, v, mask);
}
// The compiler moves nothing over it: keeps registers few.
__device__ __forceinline__ void compiler_fence() { asm volatile("" ::: "memory"); }

__device__ __forceinline__ float exponential(float v) { return __expf(v); }
__device__ __forceinline__ float divide(float a, float b) { return __fdividef(a, b); }  // 0 for b = infinity
__device__ __forceinline__ float error_function(float v) { return erff(v); }

}  // namespace
}  // namespace symconv
#endif
