// Layers with a handful of input channels, folded: whole lines are added and subtracted, and the windows of
// the results are read with overlap, as `direct` reads the lines themselves.
#pragma once

#include <algorithm>

#include "packed/multiply.h"

namespace symconv {

// Are positions the lanes of a channels_last result, which is turned on the way out? Where orbits fill no
// vector that saves products; a vector of results takes as long to turn as some twelve of these. Octuples at
// a stride have so much to fold that lines apart by residue alone pay for it.
inline bool turns_lines(const Problem& p, int lanes) {
  int64_t rows = 0;
  bool octuples = false;
  for (const Segment& s : p.segments) rows = std::max(rows, s.rows), octuples |= s.tie.axes() == kAxes;
  if (p.out[kAxes - 1] < lanes || rows > lanes) return false;
  if (rows == lanes) return octuples && p.stride[kAxes - 1] > 1;
  return kernel_taps(p) * p.channels * (lanes - rows) >= 12 * p.filters;
}

// Forward, in either layout, for layers as in few_channels/direct.h. `turned`: positions are the lanes,
// however the result lies.
template <class T>
void direct_fold_fprop(const Problem& p, const MultiplyTensors<T>& tensors, bool turned);

// The same without a fold, each filter by itself: what an untied layer of as many filters computes.
template <class T>
void direct_fprop(const Problem& p, const MultiplyTensors<T>& tensors);

// `source` is the upstream gradient, `out` the gradient of the input.
template <class T>
void direct_fold_dgrad(const Problem& p, const MultiplyTensors<T>& tensors);

// `bias`: null, or room for the gradient of every filter's bias.
template <class T>
void direct_fold_wgrad(const Problem& p, const View<const Element<T>>& grad,
                       const View<const Element<T>>& input, const WeightView<Element<T>>& out,
                       int64_t out_group_stride, Element<T>* bias);

}  // namespace symconv
