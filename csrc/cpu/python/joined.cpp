// What knows Python, compiled as one file: the headers of torch and pybind11 are read once.
#include "python/bindings.cpp"
#include "python/layer_calls.cpp"
#include "python/selections.cpp"
