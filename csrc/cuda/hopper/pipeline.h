// The pipeline of the Hopper kernels: copies, barriers and the walk over tiles, whatever the warps compute.
//
// A persistent CTA: one warp group whose first warp keeps the copy engine busy (boxes of the map, whose zeros
// outside are the padding, and the packed weights, a stage of channels at a time, over the edges of tiles),
// and groups that multiply, each its own pixels, all by the same weights. A stage is full when its bytes have
// arrived, and empty when every multiplying warp has let go of it.
#pragma once
#include "hopper/group.h"
#include "hopper/map.h"
#include "patch/layer.h"

namespace symconv {
namespace {

// Place in the ring of stages, and the parity of the round.
template <class T>
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

// By one warp: a lane for each patch of each slice of channels, and the first for the weights.
template <class T>
__device__ __forceinline__ void produce(const CUtensorMap* map, const uint8_t* weights, const Layer& p,
                                        uint32_t stages, uint32_t full, uint32_t empty) {
  Turn<T> turn;
#pragma unroll 1
  for (int tile = block(); tile < p.tiles; tile += blocks()) {
    const int slice = lane() / T::kPatches, of = tile % p.blocks;
    const Patch at = patch_at<T>(p, tile, lane() % T::kPatches);
    const int first = (of / p.orbit_blocks * T::kSlices + slice) * p.chunks * 8;  // channel of the slice
    const uint8_t* from = weights + int64_t{of} * p.steps * T::kWeightBytes;
#pragma unroll 1
    for (int step = 0; step < p.steps; ++step, turn.next(), from += T::kWeightBytes) {
      await(empty + turn.stage * 8, turn.phase ^ 1);
      const uint32_t to = stages + turn.stage * T::kStageBytes, barrier = full + turn.stage * 8;
      if (lane() == 0) {
        expect(barrier, T::kCopiedBytes);
        copy_bytes(to + T::kHaloBytes, from, T::kWeightBytes, barrier);
      }
      warp_barrier();
      if (lane() < T::kPatches * T::kSlices)
        copy_box(to + lane() * T::kPatchBytes, map, barrier, first + step * T::kChannels, at.column - 1,
                 at.row - 1, at.image);
    }
  }
}

// By each warp that multiplies, with W: sums of a tile and what adds a stage to them.
template <class T, class W>
__device__ __forceinline__ void consume(const void* bias, void* y, const Layer& p, uint32_t stages,
                                        uint32_t full, uint32_t empty) {
  const int warp = thread() / 32 - 4;
  W sums;
  sums.locate(warp);
  Turn<T> turn;
#pragma unroll 1
  for (int tile = block(); tile < p.tiles; tile += blocks()) {
    sums.clear();
#pragma unroll 1
    for (int step = 0; step < p.steps; ++step, turn.next()) {
      await(full + turn.stage * 8, turn.phase);
      sums.multiply(stages + turn.stage * T::kStageBytes);
      warp_barrier();
      if (lane() == 0) arrive(empty + turn.stage * 8);
    }
    sums.store(p, tile, warp, bias, y);
  }
}

// All that a CTA does.
template <class T, class W>
__device__ __forceinline__ void run_pipeline(const CUtensorMap* map, const void* weights, const void* bias,
                                             void* y, const Layer& p) {
  const uint32_t stages = (shared_memory() + 1023) & ~1023u;
  const uint32_t full = stages + T::kStages * T::kStageBytes, empty = full + T::kStages * 8;
  if (thread() == 0) {
    for (int stage = 0; stage < T::kStages; ++stage) {
      start_barrier(full + stage * 8, 1);
      start_barrier(empty + stage * 8, T::kPixelWarps);
    }
    publish_barriers();
  }
  barrier();
  if (thread() < 128) {
    give_registers<24>();
    if (thread() < 32) produce<T>(map, static_cast<const uint8_t*>(weights), p, stages, full, empty);
  } else {
    take_registers<240>();
    consume<T, W>(bias, y, p, stages, full, empty);
  }
}

// The map of x, rows and columns those of the tile: channels, columns, rows, images; boxes of one patch with
// its halo.
template <class T>
std::string map_of(CUtensorMap& map, const PatchParams& p, const Layer& l, const void* x) {
  const uint64_t sizes[] = {uint64_t(p.groups * T::kSlices * p.channels), uint64_t(l.width),
                            uint64_t(l.height), uint64_t(p.batch)};
  const uint64_t strides[] = {uint64_t{16} * l.x_column, uint64_t{16} * l.x_row, uint64_t{16} * l.x_image};
  const uint32_t box[] = {T::kChannels, T::kWidth + 2, T::kHeight + 2, 1};
  return make_map(map, p.dtype, x, sizes, strides, box, T::kPixelBytes);
}

}  // namespace
}  // namespace symconv
