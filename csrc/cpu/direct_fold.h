// Layers with a handful of input channels, folded: whole lines are added and subtracted, and the windows of
// the results are read with overlap, as `direct` reads the lines themselves.
#pragma once

#include "multiply.h"

namespace symconv {

// Forward, where direct_applies(), in either layout. Of the tied axes those in `axes` are folded (bit 0
// width, bit 1 height, bit 2 depth); along the others each orbit member has filters of its own.
template <class T>
void direct_fold_fprop(const Problem& p, int axes, const MultiplyTensors<T>& tensors);

// Where direct_applies(), all tied axes folded. `bias`: null, or room for the gradient of every filter's
// bias.
template <class T>
void direct_fold_wgrad(const Problem& p, const View<const Element<T>>& grad,
                       const View<const Element<T>>& input, const WeightView<Element<T>>& out,
                       int64_t out_group_stride, Element<T>* bias);

}  // namespace symconv
