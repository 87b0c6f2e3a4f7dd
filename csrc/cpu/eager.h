// Layers that were called before, in one native call: Python's checks and the choice of kernels are
// remembered.
#pragma once

#include <torch/csrc/utils/pybind.h>

namespace symconv {

void bind_eager(pybind11::module_& m);

}  // namespace symconv
