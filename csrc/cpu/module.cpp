// Python bindings: tensors and plain numbers in, strided views for the engine out.
#include <torch/csrc/autograd/profiler.h>
#include <torch/csrc/jit/frontend/tracer.h>
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

using symconv::Element;
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

struct Layout {
  bool planes, staged, pixel_lanes;
};

// How a multiplication lays out its panel and its results. Runs of channels that fill no vector, and lines
// that fill none, are staged; columns that fill none leave the lanes to the positions.
template <class T>
Layout choose_layout(const at::Tensor& source, const at::Tensor& out, int64_t run, int64_t columns) {
  const int64_t lanes = symconv::select_kernels<T>().lanes;
  const bool planes = use_planes(source), last = out.stride(1) == 1 && out.size(1) != 1;
  if (!symconv::kCanStage<T>) return {planes, false, planes};
  if (run < lanes || columns < lanes) return {true, true, columns < lanes || !last};
  return {planes, planes && out.size(-1) <= lanes, planes};
}

template <class T>
void fprop(const Problem& p, const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& bias,
           const at::Tensor& y, symconv::Filtering filtering) {
  for (size_t i = 0; i < p.segments.size(); ++i) {
    const Segment& s = p.segments[i];
    const Layout layout = choose_layout<T>(x, y, p.channels, s.rows);
    const int axis = symconv::choose_offset_axis(p, true, &s, 1, layout.planes);
    const symconv::Plan plan = symconv::fold_plan(p, static_cast<int>(i), p.channels, axis, filtering);
    std::vector<int64_t> members;
    for (int g = 0; g < plan.parities; ++g) members.push_back(symconv::member_channel(s, g));
    symconv::multiply<T>({p, plan, const_view<Element<T>>(x), p.channels,
                          weight_view(static_cast<const Element<T>*>(w.const_data_ptr()), w, p.transposed),
                          weight_group_stride(w, p.groups), view<Element<T>>(y), p.filters, s.rows,
                          p.channels, members,
                          bias ? static_cast<const Element<T>*>(bias->const_data_ptr()) : nullptr,
                          layout.planes, layout.staged, layout.pixel_lanes});
  }
}

template <class T>
void dgrad(const Problem& p, const at::Tensor& gy, const at::Tensor& w, const at::Tensor& gx,
           symconv::Filtering filtering) {
  int64_t run = p.orbits;
  for (const Segment& s : p.segments) run = std::min(run, s.rows);
  const Layout layout = choose_layout<T>(gy, gx, run, p.channels);
  const int axis = symconv::choose_offset_axis(p, false, p.segments.data(), p.segments.size(), layout.planes);
  const symconv::Plan plan = symconv::sum_plan(p, 0, 1, axis, filtering);
  symconv::multiply<T>({p,
                        plan,
                        const_view<Element<T>>(gy),
                        p.filters,
                        weight_view(static_cast<const Element<T>*>(w.const_data_ptr()), w, p.transposed),
                        weight_group_stride(w, p.groups),
                        view<Element<T>>(gx),
                        p.channels,
                        p.channels,
                        p.orbits,
                        {0},
                        nullptr,
                        layout.planes,
                        layout.staged,
                        layout.pixel_lanes});
}

template <class T>
void wgrad(const Problem& p, const at::Tensor& gy, const at::Tensor& x, const at::Tensor& gw,
           symconv::Filtering filtering) {
  symconv::wgrad<T>({p, const_view<Element<T>>(gy), const_view<Element<T>>(x),
                     weight_view(static_cast<Element<T>*>(gw.data_ptr()), gw, p.transposed),
                     weight_group_stride(gw, p.groups), filtering, use_planes(gy)});
}

