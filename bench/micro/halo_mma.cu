// Forward halo-tile kernel with mma.sync (compute capability 8.0 and up): one variant, named by
// -DHALO_VARIANT.
//
// A persistent CTA walks over tiles of pixels and orbits. Stages of channels (halo tile by cp.async with
// zeros outside of the map, packed weights as they lie in memory) run ahead over the edges of tiles. The
// table of a tile's copies lies in shared memory; each thread writes and reads its own entries only.
#include <algorithm>

#ifdef __CUDACC__
#include "halo_lane.cuh"
#else
#include "halo_cta.h"
#endif
#include "halo_variants.h"
#include "halo_warp.h"

namespace halo {
namespace {

using T = HALO_VARIANT;

// Issues the copies of one stage after the other, over all tiles of this CTA.
struct Loader {
  const Problem& p;
  const uint8_t *x, *weights;
  uint32_t shared;  // address of the stages
  int2* table;      // this thread's entries, kThreads apart
  int tile, step = 0, stage = 0;

  __device__ __forceinline__ void start_tile() {
#pragma unroll 1
    for (int i = 0; i < T::kLoads; ++i) {
      const Copy copy = copy_at<T>(p, tile, min(int(threadIdx.x) + i * T::kThreads, T::kHaloChunks - 1));
      table[i * T::kThreads] = make_int2(copy.source, copy.target);
    }
  }

  __device__ __forceinline__ void issue() {
    if (tile >= p.tiles) return;
    if (step == 0) start_tile();
    const uint32_t to = shared + stage * T::kStageBytes;
    const uint8_t* from = x + step * (T::kChunks * 16);
#pragma unroll
    for (int i = 0; i < T::kLoads; ++i) {
      if ((i + 1) * T::kThreads > T::kHaloChunks && int(threadIdx.x) + i * T::kThreads >= T::kHaloChunks)
        break;
      const int2 copy = table[i * T::kThreads];
      copy16(to + copy.y, from + int64_t(max(copy.x, 0)) * 16, copy.x < 0 ? 0 : 16);
    }
    const uint8_t* w =
        weights + (int64_t(tile % p.orbit_blocks) * p.steps + step) * T::kWeightBytes + threadIdx.x * 16;
    const uint32_t w_to = to + T::kHaloBytes + threadIdx.x * 16;
#pragma unroll
    for (int i = 0; i < T::kWeightLoads; ++i) {
      if ((i + 1) * T::kThreads > T::kWeightChunks && int(threadIdx.x) + i * T::kThreads >= T::kWeightChunks)
        break;
      copy16(w_to + i * T::kThreads * 16, w + i * T::kThreads * 16, 16);
    }
    stage = stage + 1 == T::kStages ? 0 : stage + 1;
    if (++step == p.steps) {
      step = 0;
      tile += gridDim.x;
    }
  }
};

__global__ void __launch_bounds__(T::kThreads, T::kResident)
    forward(const uint8_t* x, const uint8_t* weights, const float* bias, void* y,
            const __grid_constant__ Problem p) {
  uint8_t* memory = shared_memory();
  const uint32_t shared = shared_address(memory);
  const Lane machine;
  Loader loader{p,
                x,
                weights,
                shared,
                reinterpret_cast<int2*>(memory + T::kStages * T::kStageBytes) + threadIdx.x,
                int(blockIdx.x)};
#pragma unroll
  for (int i = 0; i < T::kStages - 1; ++i) {
    loader.issue();
    commit();
  }
  const int warp = threadIdx.x / 32;
  Addresses<Lane, T> at(machine, warp);
#pragma unroll
  for (int kw = 0; kw < 3; ++kw) at.column[kw] += shared;
  at.weight += shared;

  uint32_t offset = 0;
#pragma unroll 1
  for (int tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
    Warp<Lane, T> sums;
    sums.clear();
#pragma unroll 1
    for (int step = 0; step < p.steps; ++step) {
      wait<T::kStages - 2>();
      __syncthreads();
      if (!(p.leave_out & 1)) loader.issue();
      commit();
#pragma unroll
      for (int k = 0; k < T::kChannels / 16; ++k) sums.multiply(machine, at, offset, k);
      offset = offset + T::kStageBytes == T::kStages * T::kStageBytes ? 0 : offset + T::kStageBytes;
    }
    if (!(p.leave_out & 2) || sums.sums[0][0][0] == 1e30f) sums.store(machine, p, tile, warp, bias, y);
  }
}

}  // namespace
}  // namespace halo

#ifdef __CUDACC__
using namespace halo;

// Bytes of the folded weights.
extern "C" int64_t halo_packed_bytes(int channels, int orbits) {
  const Problem p = problem<T>(1, 1, 1, channels, orbits);
  return int64_t{p.orbit_blocks} * p.steps * T::kWeightBytes;
}

extern "C" const char* halo_error(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }

// x: (batch, height, width, channels) bfloat16; w: reduced filters with strides in elements; bias: members *
// orbits floats or null; y: (batch, height, width, members * orbits). parts: bit 0 folds the weights, bit 1
// convolves, bits 2 and 3 leave out copies and stores (the result is then wrong). Returns a CUDA error code.
extern "C" int halo_forward(const void* x, const void* w, int stride_orbit, int stride_channel,
                            int stride_row, int stride_column, const float* bias, void* y, void* packed,
                            int batch, int height, int width, int channels, int orbits, int parts,
                            void* stream) {
  if (channels % T::kChannels || orbits % 8 || int64_t{batch} * height * width * (channels / 8) > INT32_MAX ||
      int64_t{width} * T::kMembers * orbits * T::kRows > INT32_MAX)
    return cudaErrorInvalidValue;
  Problem p = problem<T>(batch, height, width, channels, orbits);
  p.leave_out = parts >> 2;
  const auto queue = static_cast<cudaStream_t>(stream);
  static int processors = 0;
  if (!processors) {
    int device = 0;
    if (const auto e = cudaGetDevice(&device)) return e;
    if (const auto e =
            cudaFuncSetAttribute(forward, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kSharedBytes))
      return e;
    if (const auto e = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device)) return e;
  }
  if (parts & 1) {
    const Strides strides{stride_orbit, stride_channel, stride_row, stride_column};
    if (const auto e = fold_weights<T>(w, strides, packed, p, queue)) return e;
  }
  if (parts & 2) {
    forward<<<std::min(p.tiles, processors * T::kResident), T::kThreads, T::kSharedBytes, queue>>>(
        static_cast<const uint8_t*>(x), static_cast<const uint8_t*>(packed), bias, y, p);
    if (const auto e = cudaGetLastError()) return e;
  }
  return 0;
}

extern "C" int halo_shared_bytes() { return T::kSharedBytes; }
#endif
