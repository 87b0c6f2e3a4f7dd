// The gradient of the input with products of warp groups (compute capability 9.0a), and how a call of one
// tile is run.
#pragma once
#include <algorithm>

#include "hopper/pipeline.h"
#include "hopperdgrad/roles.h"
#include "hopperdgrad/tiles.h"
#include "patch/fold.h"

namespace symconv {
namespace {

template <class T, class E>
__global__ void __launch_bounds__(T::kThreads, 1)
    hopper_gradient(const __grid_constant__ CUtensorMap map, const void* weights, void* x,
                    const __grid_constant__ Layer p) {
  run_pipeline<T, GatherWarp<T, E>>(&map, weights, nullptr, x, p);
}

}  // namespace

// Packs the weights and gathers with one tile: what instances.txt instantiates.
template <class T, class E>
std::string hopperdgrad_run(const HopperdgradParams& params, const Pointers& pointers, const Queue& queue) {
  const PatchParams p = as_patch(params);
  const Layer layer = layer_of<T>(p, pointers);
  CUtensorMap map;
  std::string error = map_of<T>(map, p, layer, pointers.x);
  if (!error.empty()) return error;
  error = fold_weights<T, E>(weight_strides(p), layer, pointers, queue);
  if (!error.empty()) return error;
  return launch(hopper_gradient<T, E>, std::min(layer.tiles, multiprocessors(queue.device)), T::kThreads,
                T::kSharedBytes, queue, map, static_cast<const void*>(pointers.workspace), pointers.y, layer);
}

}  // namespace symconv
