// Problems, selections and passes for Python.
#pragma once

#include <torch/csrc/utils/pybind.h>

namespace symconv {

void bind_selections(pybind11::module_& m);

}  // namespace symconv
