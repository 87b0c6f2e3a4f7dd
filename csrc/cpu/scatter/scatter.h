// Forward as a scatter (scatter/plan.h): pack lines where they need it, multiply them by the raw weights of
// all taps, add shifted products up, store every member.
#pragma once

#include <cstdint>
#include <memory>

#include "microkernels/kernels.h"
#include "packed/multiply.h"
#include "problem.h"
#include "scatter/plan.h"

namespace symconv {

// A scatter of one segment without its tensors. Source and result are both channels_last, and orbits are the
// lanes, or (planes) both have contiguous lines, and positions are; where orbits fill no vector, lines of
// channels_last tensors are transposed on their way in and out (turned). Lines of contiguous tensors may be
// transposed as well, so that orbits are the lanes (relaid).
struct ScatterShape {
  const Problem& problem;
  int segment;
  ScatterPlan plan;
  bool planes, turned;
  bool direct;  // pixels only: lines of the source are multiplied where they lie, or were transposed to
  bool relaid;  // pixels only; one plane
};

// May be used by several threads at a time.
template <class T>
struct PreparedScatter;

template <class T>
std::shared_ptr<const PreparedScatter<T>> prepare_scatter(ScatterShape shape, int64_t threads);

template <class T>
void scatter(const PreparedScatter<T>& prepared, const MultiplyTensors<T>& tensors);

}  // namespace symconv
