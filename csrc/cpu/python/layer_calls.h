// The operators' Python side: who chooses what runs, and calls of layers with one hop from Python.
#pragma once

#include <torch/csrc/utils/pybind.h>

namespace symconv {

void bind_layer_calls(pybind11::module_& m);

}  // namespace symconv
