// The kernel before the convolution: folds the reduced weight and lays it out as the image of each stage.
#pragma once
#include "launch.h"
#include "patch/params.h"
#include "patch/tile.h"

namespace symconv {
namespace {

struct WeightStrides {
  int64_t group, row, channel, tap_row, tap_column;
};

// Weight of folded tap `tap` of a filter w[row * 3 + column]; the order is that in which warps multiply.
// `kept` is half of what the fold of the input keeps of a sum: 1/2, or 1 where sums are halved. Nothing is
// folded where sums have one parity.
template <class T>
__device__ __forceinline__ float folded(int tap, const float (&w)[kTaps], float kept) {
  if constexpr (T::kMembers == 1) {
    return w[tap];
  } else if constexpr (T::kMembers == 2) {
    const int row = tap < 6 ? tap / 2 : tap - 6;
    const float *r = w + row * 3, side = tap % 2 == 0 ? r[0] + r[2] : r[0] - r[2];
    return tap >= 6 ? r[1] : kept * side;
  } else {
    float side[3];  // tap / 3 == 0: sum over the sides, 1: difference, 2: centre
#pragma unroll
    for (int row = 0; row < 3; ++row) {
      const float* r = w + row * 3;
      side[row] = tap / 3 == 0 ? kept * (r[0] + r[2]) : tap / 3 == 1 ? kept * (r[0] - r[2]) : r[1];
    }
    return tap % 3 == 0 ? kept * (side[0] + side[2]) : tap % 3 == 1 ? kept * (side[0] - side[2]) : side[1];
  }
}

// A thread for each orbit of each block and channel of each stage; what does not exist is zero.
template <class T, class E>
__global__ void __launch_bounds__(128)
    fold_filters(const void* w, WeightStrides strides, void* packed, const __grid_constant__ Layer p) {
  const int index = block() * threads() + thread(), padded = p.steps * T::kChannels;
  const int orbit = index / padded, c = index % padded, at = orbit / T::kOrbits;
  const int u = at % p.orbit_blocks * T::kOrbits + orbit % T::kOrbits;
  if (at >= p.blocks) return;
  float filter[kTaps];
  const bool exists = u < p.orbits && c < p.chunks * 8;
  const int64_t first = at / p.orbit_blocks * strides.group + u * strides.row + c * strides.channel;
#pragma unroll
  for (int k = 0; k < kTaps; ++k)
    filter[k] = exists ? load_element<E>(w, first + k / 3 * strides.tap_row + k % 3 * strides.tap_column) : 0;
  const int64_t stage = (int64_t{at} * p.steps + c / T::kChannels) * T::kWeightBytes;
  const int row = weight_row<T>(orbit % T::kOrbits), channel = c % T::kChannels;
#pragma unroll
  for (int tap = 0; tap < kTaps; ++tap)
    store_element<E>(packed, (stage + weight_address<T>(tap, row, channel / 8)) / 2 + channel % 8,
                     folded<T>(tap, filter, 0.5f * kFold<E>));
}

}  // namespace

// Queues fold_filters(); text of the error, or nothing.
template <class T, class E>
std::string fold_weights(const WeightStrides& strides, const Layer& p, const Pointers& pointers,
                         const Queue& queue) {
  const int filters = p.blocks * T::kOrbits * p.steps * T::kChannels;
  return launch(fold_filters<T, E>, (filters + 127) / 128, 128, 0, queue, pointers.w, strides,
                pointers.workspace, p);
}

}  // namespace symconv