symconv::Filtering filtering_of(const std::string& algorithm, const at::Tensor& result) {
  if (algorithm == "fold") return symconv::kPlain;
  TORCH_CHECK(result.element_size() >= 4, "algorithm must be fold for ", result.scalar_type(), ", got ",
              algorithm);
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

// Runs CALL with `scalar` as the name of a way to run the dtype of TENSOR (formats.h).
#define SYMCONV_DISPATCH(TENSOR, CALL)                                                                    \
  switch ((TENSOR).scalar_type()) {                                                                       \
    case at::kFloat: {                                                                                    \
      using scalar = float;                                                                               \
      CALL;                                                                                               \
      break;                                                                                              \
    }                                                                                                     \
    case at::kDouble: {                                                                                   \
      using scalar = double;                                                                              \
      CALL;                                                                                               \
      break;                                                                                              \
    }                                                                                                     \
    case at::kHalf: {                                                                                     \
      using scalar = symconv::Half;                                                                       \
      CALL;                                                                                               \
      break;                                                                                              \
    }                                                                                                     \
    case at::kBFloat16: {                                                                                 \
      using scalar = symconv::BFloat16;                                                                   \
      CALL;                                                                                               \
      break;                                                                                              \
    }                                                                                                     \
    default:                                                                                              \
      TORCH_CHECK(false, "float16, bfloat16, float32 or float64 expected, got ", (TENSOR).scalar_type()); \
  }

// The same for the matrix kernels, which have bfloat16 of their own where the CPU has instructions for it.
#define SYMCONV_DISPATCH_MATRIX(TENSOR, CALL)                            \
  if ((TENSOR).scalar_type() == at::kBFloat16 && symconv::has_pairs()) { \
    using scalar = symconv::Pair;                                        \
    CALL;                                                                \
  } else {                                                               \
    SYMCONV_DISPATCH(TENSOR, CALL)                                       \
  }

void fprop_into(const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& bias,
                const at::Tensor& y, const Ints& ties, const Ints& stride, const Ints& padding,
                const Ints& dilation, bool transposed, int64_t groups, const std::string& algorithm) {
  check(x, y, "input"), check(w, y, "weight");
  std::optional<at::Tensor> b;
  if (bias) b = bias->contiguous();
  const Problem p =
      make_problem({ties, stride, padding, dilation, transposed, groups}, x.sizes(), w.sizes(), y.sizes());
  const symconv::Filtering filtering = filtering_of(algorithm, y);
  pybind11::gil_scoped_release release;
  SYMCONV_DISPATCH_MATRIX(y, fprop<scalar>(p, x, w, b, y, filtering));
}

void dgrad_into(const at::Tensor& gy, const at::Tensor& w, const at::Tensor& gx, const Ints& ties,
                const Ints& stride, const Ints& padding, const Ints& dilation, bool transposed,
                int64_t groups, const std::string& algorithm) {
  check(gy, gx, "grad_output"), check(w, gx, "weight");
  const Problem p =
      make_problem({ties, stride, padding, dilation, transposed, groups}, gx.sizes(), w.sizes(), gy.sizes());
  const symconv::Filtering filtering = filtering_of(algorithm, gx);
  pybind11::gil_scoped_release release;
  SYMCONV_DISPATCH_MATRIX(gx, dgrad<scalar>(p, gy, w, gx, filtering));
}

void wgrad_into(const at::Tensor& gy, const at::Tensor& x, const at::Tensor& gw, const Ints& ties,
                const Ints& stride, const Ints& padding, const Ints& dilation, bool transposed,
                int64_t groups, const std::string& algorithm) {
  check(gy, gw, "grad_output"), check(x, gw, "input");
  const Problem p =
      make_problem({ties, stride, padding, dilation, transposed, groups}, x.sizes(), gw.sizes(), gy.sizes());
  const symconv::Filtering filtering = filtering_of(algorithm, gw);
  pybind11::gil_scoped_release release;
  SYMCONV_DISPATCH_MATRIX(gw, wgrad<scalar>(p, gy, x, gw, filtering));
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

// --- a pass with everything static bound once: what is left for a call is tensors
// -----------------------------------

c10::MemoryFormat memory_format(size_t dims, bool channels_last) {
  if (!channels_last || dims == 3) return c10::MemoryFormat::Contiguous;
  return dims == 4 ? c10::MemoryFormat::ChannelsLast : c10::MemoryFormat::ChannelsLast3d;
}

at::Tensor allocate(const Ints& shape, const at::Tensor& like, bool channels_last) {
  return at::empty(shape, like.options().requires_grad(false), memory_format(shape.size(), channels_last));
}

// The kernels read along channels or along the last dimension; anything else is copied once.
at::Tensor readable(const at::Tensor& t) {
  if (t.stride(1) == 1 || t.stride(-1) == 1) return t;
  const bool last = t.stride(1) < t.stride(-1) && t.dim() > 3 && t.stride(1) != 0;
  return t.contiguous(memory_format(t.dim(), last));
}

struct Pass {
  Geometry geometry;
  Ints output_padding, torch_dilation;
  Ints result, strides;  // of the result
  Ints expanded;         // shape of the ordinary filters
  bool channels_last, depthwise;
  std::string algorithm;

  at::Tensor fprop(const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& bias) const {
    const Geometry& g = geometry;
    if (algorithm == "expand") return convolve(x, w, bias);
    const at::Tensor y = allocate(result, x, channels_last);
    if (depthwise)
      depthwise_fprop(x, w, bias, y, g.ties, g.stride, g.padding, g.dilation, g.transposed, g.groups);
    else
      fprop_into(readable(x), w, bias, y, g.ties, g.stride, g.padding, g.dilation, g.transposed, g.groups,
                 algorithm);
    return y;
  }

  at::Tensor dgrad(const at::Tensor& gy, const at::Tensor& w) const {
    const Geometry& g = geometry;
    const at::Tensor gx = allocate(result, w, channels_last);
    if (depthwise)
      depthwise_dgrad(gy, w, gx, g.ties, g.stride, g.padding, g.dilation, g.transposed, g.groups);
    else
      dgrad_into(readable(gy), w, gx, g.ties, g.stride, g.padding, g.dilation, g.transposed, g.groups,
                 algorithm);
    return gx;
  }

  at::Tensor wgrad(const at::Tensor& gy, const at::Tensor& x) const {
    const Geometry& g = geometry;
    const at::Tensor gw = allocate(result, x, channels_last);
    if (depthwise)
      depthwise_wgrad(gy, x, gw, g.ties, g.stride, g.padding, g.dilation, g.transposed, g.groups);
    else
      wgrad_into(readable(gy), x, gw, g.ties, g.stride, g.padding, g.dilation, g.transposed, g.groups,
                 algorithm);
    return gw;
  }

 private:
  // The ordinary filters, and torch's convolution. Autocast has had its say where the layer was entered.
  at::Tensor convolve(const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& bias) const {
    const Geometry& g = geometry;
    c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const at::Tensor filters = allocate(expanded, w, channels_last);
    expand_into(w, filters, g.ties, g.transposed, g.groups);
    pybind11::gil_scoped_release release;
    const at::Tensor y = at::convolution(x, filters, bias, g.stride, g.padding, torch_dilation, g.transposed,
                                         output_padding, g.groups);
    const at::Tensor same = y.contiguous(memory_format(y.dim(), channels_last));
    // Dimensions of size 1 may carry any stride; torch.compile compares them all the same.
    return same.strides() == at::IntArrayRef(strides) ? same : same.as_strided(same.sizes(), strides);
  }
};

// Would the dispatcher do nothing with these but call the CPU kernel? No gradient, mode, subclass or
// transform.
bool is_plain(const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& bias) {
  static const c10::DispatchKeySet plain = at::empty({0}).key_set();
  const auto bars = [](const at::Tensor& t) {
    return t.key_set() != plain || (at::GradMode::is_enabled() && t.requires_grad());
  };
  return !bars(x) && !bars(w) && !(bias && bars(*bias)) &&
         c10::impl::tls_local_dispatch_key_set().included_ == c10::default_included_set &&
         !torch::autograd::profiler::profilerEnabled() && !torch::jit::tracer::isTracing();
}

bool suggests_channels_last(const at::Tensor& t) {
  const c10::MemoryFormat format = t.suggest_memory_format();
  return format == c10::MemoryFormat::ChannelsLast || format == c10::MemoryFormat::ChannelsLast3d;
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
  m.def("is_plain", &is_plain);
  m.def("suggests_channels_last", &suggests_channels_last);
  pybind11::class_<Pass>(m, "Pass", "One pass of one problem by one algorithm.")
      .def(pybind11::init([](const Ints& ties, const Ints& stride, const Ints& padding, const Ints& dilation,
                             bool transposed, int64_t groups, const Ints& output_padding,
                             const Ints& torch_dilation, const Ints& result, const Ints& strides,
                             const Ints& expanded, bool channels_last, bool depthwise,
                             const std::string& algorithm) {
        return Pass{{ties, stride, padding, dilation, transposed, groups},
                    output_padding,
                    torch_dilation,
                    result,
                    strides,
                    expanded,
                    channels_last,
                    depthwise,
                    algorithm};
      }))
      .def("fprop", &Pass::fprop)
      .def("dgrad", &Pass::dgrad)
      .def("wgrad", &Pass::wgrad);
  m.def("depthwise_fprop", &depthwise_fprop);
  m.def("depthwise_dgrad", &depthwise_dgrad);
  m.def("depthwise_wgrad", &depthwise_wgrad);
  m.def("isa", &symconv::instruction_set, "Instruction set in use: avx512_bf16, avx512, avx2 or baseline.");
  m.def("build_info", &build_info);
}
