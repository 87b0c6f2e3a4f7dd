// Weight gradient: the gather-sum of the upstream gradients times the input, orbit by orbit.
#pragma once

#include <cstdint>
#include <functional>

#include "geometry.h"
#include "panel.h"
#include "weights.h"

namespace symconv {

template <class T>
struct Wgrad {
  const Problem& problem;
  View<const Element<T>> grad;  // upstream gradient; channels of all groups
  View<const Element<T>> input;
  WeightView<Element<T>> out;  // reduced weight gradient of group 0
  int64_t out_group_stride;
  Filtering filtering;
  bool planes;  // of the panel
  bool staged;  // then planes too, whatever the layout of the gradient
  // Null, or brings more to where gradient and input lie, to be added to the sum; false: there is no more.
  const std::function<bool()>& next;
};

template <class T>
void wgrad(const Wgrad<T>& w);

}  // namespace symconv
