// What the halo-tile kernels have in common on the GPU: a lane's machine, cp.async, and the kernel that folds
// the weights. On the host halo_cta.h stands in for it.
#pragma once
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "halo_tile.h"

namespace halo {
namespace {

struct Lane {
  using U = uint32_t;
  using F = float;

  __device__ __forceinline__ U lane() const { return threadIdx.x % 32; }

  __device__ __forceinline__ void load(U (&r)[4], U address) const {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
  }
  __device__ __forceinline__ static __nv_bfloat162 pair(U a) {
    return *reinterpret_cast<__nv_bfloat162*>(&a);
  }
  __device__ __forceinline__ static U bits(__nv_bfloat162 a) { return *reinterpret_cast<U*>(&a); }
  __device__ __forceinline__ U add(U a, U b) const { return bits(__hadd2(pair(a), pair(b))); }
  __device__ __forceinline__ U subtract(U a, U b) const { return bits(__hsub2(pair(a), pair(b))); }
  __device__ __forceinline__ void multiply(F* d, const U (&a)[4], U b0, U b1) const {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
  template <int N>
  __device__ __forceinline__ void bias(F (&added)[N], const float* values, int first, U orbit,
                                       bool inside) const {
#pragma unroll
    for (int n = 0; n < N; ++n) added[n] = 0;
    if (values && inside) {
#pragma unroll
      for (int n = 0; n < N; n += 4) {
        const float4 four = __ldg(reinterpret_cast<const float4*>(values + first + orbit + n));
        added[n] = four.x, added[n + 1] = four.y, added[n + 2] = four.z, added[n + 3] = four.w;
      }
    }
    asm volatile(
        "" ::
            : "memory");  // else what all members need is computed at once, in registers that are not there
  }
  __device__ __forceinline__ U pack(F low, F high) const { return bits(__floats2bfloat162_rn(low, high)); }

  // Elements from the start of the output.
  __device__ __forceinline__ int64_t place(U column, int channels, U orbit, int64_t row) const {
    return row + int64_t(column) * channels + orbit;
  }
  template <int N>
  __device__ __forceinline__ void store(const U (&packed)[N], void* y, int64_t place, int more,
                                        bool inside) const {
    if (!inside) return;
    auto* to = static_cast<__nv_bfloat16*>(y) + place + more;
    if constexpr (N == 4)
      *reinterpret_cast<uint4*>(to) = make_uint4(packed[0], packed[1], packed[2], packed[3]);
    else
      *reinterpret_cast<uint2*>(to) = make_uint2(packed[0], packed[1]);
  }
};

__device__ __forceinline__ uint8_t* shared_memory() {
  extern __shared__ __align__(128) uint8_t memory[];
  return memory;
}
__device__ __forceinline__ uint32_t shared_address(const uint8_t* memory) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(memory));
}

__device__ __forceinline__ void copy16(uint32_t target, const void* source, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source), "r"(bytes));
}
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
__device__ __forceinline__ void wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

struct Strides {
  int orbit, channel, row, column;
};

// Folds the filters along the tied axes and lays them out as the image of each stage's weights.
template <class T>
__global__ void fold(const __nv_bfloat16* w, Strides strides, uint8_t* packed,
                     const __grid_constant__ Problem p) {
  const int index = blockIdx.x * blockDim.x + threadIdx.x;
  const int u = index / p.channels, c = index % p.channels;
  if (u >= p.orbit_blocks * T::kOrbits) return;
  float filter[9];
#pragma unroll
  for (int k = 0; k < 9; ++k)
    filter[k] = u < p.orbits ? __bfloat162float(w[int64_t(u) * strides.orbit + int64_t(c) * strides.channel +
                                                  k / 3 * strides.row + k % 3 * strides.column])
                             : 0.0f;
  uint8_t* tile = packed + (int64_t(u / T::kOrbits) * p.steps + c / T::kChannels) * T::kWeightBytes;
  const int row = weight_row<T>(u % T::kOrbits), channel = c % T::kChannels;
#pragma unroll
  for (int tap = 0; tap < kTaps; ++tap)
    *reinterpret_cast<__nv_bfloat16*>(tile + weight_address<T, int>(tap, row, channel / 8) +
                                      channel % 8 * 2) = __float2bfloat16(folded(T::kTie, tap, filter));
}

// Queues fold(); returns its error.
template <class T>
cudaError_t fold_weights(const void* w, Strides strides, void* packed, const Problem& p, cudaStream_t queue) {
  const int filters = p.orbit_blocks * T::kOrbits * p.channels;
  fold<T><<<(filters + 127) / 128, 128, 0, queue>>>(static_cast<const __nv_bfloat16*>(w), strides,
                                                    static_cast<uint8_t*>(packed), p);
  return cudaGetLastError();
}

}  // namespace
}  // namespace halo
