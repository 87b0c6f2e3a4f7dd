// Layers with a handful of input channels, each filter by itself: where the contraction is so short that
// folding, scattering and packing take longer than the multiplications that they save. Input lines are read
// with overlap, as they lie; a matrix of a few rows holds the filters.
#pragma once

#include <cstdint>

#include "multiply.h"

namespace symconv {

constexpr int64_t kDirectChannels = 4;  // of a group, at most

// The filters of a group must fill whole vectors of sums, and the output of direct_fprop() be channels_last.
template <class T>
bool direct_applies(const Problem& p);

// float and double alone: results are written as they are summed.
template <class T>
void direct_fprop(const Problem& p, const MultiplyTensors<T>& tensors);

// `source` is the upstream gradient, `out` the gradient of the input.
template <class T>
void direct_dgrad(const Problem& p, const MultiplyTensors<T>& tensors);

template <class T>
void direct_wgrad(const Problem& p, const View<const Element<T>>& grad, const View<const Element<T>>& input,
                  const WeightView<Element<T>>& out, int64_t out_group_stride);

}  // namespace symconv
