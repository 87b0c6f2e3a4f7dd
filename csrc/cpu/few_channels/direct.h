// Gradients of layers with a handful of input channels, each filter by itself: where the contraction is so
// short that folding, scattering and packing take longer than the multiplications that they save. Input lines
// are read with overlap, as they lie; a matrix of a few rows holds the filters. Forward is in
// few_channels/direct_fold.h.
#pragma once

#include <cstdint>

#include "packed/multiply.h"

namespace symconv {

// For layers that are not transposed, of which the filters of a group fill whole vectors of sums.

// `source` is the upstream gradient, `out` the gradient of the input.
template <class T>
void direct_dgrad(const Problem& p, const MultiplyTensors<T>& tensors);

template <class T>
void direct_wgrad(const Problem& p, const View<const Element<T>>& grad, const View<const Element<T>>& input,
                  const WeightView<Element<T>>& out, int64_t out_group_stride);

}  // namespace symconv
