// Layers with a handful of input channels, each filter by itself: where the contraction is so short that
// folding, scattering and packing take longer than the multiplications that they save. Input lines are read
// with overlap, as they lie; a matrix of a few rows holds the filters.
#pragma once

#include <cstdint>

#include "multiply.h"

namespace symconv {

constexpr int64_t kDirectChannels = 4;  // of a group, at most

// The filters of a group must fill whole vectors, and output and upstream gradient be channels_last, but for
// direct_fold_fprop().
template <class T>
bool direct_applies(const Problem& p);

template <class T>
void direct_fprop(const Problem& p, const MultiplyTensors<T>& tensors);

// `source` is the upstream gradient, `out` the gradient of the input.
template <class T>
void direct_dgrad(const Problem& p, const MultiplyTensors<T>& tensors);

template <class T>
void direct_wgrad(const Problem& p, const View<const T>& grad, const View<const T>& input,
                  const WeightView<T>& out, int64_t out_group_stride);

}  // namespace symconv
