// Python bindings: tensors and plain numbers in, strided views for the engine out.
#include <torch/extension.h>

#include <cstring>
#include <string>
#include <vector>

#include "depthwise.h"
#include "expand.h"
#include "kernels.h"
#include "multiply.h"
#include "scratch.h"
#include "wgrad.h"

namespace {

using symconv::kAxes;
using symconv::Problem;
using symconv::Segment;
using symconv::Triple;
using symconv::View;
using symconv::WeightView;

using Ints = std::vector<int64_t>;

// Axes are right-aligned: 1-D is width only, missing ones have extent 1 and stride 0.
Triple aligned(at::IntArrayRef v, int64_t fill) {
  Triple t;
  t.fill(fill);
  for (size_t i = 0; i < v.size(); ++i) t[kAxes - v.size() + i] = v[i];
  return t;
}

Triple spatial(at::IntArrayRef v, int64_t fill) { return aligned(v.slice(2), fill); }

struct Geometry {
  Ints ties, stride, padding, dilation;
  bool transposed;
  int64_t groups;
};

Problem make_problem(const Geometry& g, at::IntArrayRef input, at::IntArrayRef weight,
                     at::IntArrayRef output) {
  Problem p;
  p.batch = input[0];
  p.groups = g.groups;
  p.channels = input[1] / g.groups;
  p.filters = output[1] / g.groups;
  p.orbits = g.transposed ? weight[1] : weight[0] / g.groups;
  p.in = spatial(input, 1), p.out = spatial(output, 1), p.kernel = spatial(weight, 1);
  p.stride = aligned(g.stride, 1), p.padding = aligned(g.padding, 0), p.dilation = aligned(g.dilation, 1);
  p.transposed = g.transposed;
  int64_t row = 0, copies = p.orbits;
  for (size_t i = 0; i + 1 < g.ties.size(); i += 2) {
    const int mask = static_cast<int>(g.ties[i]);
    const int64_t rows = g.ties[i + 1] / g.groups;
    p.segments.push_back({mask, rows, row, copies});
    row += rows;
    copies += rows * ((1 << __builtin_popcount(mask)) - 1);
  }
  TORCH_CHECK(row == p.orbits && copies == p.filters, "ties do not fit the weight: ", row, " rows and ",
              copies, " filters in a group, expected ", p.orbits, " and ", p.filters);
  return p;
}

template <class T>
View<T> view(const at::Tensor& t) {
  return {static_cast<T*>(t.data_ptr()), t.stride(0), t.stride(1), spatial(t.strides(), 0)};
}

template <class T>
View<const T> const_view(const at::Tensor& t) {
  return {static_cast<const T*>(t.const_data_ptr()), t.stride(0), t.stride(1), spatial(t.strides(), 0)};
}

template <class T>
WeightView<T> weight_view(T* data, const at::Tensor& w, bool transposed) {
  return {data, w.stride(transposed ? 1 : 0), w.stride(transposed ? 0 : 1), spatial(w.strides(), 0)};
}

// Rows of one group of the layer follow each other along dim 0 in both kinds of weight.
int64_t weight_group_stride(const at::Tensor& w, int64_t groups) { return w.size(0) / groups * w.stride(0); }

// Channel-contiguous sources are packed pixel by pixel, all others plane by plane.
bool use_planes(const at::Tensor& source) { return source.stride(1) != 1 && source.size(1) != 1; }

template <class T>
void fprop(const Problem& p, const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& bias,
           const at::Tensor& y, symconv::Filtering filtering) {
  const bool planes = use_planes(x);
  for (size_t i = 0; i < p.segments.size(); ++i) {
    const Segment& s = p.segments[i];
    const int axis = symconv::choose_offset_axis(p, true, &s, 1, planes);
    const symconv::Plan plan = symconv::fold_plan(p, static_cast<int>(i), p.channels, axis, filtering);
    std::vector<int64_t> members;
    for (int g = 0; g < plan.parities; ++g) members.push_back(symconv::member_channel(s, g));
    symconv::multiply<T>({p, plan, const_view<T>(x), p.channels,
                          weight_view(static_cast<const T*>(w.const_data_ptr()), w, p.transposed),
                          weight_group_stride(w, p.groups), view<T>(y), p.filters, s.rows, p.channels,
                          members, bias ? static_cast<const T*>(bias->const_data_ptr()) : nullptr, planes});
  }
}

template <class T>
void dgrad(const Problem& p, const at::Tensor& gy, const at::Tensor& w, const at::Tensor& gx,
           symconv::Filtering filtering) {
  const bool planes = use_planes(gy);
  const int axis = symconv::choose_offset_axis(p, false, p.segments.data(), p.segments.size(), planes);
  const symconv::Plan plan = symconv::sum_plan(p, 0, 1, axis, filtering);
  symconv::multiply<T>({p,
                        plan,
                        const_view<T>(gy),
                        p.filters,
                        weight_view(static_cast<const T*>(w.const_data_ptr()), w, p.transposed),
                        weight_group_stride(w, p.groups),
                        view<T>(gx),
                        p.channels,
                        p.channels,
                        p.orbits,
                        {0},
                        nullptr,
                        planes});
}

template <class T>
void wgrad(const Problem& p, const at::Tensor& gy, const at::Tensor& x, const at::Tensor& gw,
           symconv::Filtering filtering) {
  symconv::wgrad<T>({p, const_view<T>(gy), const_view<T>(x),
                     weight_view(static_cast<T*>(gw.data_ptr()), gw, p.transposed),
                     weight_group_stride(gw, p.groups), filtering, use_planes(gy)});
}

symconv::Filtering filtering_of(const std::string& algorithm) {
  if (algorithm == "fold") return symconv::kPlain;
  if (algorithm == "f2") return symconv::kF2;
  TORCH_CHECK(algorithm == "f4", "algorithm must be fold, f2 or f4, got ", algorithm);
  return symconv::kF4;
}

void check(const at::Tensor& t, const at::Tensor& like, const char* name) {
  TORCH_CHECK(t.device().is_cpu(), name, " must be a CPU tensor, got one on ", t.device());
  TORCH_CHECK(t.scalar_type() == like.scalar_type(), name, " must be ", like.scalar_type(), ", got ",
              t.scalar_type());
  TORCH_CHECK(t.dim() >= 3 && t.dim() == like.dim(), name,
              " must have 3, 4 or 5 dimensions as the others, got ", t.dim());
}

#define SYMCONV_DISPATCH(TENSOR, CALL)                                                      \
  if ((TENSOR).scalar_type() == at::kFloat) {                                               \
    using scalar = float;                                                                   \
    CALL;                                                                                   \
  } else {                                                                                  \
    TORCH_CHECK((TENSOR).scalar_type() == at::kDouble, "float32 or float64 expected, got ", \
                (TENSOR).scalar_type());                                                    \
    using scalar = double;                                                                  \
    CALL;                                                                                   \
  }

void fprop_into(const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& bias,
                const at::Tensor& y, const Ints& ties, const Ints& stride, const Ints& padding,
                const Ints& dilation, bool transposed, int64_t groups, const std::string& algorithm) {
  check(x, y, "input"), check(w, y, "weight");
  std::optional<at::Tensor> b;
  if (bias) b = bias->contiguous();
  const Problem p =
      make_problem({ties, stride, padding, dilation, transposed, groups}, x.sizes(), w.sizes(), y.sizes());
  const symconv::Filtering filtering = filtering_of(algorithm);
  pybind11::gil_scoped_release release;
  SYMCONV_DISPATCH(y, fprop<scalar>(p, x, w, b, y, filtering));
}

void dgrad_into(const at::Tensor& gy, const at::Tensor& w, const at::Tensor& gx, const Ints& ties,
                const Ints& stride, const Ints& padding, const Ints& dilation, bool transposed,
                int64_t groups, const std::string& algorithm) {
  check(gy, gx, "grad_output"), check(w, gx, "weight");
  const Problem p =
      make_problem({ties, stride, padding, dilation, transposed, groups}, gx.sizes(), w.sizes(), gy.sizes());
  const symconv::Filtering filtering = filtering_of(algorithm);
  pybind11::gil_scoped_release release;
  SYMCONV_DISPATCH(gx, dgrad<scalar>(p, gy, w, gx, filtering));
}

void wgrad_into(const at::Tensor& gy, const at::Tensor& x, const at::Tensor& gw, const Ints& ties,
                const Ints& stride, const Ints& padding, const Ints& dilation, bool transposed,
                int64_t groups, const std::string& algorithm) {
  check(gy, gw, "grad_output"), check(x, gw, "input");
  const Problem p =
      make_problem({ties, stride, padding, dilation, transposed, groups}, x.sizes(), gw.sizes(), gy.sizes());
  const symconv::Filtering filtering = filtering_of(algorithm);
  pybind11::gil_scoped_release release;
  SYMCONV_DISPATCH(gw, wgrad<scalar>(p, gy, x, gw, filtering));
}

// Sizes of the filters alone: expand and reduce know no input.
Problem filter_problem(const at::Tensor& weight, const at::Tensor& filters, const Ints& ties, bool transposed,
                       int64_t groups) {
  const int64_t channels = transposed ? weight.size(0) : weight.size(1) * groups;
  const int64_t outs = transposed ? filters.size(1) * groups : filters.size(0);
  const Ints ones(weight.dim(), 1);
  Ints input = ones, output = ones;
  input[1] = channels, output[1] = outs;
  return make_problem({ties, Ints(weight.dim() - 2, 1), {}, {}, transposed, groups}, input, weight.sizes(),
                      output);
}

void expand_into(const at::Tensor& weight, const at::Tensor& filters, const Ints& ties, bool transposed,
                 int64_t groups) {
  check(weight, filters, "weight");
  const Problem p = filter_problem(weight, filters, ties, transposed, groups);
  pybind11::gil_scoped_release release;
  SYMCONV_DISPATCH(
      weight, symconv::expand<scalar>(
                  p, weight_view(static_cast<const scalar*>(weight.const_data_ptr()), weight, transposed),
                  weight_group_stride(weight, groups),
                  weight_view(static_cast<scalar*>(filters.data_ptr()), filters, transposed),
                  weight_group_stride(filters, groups)));
}

void reduce_into(const at::Tensor& filters, const at::Tensor& weight, const Ints& ties, bool transposed,
                 int64_t groups) {
  check(filters, weight, "filters");
  const Problem p = filter_problem(weight, filters, ties, transposed, groups);
  pybind11::gil_scoped_release release;
  SYMCONV_DISPATCH(
      weight, symconv::reduce<scalar>(
                  p, weight_view(static_cast<const scalar*>(filters.const_data_ptr()), filters, transposed),
                  weight_group_stride(filters, groups),
                  weight_view(static_cast<scalar*>(weight.data_ptr()), weight, transposed),
                  weight_group_stride(weight, groups)));
}

void check_depthwise(const Problem& p) {
  TORCH_CHECK(p.channels == 1, "a depthwise layer has one input channel in each group, got ", p.channels);
}

template <class T>
void depthwise(const Problem& p, bool fold, const at::Tensor& source, const at::Tensor& w,
               const std::optional<at::Tensor>& bias, const at::Tensor& out) {
  symconv::depthwise<T>({p, fold, const_view<T>(source),
                         weight_view(static_cast<const T*>(w.const_data_ptr()), w, p.transposed),
                         weight_group_stride(w, p.groups), view<T>(out),
                         bias ? static_cast<const T*>(bias->const_data_ptr()) : nullptr});
}

void depthwise_fprop(const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& bias,
                     const at::Tensor& y, const Ints& ties, const Ints& stride, const Ints& padding,
                     const Ints& dilation, bool transposed, int64_t groups) {
  check(x, y, "input"), check(w, y, "weight");
  std::optional<at::Tensor> b;
  if (bias) b = bias->contiguous();
  const Problem p =
      make_problem({ties, stride, padding, dilation, transposed, groups}, x.sizes(), w.sizes(), y.sizes());
  check_depthwise(p);
  pybind11::gil_scoped_release release;
  SYMCONV_DISPATCH(y, depthwise<scalar>(p, true, x, w, b, y));
}

void depthwise_dgrad(const at::Tensor& gy, const at::Tensor& w, const at::Tensor& gx, const Ints& ties,
                     const Ints& stride, const Ints& padding, const Ints& dilation, bool transposed,
                     int64_t groups) {
  check(gy, gx, "grad_output"), check(w, gx, "weight");
  const Problem p =
      make_problem({ties, stride, padding, dilation, transposed, groups}, gx.sizes(), w.sizes(), gy.sizes());
  check_depthwise(p);
  pybind11::gil_scoped_release release;
  SYMCONV_DISPATCH(gx, depthwise<scalar>(p, false, gy, w, std::nullopt, gx));
}

template <class T>
void depthwise_grad(const Problem& p, const at::Tensor& gy, const at::Tensor& x, const at::Tensor& gw) {
  symconv::depthwise_wgrad<T>({p, const_view<T>(gy), const_view<T>(x),
                               weight_view(static_cast<T*>(gw.data_ptr()), gw, p.transposed),
                               weight_group_stride(gw, p.groups)});
}

void depthwise_wgrad(const at::Tensor& gy, const at::Tensor& x, const at::Tensor& gw, const Ints& ties,
                     const Ints& stride, const Ints& padding, const Ints& dilation, bool transposed,
                     int64_t groups) {
  check(gy, gw, "grad_output"), check(x, gw, "input");
  const Problem p =
      make_problem({ties, stride, padding, dilation, transposed, groups}, x.sizes(), gw.sizes(), gy.sizes());
  check_depthwise(p);
  pybind11::gil_scoped_release release;
  SYMCONV_DISPATCH(gw, depthwise_grad<scalar>(p, gy, x, gw));
}

pybind11::dict build_info() {
  pybind11::dict info;
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
  m.doc() = "CPU kernels of symconv_fast: every function writes into a tensor that the caller allocated.";
  m.def("fprop", &fprop_into);
  m.def("dgrad", &dgrad_into);
  m.def("wgrad", &wgrad_into);
  m.def("expand", &expand_into);
  m.def("reduce", &reduce_into);
  m.def(
      "clear_workspace", [] { symconv::Workspace::of_thread().clear(); },
      "Gives the working memory that the calling thread keeps for its next call back to the system.");
  m.def("depthwise_fprop", &depthwise_fprop);
  m.def("depthwise_dgrad", &depthwise_dgrad);
  m.def("depthwise_wgrad", &depthwise_wgrad);
  m.def("isa", &symconv::instruction_set, "Instruction set in use: avx512, avx2 or baseline.");
  m.def("build_info", &build_info);
}
