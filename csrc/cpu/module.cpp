// Python bindings.
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>

#include <memory>
#include <string>

#include "eager.h"
#include "kernels.h"
#include "pass.h"
#include "scratch.h"

namespace {

namespace py = pybind11;
using symconv::Ints;
using symconv::Pass;

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

std::unique_ptr<Pass> make_pass(const Ints& ties, const Ints& stride, const Ints& padding,
                                const Ints& dilation, bool transposed, int64_t groups, const Ints& input,
                                const Ints& weight, const Ints& output, const Ints& torch_dilation,
                                const Ints& output_padding, const Ints& filters, const Ints& strides,
                                at::ScalarType type, bool channels_last, bool depthwise,
                                const std::string& algorithm, int64_t images, int64_t lines, bool of_input) {
  return std::make_unique<Pass>(symconv::Geometry{ties, stride, padding, dilation, transposed, groups},
                                symconv::Shapes{input, weight, output},
                                symconv::Torch{torch_dilation, output_padding, filters, strides, type},
                                channels_last, depthwise, algorithm, symconv::Parts{images, lines, of_input});
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "CPU kernels of symconv_fast.";
  using NoGil = py::call_guard<py::gil_scoped_release>;
  py::class_<Pass>(m, "Pass", "One pass of one problem by one algorithm.")
      .def(py::init(&make_pass))
      .def("fprop", &Pass::fprop, NoGil())
      .def("dgrad", &Pass::dgrad, NoGil())
      .def("wgrad", py::overload_cast<const at::Tensor&, const at::Tensor&>(&Pass::wgrad, py::const_),
           NoGil());
  m.def("clear_workspace", &symconv::clear_workspace,
        "Gives the working memory that the calling thread keeps for its next call back to the system.");
  m.def("isa", &symconv::instruction_set, "Instruction set in use: avx512_bf16, avx512, avx2 or baseline.");
  m.def("build_info", &build_info);
  symconv::bind_eager(m);
}
