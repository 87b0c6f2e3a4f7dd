// Forward patch kernel with mma.sync (compute capability 8.0 and up), and how a call of one tile is run.
//
// A persistent CTA walks over tiles of pixels and orbits. Stages of channels (patches with their halo by
// cp.async with zeros outside of the map, packed weights as they lie in memory) run ahead over the edges of
// tiles. The table of a tile's copies lies in shared memory; a thread writes and reads its own entries only.
#pragma once
#include <algorithm>

#include "patch/fold.h"
#include "patch/layer.h"
#include "patch/tiles.h"
#include "patch/warp.h"

namespace symconv {
namespace {

// Issues the copies of one stage after the other, over all tiles of this CTA.
template <class T>
struct Loader {
  const Layer& p;
  const uint8_t *x, *weights;
  uint32_t shared;  // address of the stages
  uint32_t table;   // of this thread's first entry; they lie kThreads apart
  int tile, step = 0, stage = 0;

  __device__ __forceinline__ void start_tile() {
#pragma unroll 1
    for (int i = 0; i < T::kLoads; ++i) {
      const int index = thread() + i * T::kThreads;
      const Copy copy = copy_at<T>(p, tile, index < T::kHaloChunks ? index : T::kHaloChunks - 1);
      shared_store8(table + i * T::kThreads * 8, {static_cast<uint32_t>(copy.source), copy.target});
    }
  }

  __device__ __forceinline__ void issue() {
    if (tile >= p.tiles) return;
    if (step == 0) start_tile();
    const uint32_t to = shared + stage * T::kStageBytes;
    const uint8_t* from = x + step * (T::kChunks * 16);
    const int bytes = step * T::kChunks + thread() % T::kChunks < p.chunks ? 16 : 0;  // of a pixel of the map
#pragma unroll
    for (int i = 0; i < T::kLoads; ++i) {
      if ((i + 1) * T::kThreads > T::kHaloChunks && thread() + i * T::kThreads >= T::kHaloChunks) break;
      const auto copy = shared_load8(table + i * T::kThreads * 8);
      const int source = static_cast<int>(copy.x);
      copy16(to + copy.y, from + int64_t{source < 0 ? 0 : source} * 16, source < 0 ? 0 : bytes);
    }
    const uint8_t* w =
        weights + (int64_t{tile % p.blocks} * p.steps + step) * T::kWeightBytes + thread() * 16;
    const uint32_t w_to = to + T::kHaloBytes + thread() * 16;
#pragma unroll
    for (int i = 0; i < T::kWeightLoads; ++i) {
      if ((i + 1) * T::kThreads > T::kWeightChunks && thread() + i * T::kThreads >= T::kWeightChunks) break;
      copy16(w_to + i * T::kThreads * 16, w + i * T::kThreads * 16, 16);
    }
    stage = stage + 1 == T::kStages ? 0 : stage + 1;
    if (++step == p.steps) {
      step = 0;
      tile += blocks();
    }
  }
};

// Steps of 16 channels that are one piece of code: all of a stage, unless registers would not suffice.
template <class T>
inline constexpr int kUnrolled = T::kWarpOrbits == 16 ? 1 : T::kChannels / 16;

template <class T, class E>
__global__ void __launch_bounds__(T::kThreads, T::kResident)
    patch_forward(const void* x, const void* weights, const void* bias, void* y,
                  const __grid_constant__ Layer p) {
  const uint32_t shared = shared_memory();
  Loader<T> loader{p,
                   static_cast<const uint8_t*>(x),
                   static_cast<const uint8_t*>(weights),
                   shared,
                   shared + T::kStages * T::kStageBytes + thread() * 8,
                   block()};
#pragma unroll
  for (int i = 0; i < T::kStages - 1; ++i) {
    loader.issue();
    copy_commit();
  }
  const int warp = thread() / 32;
  const Addresses<T> at(shared, warp);
  uint32_t offset = 0;
#pragma unroll 1
  for (int tile = block(); tile < p.tiles; tile += blocks()) {
    Warp<T, E> sums;
    sums.clear();
#pragma unroll 1
    for (int step = 0; step < p.steps; ++step) {
      copy_wait<T::kStages - 2>();
      barrier();
      loader.issue();
      copy_commit();
#pragma unroll(kUnrolled<T>)
      for (int k = 0; k < T::kChannels / 16; ++k) sums.multiply(at, offset, k);
      offset = offset + T::kStageBytes == T::kStages * T::kStageBytes ? 0 : offset + T::kStageBytes;
    }
    sums.store(p, tile, warp, bias, y);
  }
}

}  // namespace

// Folds the weights and convolves with one tile: what instances.txt instantiates.
template <class T, class E>
std::string patch_run(const PatchParams& p, const Pointers& pointers, const Queue& queue) {
  const Layer layer = layer_of<T>(p, pointers);
  const std::string error = fold_weights<T, E>(weight_strides(p), layer, pointers, queue);
  if (!error.empty()) return error;
  const int grid = std::min(layer.tiles, multiprocessors(queue.device) * T::kResident);
  return launch(patch_forward<T, E>, grid, T::kThreads, T::kSharedBytes, queue, pointers.x,
                static_cast<const void*>(pointers.workspace), pointers.bias, pointers.y, layer);
}

}  // namespace symconv
