// Strided views of tensors for the engine, and the choice between its kernels.
#include "pass.h"

#include <algorithm>
#include <cstring>

#include "depthwise.h"
#include "direct.h"
#include "expand.h"
#include "kernels.h"
#include "multiply.h"
#include "scatter.h"
#include "wgrad.h"

namespace symconv {
namespace {

// Axes are right-aligned: 1-D is width only, missing ones have extent 1 and stride 0.
Triple aligned(at::IntArrayRef v, int64_t fill) {
  Triple t;
  t.fill(fill);
  for (size_t i = 0; i < v.size(); ++i) t[kAxes - v.size() + i] = v[i];
  return t;
}

Triple spatial(at::IntArrayRef v, int64_t fill) { return aligned(v.slice(2), fill); }

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

// How a multiplication lays out its panel and its results. Runs of channels that fill no vector, and lines
// that fill none, are staged; columns that fill none leave the lanes to the positions.
template <class T>
Layout choose_layout(const at::Tensor& source, const at::Tensor& out, int64_t run, int64_t columns) {
  const int64_t lanes = select_kernels<T>().lanes;
  const bool planes = use_planes(source), last = out.stride(1) == 1 && out.size(1) != 1;
  if (!kCanStage<T>) return {planes, false, planes};
  if (run < lanes || columns < lanes) return {true, true, columns < lanes || !last};
  return {planes, planes && out.size(-1) <= lanes, planes};
}

template <class T>
WeightView<const Element<T>> const_weight(const at::Tensor& w, bool transposed) {
  return weight_view(static_cast<const Element<T>*>(w.const_data_ptr()), w, transposed);
}

// The axis that the matrix kernel folds, or -1: where positions are its lanes and no axis is free to shift
// along.
template <class T>
int mirror_axis(const Problem& p, const Segment& s, int offset_axis, const Layout& layout) {
  if (!select_kernels<T>().mirror || offset_axis >= 0 || !layout.pixel_lanes) return -1;
  return choose_mirror_axis(p, s);
}

// How a forward pass multiplies: as a fold or as a scatter, and with what filtering along a free axis.
struct Forward {
  bool scatter;
  Filtering filtering;
};

template <class T>
MultiplyTensors<T> forward_tensors(const Problem& p, const at::Tensor& x, const at::Tensor& w,
                                   const std::optional<at::Tensor>& bias, const at::Tensor& y) {
  return {const_view<Element<T>>(x), const_weight<T>(w, p.transposed), weight_group_stride(w, p.groups),
          view<Element<T>>(y), bias ? static_cast<const Element<T>*>(bias->const_data_ptr()) : nullptr};
}

template <class T>
void run_fold(const Problem& p, int segment, Preparations& prepared, const MultiplyTensors<T>& tensors,
              const Layout& layout, Filtering filtering) {
  const Segment& s = p.segments[segment];
  const int64_t stride = tensors.out.channel_stride;
  const auto make = [&](int64_t threads) {
    const int axis = choose_offset_axis(p, true, &s, 1, layout.planes);
    const int mirror = mirror_axis<T>(p, s, axis, layout);
    const Plan plan = fold_plan(p, segment, p.channels, mirror < 0 ? axis : mirror, filtering);
    const Plan weight_plan = mirror < 0 ? plan : fold_plan(p, segment, p.channels, -1, kPlain);
    std::vector<int64_t> members;
    for (int g = 0; g < weight_plan.parities; ++g) members.push_back(member_channel(s, g));
    const MultiplyShape shape{p,         plan,          weight_plan,   p.channels,
                              p.filters, stride,        s.rows,        p.channels,
                              members,   layout.planes, layout.staged, layout.pixel_lanes};
    return prepare<T>(shape, threads);
  };
  multiply<T>(*prepared.find<Prepared<T>>(p, segment, layout, stride, make), tensors);
}

// Lines that the matrix kernel can read where they lie: rows not so far apart that they share cache sets, and
// pairs whole.
template <class T>
bool reads_in_place(const Problem& p, const ScatterPlan& plan, const View<const Element<T>>& x) {
  constexpr int64_t depth = Format<T>::depth, most = 2048;
  if (sizeof(Element<T>) * depth != sizeof(Word<T>)) return false;
  if (!plan.summed || plan.filtering || plan.folded) return false;
  bool whole = p.channels % depth == 0 && x.batch_stride % depth == 0;
  for (const int64_t stride : x.stride) whole = whole && stride % depth == 0;
  return whole &&
         p.stride[plan.inner] * x.stride[plan.inner] * static_cast<int64_t>(sizeof(Element<T>)) <= most;
}

// Whether it can: source and result must lie alike, and lines that are the lanes must be contiguous.
template <class T>
bool run_scatter(const Problem& p, int segment, Preparations& prepared, const MultiplyTensors<T>& tensors,
                 Filtering filtering) {
  const bool last = tensors.source.channel_stride == 1 && tensors.out.channel_stride == 1;
  const bool lines = tensors.source.stride[kAxes - 1] == 1 && tensors.out.stride[kAxes - 1] == 1;
  const bool turned = last && kCanStage<T> && p.segments[segment].rows < select_kernels<T>().lanes;
  const std::optional<ScatterPlan> plan = scatter_plan(p, p.segments[segment], filtering, last && !turned);
  if (!plan || (!last && !(lines && plan->inner == kAxes - 1))) return false;
  const bool direct = last && !turned && reads_in_place<T>(p, *plan, tensors.source);
  const auto make = [&](int64_t threads) {
    return prepare_scatter<T>({p, segment, *plan, !last || turned, turned, direct}, threads);
  };
  scatter<T>(*prepared.find<PreparedScatter<T>>(p, segment, {!last, direct, turned}, 0, make), tensors);
  return true;
}

template <class T>
void run_fprop(const Problem& p, Preparations& prepared, const at::Tensor& x, const at::Tensor& w,
               const std::optional<at::Tensor>& bias, const at::Tensor& y, const Forward& how) {
  const MultiplyTensors<T> tensors = forward_tensors<T>(p, x, w, bias, y);
  for (int i = 0; i < static_cast<int>(p.segments.size()); ++i) {
    if (how.scatter && run_scatter<T>(p, i, prepared, tensors, how.filtering)) continue;
    const Layout layout = choose_layout<T>(x, y, p.channels, p.segments[i].rows);
    run_fold<T>(p, i, prepared, tensors, layout, how.filtering);
  }
}

// Orbits that lie together in the upstream gradient.
int64_t shortest_run(const Problem& p) {
  int64_t run = p.orbits;
  for (const Segment& s : p.segments) run = std::min(run, s.rows);
  return run;
}

template <class T>
void run_dgrad(const Problem& p, Preparations& prepared, const at::Tensor& gy, const at::Tensor& w,
               const at::Tensor& gx, Filtering filtering) {
  const Layout layout = choose_layout<T>(gy, gx, shortest_run(p), p.channels);
  const auto make = [&](int64_t threads) {
    const int axis = choose_offset_axis(p, false, p.segments.data(), p.segments.size(), layout.planes);
    const Plan plan = sum_plan(p, 0, 1, axis, filtering);
    const MultiplyShape shape{p,          plan,     plan, p.filters,     p.channels,    gx.stride(1),
                              p.channels, p.orbits, {0},  layout.planes, layout.staged, layout.pixel_lanes};
    return prepare<T>(shape, threads);
  };
  multiply<T>(*prepared.find<Prepared<T>>(p, 0, layout, gx.stride(1), make),
              {const_view<Element<T>>(gy), const_weight<T>(w, p.transposed), weight_group_stride(w, p.groups),
               view<Element<T>>(gx), nullptr});
}

template <class T>
void run_wgrad(const Problem& p, const at::Tensor& gy, const at::Tensor& x, const at::Tensor& gw,
               Filtering filtering) {
  const int64_t lanes = select_kernels<T>().lanes;
  const bool planes = use_planes(gy), short_lines = planes && x.size(-1) <= lanes;
  // Not for octuples: their error was 2 % above twice that of torch's convolution (32 channels, 8 x 8 x 8).
  const bool octuples =
      std::any_of(p.segments.begin(), p.segments.end(), [](const Segment& s) { return s.mask == 7; });
  const bool staged = kCanStage<T> && !octuples && (shortest_run(p) < lanes || short_lines);
  wgrad<T>({p, const_view<Element<T>>(gy), const_view<Element<T>>(x),
            weight_view(static_cast<Element<T>*>(gw.data_ptr()), gw, p.transposed),
            weight_group_stride(gw, p.groups), filtering, planes || staged, staged});
}

Filtering filtering_of(const std::string& algorithm, const at::Tensor& result) {
  if (algorithm == "fold") return kPlain;
  TORCH_CHECK(result.element_size() >= 4, "algorithm must be fold for ", result.scalar_type(), ", got ",
              algorithm);
  if (algorithm == "f2") return kF2;
  TORCH_CHECK(algorithm == "f4", "algorithm must be fold, f2 or f4, got ", algorithm);
  return kF4;
}

Forward forward_of(const std::string& algorithm, const at::Tensor& result) {
  if (algorithm == "scatter") return {true, kPlain};
  const bool scatter = algorithm.rfind("scatter_", 0) == 0;
  return {scatter, filtering_of(scatter ? algorithm.substr(8) : algorithm, result)};
}

void check(const at::Tensor& t, const char* name, at::IntArrayRef sizes, at::ScalarType type) {
  TORCH_CHECK(t.device().is_cpu(), name, " must be a CPU tensor, got one on ", t.device());
  TORCH_CHECK(t.scalar_type() == type, name, " must be ", type, ", got ", t.scalar_type());
  TORCH_CHECK(t.sizes() == sizes, name, " must have shape ", sizes, ", got ", t.sizes());
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
#define SYMCONV_DISPATCH_MATRIX(TENSOR, CALL)                   \
  if ((TENSOR).scalar_type() == at::kBFloat16 && has_pairs()) { \
    using scalar = Pair;                                        \
    CALL;                                                       \
  } else {                                                      \
    SYMCONV_DISPATCH(TENSOR, CALL)                              \
  }

template <class T>
void run_depthwise(const Problem& p, bool fold, const at::Tensor& source, const at::Tensor& w,
                   const std::optional<at::Tensor>& bias, const at::Tensor& out) {
  depthwise<T>({p, fold, const_view<T>(source),
                weight_view(static_cast<const T*>(w.const_data_ptr()), w, p.transposed),
                weight_group_stride(w, p.groups), view<T>(out),
                bias ? static_cast<const T*>(bias->const_data_ptr()) : nullptr});
}

template <class T>
void run_depthwise_wgrad(const Problem& p, const at::Tensor& gy, const at::Tensor& x, const at::Tensor& gw) {
  depthwise_wgrad<T>({p, const_view<T>(gy), const_view<T>(x),
                      weight_view(static_cast<T*>(gw.data_ptr()), gw, p.transposed),
                      weight_group_stride(gw, p.groups)});
}

// Runs CALL with `scalar` as float or double, which `direct` is for.
#define SYMCONV_DISPATCH_DIRECT(TENSOR, CALL)                                                               \
  if ((TENSOR).scalar_type() == at::kFloat) {                                                               \
    using scalar = float;                                                                                   \
    CALL;                                                                                                   \
  } else {                                                                                                  \
    TORCH_CHECK((TENSOR).scalar_type() == at::kDouble, "algorithm direct is for float32 and float64, got ", \
                (TENSOR).scalar_type());                                                                    \
    using scalar = double;                                                                                  \
    CALL;                                                                                                   \
  }

template <class T>
void check_direct(const Problem& p, const at::Tensor& last) {
  TORCH_CHECK(direct_applies<T>(p) && last.stride(1) == 1, "algorithm direct does not apply to this layer");
}

template <class T>
void run_direct_fprop(const Problem& p, const at::Tensor& x, const at::Tensor& w,
                      const std::optional<at::Tensor>& bias, const at::Tensor& y) {
  check_direct<T>(p, y);
  direct_fprop<T>(p, forward_tensors<T>(p, x, w, bias, y));
}

template <class T>
void run_direct_dgrad(const Problem& p, const at::Tensor& gy, const at::Tensor& w, const at::Tensor& gx) {
  check_direct<T>(p, gy);
  direct_dgrad<T>(p, forward_tensors<T>(p, gy, w, std::nullopt, gx));
}

template <class T>
void run_direct_wgrad(const Problem& p, const at::Tensor& gy, const at::Tensor& x, const at::Tensor& gw) {
  check_direct<T>(p, gy);
  direct_wgrad<T>(p, const_view<T>(gy), const_view<T>(x),
                  weight_view(static_cast<T*>(gw.data_ptr()), gw, p.transposed),
                  weight_group_stride(gw, p.groups));
}

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

}  // namespace

Pass::Pass(Geometry geometry, Shapes shapes, Torch torch, bool channels_last, bool depthwise,
           std::string algorithm)
    : geometry_(std::move(geometry)),
      shapes_(std::move(shapes)),
      torch_(std::move(torch)),
      channels_last_(channels_last),
      depthwise_(depthwise),
      algorithm_(std::move(algorithm)),
      problem_(make_problem(geometry_, shapes_.input, shapes_.weight, shapes_.output)) {
  TORCH_CHECK(!depthwise_ || problem_.channels == 1,
              "a depthwise layer has one input channel in each group, got ", problem_.channels);
}

at::Tensor Pass::fprop(const at::Tensor& x, const at::Tensor& w,
                       const std::optional<at::Tensor>& bias) const {
  check(x, "input", shapes_.input, w.scalar_type()), check(w, "weight", shapes_.weight, x.scalar_type());
  if (bias) check(*bias, "bias", shapes_.output[1], x.scalar_type());
  if (algorithm_ == "expand") return convolve(x, w, bias);
  const at::Tensor y = allocate(shapes_.output, x, channels_last_);
  std::optional<at::Tensor> b;
  if (bias) b = bias->contiguous();
  if (algorithm_ == "direct") {
    SYMCONV_DISPATCH_DIRECT(y, run_direct_fprop<scalar>(problem_, x, w, b, y));
  } else if (depthwise_) {
    SYMCONV_DISPATCH(y, run_depthwise<scalar>(problem_, true, x, w, b, y));
  } else {
    const Forward how = forward_of(algorithm_, y);
    const at::Tensor source = readable(x);
    SYMCONV_DISPATCH_MATRIX(y, run_fprop<scalar>(problem_, preparations_, source, w, b, y, how));
  }
  return y;
}

at::Tensor Pass::dgrad(const at::Tensor& gy, const at::Tensor& w) const {
  check(gy, "grad_output", shapes_.output, w.scalar_type());
  check(w, "weight", shapes_.weight, gy.scalar_type());
  if (algorithm_ == "expand") return convolve_back(gy, w);
  const at::Tensor gx = allocate(shapes_.input, w, channels_last_);
  if (algorithm_ == "direct") {
    const at::Tensor source = gy.stride(1) == 1 ? gy : gy.contiguous(memory_format(gy.dim(), true));
    SYMCONV_DISPATCH_DIRECT(gx, run_direct_dgrad<scalar>(problem_, source, w, gx));
  } else if (depthwise_) {
    SYMCONV_DISPATCH(gx, run_depthwise<scalar>(problem_, false, gy, w, std::nullopt, gx));
  } else {
    const Filtering filtering = filtering_of(algorithm_, gx);
    const at::Tensor source = readable(gy);
    SYMCONV_DISPATCH_MATRIX(gx, run_dgrad<scalar>(problem_, preparations_, source, w, gx, filtering));
  }
  return gx;
}

at::Tensor Pass::wgrad(const at::Tensor& gy, const at::Tensor& x) const {
  check(gy, "grad_output", shapes_.output, x.scalar_type());
  check(x, "input", shapes_.input, gy.scalar_type());
  const at::Tensor gw = allocate(shapes_.weight, x, channels_last_);
  if (algorithm_ == "expand") {
    const at::Tensor filters = filter_gradient(gy, x);
    if (filters.scalar_type() == gw.scalar_type()) {
      reduce_into(filters, gw);
    } else {  // rounded once, after the sum
      const at::Tensor wide = allocate(shapes_.weight, filters, channels_last_);
      reduce_into(filters, wide);
      gw.copy_(wide);
    }
  } else if (algorithm_ == "direct") {
    const at::Tensor source = gy.stride(1) == 1 ? gy : gy.contiguous(memory_format(gy.dim(), true));
    SYMCONV_DISPATCH_DIRECT(gw, run_direct_wgrad<scalar>(problem_, source, x, gw));
  } else if (depthwise_) {
    SYMCONV_DISPATCH(gw, run_depthwise_wgrad<scalar>(problem_, gy, x, gw));
  } else {
    const Filtering filtering = filtering_of(algorithm_, gw);
    const at::Tensor source = readable(gy);
    SYMCONV_DISPATCH_MATRIX(gw, run_wgrad<scalar>(problem_, source, x, gw, filtering));
  }
  return gw;
}

// --- the ordinary filters, and torch's convolution: autocast has had its say where the layer was entered ---

at::Tensor Pass::expanded(const at::Tensor& w) const {
  const at::Tensor filters = allocate(torch_.filters, w, channels_last_);
  const bool transposed = geometry_.transposed;
  const int64_t groups = geometry_.groups;
  SYMCONV_DISPATCH(
      w, expand<scalar>(problem_, weight_view(static_cast<const scalar*>(w.const_data_ptr()), w, transposed),
                        weight_group_stride(w, groups),
                        weight_view(static_cast<scalar*>(filters.data_ptr()), filters, transposed),
                        weight_group_stride(filters, groups)));
  return filters;
}

void Pass::reduce_into(const at::Tensor& filters, const at::Tensor& gw) const {
  const bool transposed = geometry_.transposed;
  const int64_t groups = geometry_.groups;
  SYMCONV_DISPATCH(
      gw,
      reduce<scalar>(
          problem_, weight_view(static_cast<const scalar*>(filters.const_data_ptr()), filters, transposed),
          weight_group_stride(filters, groups),
          weight_view(static_cast<scalar*>(gw.data_ptr()), gw, transposed), weight_group_stride(gw, groups)));
}

// In the type in which torch is asked. In float64 that is a kernel of torch's own, which wants no other
// layout.
at::Tensor Pass::asked(const at::Tensor& t) const {
  if (t.scalar_type() == torch_.type) return t;
  const at::Tensor wide = t.to(torch_.type);
  return torch_.type == at::kDouble ? wide.contiguous() : wide;
}

at::Tensor Pass::convolve(const at::Tensor& x, const at::Tensor& w,
                          const std::optional<at::Tensor>& bias) const {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const Geometry& g = geometry_;
  std::optional<at::Tensor> b;
  if (bias) b = asked(*bias);
  const at::Tensor y = at::convolution(asked(x), asked(expanded(w)), b, g.stride, g.padding, torch_.dilation,
                                       g.transposed, torch_.output_padding, g.groups);
  return as_result(y.to(x.scalar_type()));
}

at::Tensor Pass::convolve_back(const at::Tensor& gy, const at::Tensor& w) const {
  const at::Tensor filters = asked(expanded(w));
  // Only shape and layout of the input are read for its own gradient.
  const at::Tensor like = allocate(shapes_.input, filters, channels_last_ && torch_.type != at::kDouble);
  const at::Tensor gx = std::get<0>(backward(asked(gy), like, filters, {true, false, false}));
  return as_result(gx.to(gy.scalar_type()));
}

at::Tensor Pass::filter_gradient(const at::Tensor& gy, const at::Tensor& x) const {
  const at::Tensor input = asked(x);
  const at::Tensor like = allocate(torch_.filters, input, channels_last_ && torch_.type != at::kDouble);
  return std::get<1>(backward(asked(gy), input, like, {false, true, false}));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> Pass::backward(const at::Tensor& gy, const at::Tensor& x,
                                                              const at::Tensor& filters,
                                                              std::array<bool, 3> wanted) const {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const Geometry& g = geometry_;
  return at::convolution_backward(gy, x, filters, at::OptionalIntArrayRef(), g.stride, g.padding,
                                  torch_.dilation, g.transposed, torch_.output_padding, g.groups, wanted);
}

at::Tensor Pass::as_result(const at::Tensor& t) const {
  const at::Tensor same = t.contiguous(memory_format(t.dim(), channels_last_));
  // Dimensions of size 1 may carry any stride; torch.compile compares them all the same.
  return same.strides() == at::IntArrayRef(torch_.strides) ? same
                                                           : same.as_strided(same.sizes(), torch_.strides);
}

}  // namespace symconv
