// Python bindings.
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>

#include "export.h"
#include "python/layer_calls.h"
#include "python/selections.h"
#include "workspace.h"

namespace {

namespace py = pybind11;

py::dict build_info() {
  py::dict info;
  info["compiler"] = __VERSION__;
  info["torch"] = TORCH_VERSION;
#ifdef _OPENMP
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "CPU kernels of symconv_fast.";
  symconv::bind_selections(m);
  m.def("clear_workspace", &symconv::clear_workspace,
        "Gives the working memory that the calling thread keeps for its next call back to the system.");
  m.def("build_info", &build_info);
  symconv::bind_layer_calls(m);
}
