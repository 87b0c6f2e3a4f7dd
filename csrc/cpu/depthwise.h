// Depthwise convolutions: every group of the layer has one input channel, every vector has a position of
// `lanes` channels. A box of source lines is packed with its padding, folded line by line, and multiplied
// in registers; nothing else is stored between source and result.
#pragma once

#include <cstdint>
#include <vector>

#include "depthwise_plan.h"
#include "geometry.h"
#include "kernels.h"
#include "panel.h"
#include "weights.h"

namespace symconv {

// Forward (fold) from the input, or input gradient from the upstream gradient.
template <class T>
struct Depthwise {
  const Problem& problem;
  bool fold;
  View<const T> source;
  WeightView<const T> weight;
  int64_t weight_group_stride;  // from one channel to the next
  View<T> out;
  const T* bias;  // null without; forward only
};
template <class T>
void depthwise(const Depthwise<T>& d);

template <class T>
struct DepthwiseGrad {
  const Problem& problem;
  View<const T> grad, input;
  WeightView<T> out;
  int64_t out_group_stride;
};
template <class T>
void depthwise_wgrad(const DepthwiseGrad<T>& d);

// The pieces that both share.

// Channels first .. first + lanes - 1 of the layer, one a lane; those of a vector that are left over are
// zero.
struct ChannelBlock {
  int64_t first;
  int lanes;
};

// Lines of `planes` planes of a box (`parities`: made of the members of one orbit), each plane after a line
// of zeros: [plane][1 + line][pitch][lanes].
template <class T>
void pack_box(const DepthwiseKernels<T>& kernels, int lanes, const View<const T>& source, int64_t image,
              const ChannelBlock& block, int planes, bool parities, const LinePhase& phase, const Box& box,
              int64_t pitch, T* out);

// One orbit of at most four members a channel: its parities are made while packing.
inline bool is_one_orbit(const Problem& p) {
  return p.orbits == 1 && p.filters <= 4 && p.filters == 1 << __builtin_popcount(p.segments[0].mask);
}

// Member planes of every orbit to parity planes, in place. `vectors` of each plane.
template <class T>
void planes_to_parities(const DepthwiseKernels<T>& kernels, const Problem& p, T* planes, int64_t plane_stride,
                        int64_t vectors);

// Moves the taps of one orbit of a block of channels between the weight and lanes, [tap][lanes].
template <class T>
void gather_taps(const DepthwiseKernels<T>& kernels, const Problem& p, const WeightView<const T>& weight,
                 int64_t group_stride, const ChannelBlock& block, int64_t orbit, int lanes, T* out);
template <class T>
void scatter_taps(const DepthwiseKernels<T>& kernels, const Problem& p, const WeightView<T>& weight,
                  int64_t group_stride, const ChannelBlock& block, int64_t orbit, int lanes, T* from);

inline int64_t kernel_taps(const Problem& p) { return p.kernel[0] * p.kernel[1] * p.kernel[2]; }

}  // namespace symconv
