// Forward halo-tile kernel with wgmma (compute capability 9.0): one variant, named by -DHALO_VARIANT.
//
// A persistent CTA: one warp group whose first thread keeps the copy engine busy (boxes of the map, whose
// zeros outside are the padding, and the packed weights, a stage of channels at a time, over the edges of
// tiles), and groups that multiply, each its own pixels, all by the same weights. A stage is full when its
// bytes have arrived, and empty when every multiplying warp has let go of it.
#include <algorithm>

#ifdef __CUDACC__
#include "halo_group.cuh"
#else
#include "halo_cta.h"
#endif
#include "halo_variants.h"

namespace halo {
namespace {

using T = HALO_VARIANT;

constexpr int kThreads = 128 * (T::kWarpgroups + 1);

// Every thread of every CTA of the cluster.
__device__ __forceinline__ void synchronise() {
  if constexpr (T::kCluster == 1) {
    __syncthreads();
  } else {
    cluster_barrier();
  }
}
__device__ __forceinline__ int rank_in_cluster() { return blockIdx.x % T::kCluster; }
// To the same place in every CTA of the cluster, whose own barriers count the bytes.
__device__ __forceinline__ void copy_to_all(uint32_t to, const void* from, int bytes, uint32_t barrier) {
  if constexpr (T::kCluster == 1) {
    copy_bytes(to, from, bytes, barrier);
  } else {
    copy_multicast(to, from, bytes, barrier, uint16_t((1 << T::kCluster) - 1));
  }
}

// This warp has read the stage: every CTA that writes into it must know.
__device__ __forceinline__ void release(uint32_t empty) {
  const int lane = threadIdx.x % 32;
  if constexpr (T::kCluster == 1) {
    if (lane == 0) arrive(empty);
  } else {
    if (lane < T::kCluster) arrive_at(empty, lane);
  }
}

struct FlowingLane : GroupLane {
  uint32_t* pending;  // barrier of the stage that is still being read, or 0
  __device__ __forceinline__ void let_go() const {
    __syncwarp();
    if (*pending) release(*pending);
  }
};

// Place in the ring of stages, and the parity of the round.
struct Turn {
  int stage = 0;
  uint32_t phase = 0;
  __device__ __forceinline__ void next() {
    if (++stage == T::kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

// By one warp: a lane for each patch, and the first for the weights.
__device__ __forceinline__ void produce(const CUtensorMap* map, const uint8_t* weights, const Problem& p,
                                        uint32_t stages, uint32_t full, uint32_t empty) {
  const int lane = threadIdx.x;
  Turn turn;
#pragma unroll 1
  for (int work = blockIdx.x / T::kCluster; work < works<T>(p); work += gridDim.x / T::kCluster) {
    const int tile = tile_of<T>(p, work, rank_in_cluster());
    const Patch at = patch_at<T>(p, tile, lane);
    const uint8_t* from = weights + int64_t(work % p.orbit_blocks) * p.steps * T::kWeightBytes +
                          rank_in_cluster() * T::kShareBytes;
#pragma unroll 1
    for (int step = 0; step < p.steps; ++step, turn.next(), from += T::kWeightBytes) {
      await(empty + turn.stage * 8, turn.phase ^ 1);
      const uint32_t to = stages + turn.stage * T::kStageBytes, barrier = full + turn.stage * 8;
      const bool copies = !(p.leave_out & 1) || (step < T::kStages && work < int(gridDim.x / T::kCluster));
      if (lane == 0) {
        if (copies) {
          expect(barrier, T::kCopiedBytes);
          copy_to_all(to + T::kHaloBytes + rank_in_cluster() * T::kShareBytes, from, T::kShareBytes, barrier);
        } else {
          arrive(barrier);
        }
      }
      __syncwarp();
      if (copies && lane < T::kPatches)
        copy_box(to + lane * T::kPatchBytes, map, barrier, step * T::kChannels, at.column - 1, at.row - 1,
                 at.image);
    }
  }
}

__device__ __forceinline__ void consume(const float* bias, void* y, const Problem& p, uint32_t stages,
                                        uint32_t full, uint32_t empty) {
  uint32_t pending = 0;
  FlowingLane machine;
  machine.pending = &pending;
  const int warp = threadIdx.x / 32 - 4;
  GroupWarp<FlowingLane, T> sums;
  sums.locate(machine, warp);
  Turn turn;
#pragma unroll 1
  for (int work = blockIdx.x / T::kCluster; work < works<T>(p); work += gridDim.x / T::kCluster) {
    const int tile = tile_of<T>(p, work, rank_in_cluster());
    sums.clear();
#pragma unroll 1
    for (int step = 0; step < p.steps; ++step, turn.next()) {
      await(full + turn.stage * 8, turn.phase);
      sums.multiply(machine, stages + turn.stage * T::kStageBytes);
      if (T::kFlows) {
        pending = empty + turn.stage * 8;
      } else {
        __syncwarp();
        release(empty + turn.stage * 8);
      }
    }
    if (T::kFlows) {
      machine.wait<0>();
      machine.let_go();
      pending = 0;
    }
    if (!(p.leave_out & 2) || sums.sums[0][0][0] == 1e30f) sums.store(machine, p, tile, warp, bias, y);
  }
}

__global__ void __launch_bounds__(kThreads, 1)
    forward(const __grid_constant__ CUtensorMap map, const uint8_t* weights, const float* bias, void* y,
            const __grid_constant__ Problem p) {
  const uint32_t start = shared_address(shared_memory());
  const uint32_t stages = (start + 1023) & ~1023u;
  const uint32_t full = stages + T::kStages * T::kStageBytes, empty = full + T::kStages * 8;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < T::kStages; ++stage) {
      start_barrier(full + stage * 8, 1);
      start_barrier(empty + stage * 8, T::kPixelWarps * T::kCluster);
    }
    publish_barriers();
  }
  synchronise();
  if (threadIdx.x < 128) {
    give_registers<24>();
    if (threadIdx.x < 32) produce(&map, weights, p, stages, full, empty);
  } else {
    take_registers<240>();
    consume(bias, y, p, stages, full, empty);
  }
  if constexpr (T::kCluster > 1) synchronise();  // else a CTA that is gone would be written to
}

// The map of x: channels, columns, rows, images; boxes of one patch with its halo.
template <class Encode>
bool tensor_map(Encode* encode, CUtensorMap& map, const void* x, const Problem& p) {
  const cuuint64_t sizes[] = {cuuint64_t(p.channels), cuuint64_t(p.width), cuuint64_t(p.height),
                              cuuint64_t(p.batch)};
  const cuuint64_t row = sizes[0] * 2, strides[] = {row, row * sizes[1], row * sizes[1] * sizes[2]};
  const cuuint32_t box[] = {T::kChannels, T::kWidth + 2, T::kHeight + 2, 1}, every[] = {1, 1, 1, 1};
  const auto swizzle = T::kPixelBytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B;
  return !encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, const_cast<void*>(x), sizes, strides, box, every,
                 CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                 CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

}  // namespace
}  // namespace halo

#ifdef __CUDACC__
using namespace halo;

// The driver's encoder of tensor maps.
static cudaError_t find_encoder(decltype(&cuTensorMapEncodeTiled)& encode) {
  if (encode) return cudaSuccess;
  void* found = nullptr;
  cudaDriverEntryPointQueryResult state;
  if (const auto e = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000,
                                                      cudaEnableDefault, &state))
    return e;
  if (state != cudaDriverEntryPointSuccess) return cudaErrorNotSupported;
  encode = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
  return cudaSuccess;
}

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
    CUtensorMap map;
    static decltype(&cuTensorMapEncodeTiled) encode = nullptr;
    if (const auto e = find_encoder(encode)) return e;
    if (!tensor_map(encode, map, x, p)) return cudaErrorInvalidValue;
    cudaLaunchAttribute cluster{};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {T::kCluster, 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(std::min(works<T>(p), processors / T::kCluster) * T::kCluster);
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = T::kSharedBytes;
    config.stream = queue;
    config.attrs = &cluster;
    config.numAttrs = T::kCluster > 1;
    if (const auto e =
            cudaLaunchKernelEx(&config, forward, map, static_cast<const uint8_t*>(packed), bias, y, p))
      return e;
    if (const auto e = cudaGetLastError()) return e;
  }
  return 0;
}

extern "C" int halo_shared_bytes() { return T::kSharedBytes; }
#endif
