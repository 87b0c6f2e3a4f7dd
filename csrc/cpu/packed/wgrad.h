// Weight gradient: the gather-sum of the upstream gradients times the input, orbit by orbit; or the fold of
// the input, as it is forward, times the parities of the upstream gradients.
#pragma once

#include <cstdint>
#include <functional>

#include "packed/panel.h"
#include "packed/plan.h"
#include "packed/weights.h"

namespace symconv {

template <class T>
struct Wgrad {
  const Problem& problem;
  View<const Element<T>> grad;  // upstream gradient; channels of all groups
  View<const Element<T>> input;
  WeightView<Element<T>> out;  // reduced weight gradient of group 0
  int64_t out_group_stride;
  int offset_axis;  // as in sum_plan()
  Filtering filtering;
  bool planes;        // of the panel
  bool staged;        // then planes too, whatever the layout of the gradient
  bool sums_depth;    // as in sum_plan()
  bool by_lines;      // of ties on both sides, along the width in the matrix kernel (packed/wgrad_lines.h)
  int segment, part;  // of the filters and of their input channels, where both sides are folded
  bool of_input;      // is the panel the fold of the input, with all its parts?
  // Null, or brings more to where gradient and input lie, to be added to the sum; false: there is no more.
  const std::function<bool()>& next;
};

template <class T>
void wgrad(const Wgrad<T>& w);

}  // namespace symconv
