// One convolution as Python describes it, and the problem that it is.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <vector>

#include "export.h"
#include "problem.h"

namespace symconv {

using Ints = std::vector<int64_t>;

struct Description {
  Ints ties;  // selection/flat_ties.h
  Ints stride, padding, dilation;
  bool transposed;
  int64_t groups;
  Ints input, weight, output;  // shapes
  c10::ScalarType type;
  // Which tensors are channels_last: the first one that the operator is given, and its result.
  bool source_last, result_last;

  int dims() const { return static_cast<int>(weight.size()) - 2; }
};

SYMCONV_API Problem make_problem(const Description& d);

}  // namespace symconv
