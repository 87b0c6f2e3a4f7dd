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

// Tensors hold T; boxes, packed weights and results are Sum<T> until they are stored.

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

// What a box takes from a tensor: `planes` planes, each after a line of zeros: [plane][1 +
// line][pitch][lanes].
template <class T>
struct Packing {
  View<const T> source;
  int planes;
  bool parities;  // the planes are the members of orbits, and become their parities
  const LinePhase& phase;
  const Box& box;
  int64_t pitch;
  int64_t plane_vectors() const { return (1 + box.source_lines()) * pitch; }
};
// `clear`: write the zeros around the map too; the box that `out` held before was not the same one.
template <class T>
void pack_box(const DepthwiseKernels<T>& kernels, int lanes, const Problem& p, const Packing<T>& from,
              int64_t image, const ChannelBlock& block, bool clear, Sum<T>* out);

// Moves the taps of one orbit of a block of channels between the weight and lanes, [tap][lanes].
template <class T>
void gather_taps(const DepthwiseKernels<T>& kernels, const Problem& p, const WeightView<const T>& weight,
                 int64_t group_stride, const ChannelBlock& block, int64_t orbit, int lanes, Sum<T>* out);
template <class T>
void scatter_taps(const DepthwiseKernels<T>& kernels, const Problem& p, const WeightView<T>& weight,
                  int64_t group_stride, const ChannelBlock& block, int64_t orbit, int lanes, Sum<T>* from);

}  // namespace symconv
