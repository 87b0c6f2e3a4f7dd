// Forward patch kernel with products of warp groups (compute capability 9.0a), and how a call of one tile is
// run.
#pragma once
#include <algorithm>

#include "hopper/params.h"
#include "hopper/pipeline.h"
#include "hopper/tiles.h"
#include "patch/fold.h"

namespace symconv {
namespace {

template <class T, class E>
__global__ void __launch_bounds__(T::kThreads, 1)
    hopper_forward(const __grid_constant__ CUtensorMap map, const void* weights, const void* bias, void* y,
                   const __grid_constant__ Layer p) {
  run_pipeline<T, GroupWarp<T, E>>(&map, weights, bias, y, p);
}

}  // namespace

// Folds the weights and convolves with one tile: what instances.txt instantiates.
template <class T, class E>
std::string hopper_run(const HopperParams& p, const Pointers& pointers, const Queue& queue) {
  const Layer layer = layer_of<T>(p, pointers);
  CUtensorMap map;
  std::string error = map_of<T>(map, p, layer, pointers.x);
  if (!error.empty()) return error;
  error = fold_weights<T, E>(weight_strides(p), layer, pointers, queue);
  if (!error.empty()) return error;
  return launch(hopper_forward<T, E>, std::min(layer.tiles, multiprocessors(queue.device)), T::kThreads,
                T::kSharedBytes, queue, map, static_cast<const void*>(pointers.workspace), pointers.bias,
                pointers.y, layer);
}

}  // namespace symconv
