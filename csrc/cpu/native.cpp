// The choice between the engine's kernels, and what each is given.
#include "native.h"

#include <algorithm>
#include <memory>

#include "depthwise.h"
#include "direct.h"
#include "direct_fold.h"
#include "kernels.h"
#include "scatter.h"
#include "views.h"
#include "wgrad.h"

namespace symconv {
namespace {

// Channel-contiguous sources are packed pixel by pixel, all others plane by plane.
bool use_planes(const at::Tensor& source) { return source.stride(1) != 1 && source.size(1) != 1; }

// Lines of planes so short that their borders, where each position is packed by itself, take more than a
// stage does. Panels of three dims read a source more often, so that its copy weighs less.
bool has_short_lines(const at::Tensor& made, int64_t lanes) {
  return made.size(-1) <= (made.dim() == 5 ? 4 : 1) * lanes;
}

// How a multiplication lays out its panel and its results. Runs of channels that fill no vector, and lines
// that fill none, are staged; columns that fill none leave the lanes to the positions.
template <class T>
Layout choose_layout(const at::Tensor& source, const at::Tensor& out, int64_t run, int64_t columns) {
  const int64_t lanes = select_kernels<T>().lanes;
  const bool planes = use_planes(source), last = out.stride(1) == 1 && out.size(1) != 1;
  if (run < lanes || columns < lanes) return {true, true, columns < lanes || !last};
  return {planes, planes && has_short_lines(out, lanes), planes};
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

// Contiguous lines whose channels and orbits fill vectors.
template <class T>
bool can_relay(const Problem& p, const Segment& segment) {
  const int64_t lanes = select_kernels<T>().lanes;
  return p.in[0] == 1 && p.out[0] == 1 && p.kernel[0] == 1 && segment.rows >= lanes && p.channels >= lanes;
}

// Whether it can: source and result must lie alike, and lines that are the lanes must be contiguous.
template <class T>
bool run_scatter(const Problem& p, int segment, Preparations& prepared, const MultiplyTensors<T>& tensors,
                 Filtering filtering) {
  const bool last = tensors.source.channel_stride == 1 && tensors.out.channel_stride == 1;
  const bool lines = tensors.source.stride[kAxes - 1] == 1 && tensors.out.stride[kAxes - 1] == 1;
  const bool turned = last && p.segments[segment].rows < select_kernels<T>().lanes;
  const bool relaid = !last && lines && can_relay<T>(p, p.segments[segment]);
  const bool pixels = relaid || (last && !turned);
  const std::optional<ScatterPlan> plan = scatter_plan(p, p.segments[segment], filtering, pixels);
  if (!plan || (!last && !(lines && plan->inner == kAxes - 1))) return false;
  View<const Element<T>> source = tensors.source;
  if (relaid) source.stride[0] = source.stride[1] = source.stride[2] = p.channels;
  const bool direct = pixels && reads_in_place<T>(p, *plan, source);
  const auto make = [&](int64_t threads) {
    return prepare_scatter<T>({p, segment, *plan, !pixels, turned, direct, relaid}, threads);
  };
  const Layout layout{!last, direct, turned || relaid};
  scatter<T>(*prepared.find<PreparedScatter<T>>(p, segment, layout, 0, make), tensors);
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
    Filtering along = filtering;
    const int axis = choose_sum_axis(p, layout.planes, along);
    const Plan plan = sum_plan(p, 0, 1, axis, along);
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
               Filtering filtering, const std::function<bool()>& next) {
  const int64_t lanes = select_kernels<T>().lanes;
  const bool planes = use_planes(gy), short_lines = planes && has_short_lines(x, lanes);
  // Not for octuples: their error was 2 % above twice that of torch's convolution (32 channels, 8 x 8 x 8).
  // The rounding of 16-bit types is far above either.
  const bool octuples = !kNarrow<T> && std::any_of(p.segments.begin(), p.segments.end(),
                                                   [](const Segment& s) { return s.mask == 7; });
  const bool staged = !octuples && (shortest_run(p) < lanes || short_lines);
  wgrad<T>({p, const_view<Element<T>>(gy), const_view<Element<T>>(x),
            weight_view(static_cast<Element<T>*>(gw.data_ptr()), gw, p.transposed),
            weight_group_stride(gw, p.groups), filtering, planes || staged, staged, next});
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

// Tied axes that a direct algorithm folds, as direct_fold_fprop() takes them; -1 for another algorithm.
int direct_axes(const std::string& algorithm) {
  if (algorithm == "direct") return 0;
  if (algorithm == "direct_lines") return 6;
  return algorithm == "direct_fold" ? 7 : -1;
}

template <class T>
void check_direct(const Problem& p) {
  TORCH_CHECK(direct_applies<T>(p), "algorithm direct does not apply to this layer");
}

template <class T>
void run_direct_fprop(const Problem& p, int axes, const at::Tensor& x, const at::Tensor& w,
                      const std::optional<at::Tensor>& bias, const at::Tensor& y) {
  check_direct<T>(p);
  TORCH_CHECK(axes || y.stride(1) == 1, "algorithm direct is for a channels_last output");
  const MultiplyTensors<T> tensors = forward_tensors<T>(p, x, w, bias, y);
  if (axes) return direct_fold_fprop<T>(p, axes, tensors);
  if constexpr (!kNarrow<T>)
    direct_fprop<T>(p, tensors);
  else
    TORCH_CHECK(false, "algorithm direct is, forward, for float32 and float64, got ", y.scalar_type());
}

template <class T>
void run_direct_dgrad(const Problem& p, const at::Tensor& gy, const at::Tensor& w, const at::Tensor& gx) {
  check_direct<T>(p);
  direct_dgrad<T>(p, forward_tensors<T>(p, gy, w, std::nullopt, gx));
}

template <class T>
void run_direct_wgrad(const Problem& p, const at::Tensor& gy, const at::Tensor& x, const at::Tensor& gw) {
  check_direct<T>(p);
  direct_wgrad<T>(p, const_view<Element<T>>(gy), const_view<Element<T>>(x),
                  weight_view(static_cast<Element<T>*>(gw.data_ptr()), gw, p.transposed),
                  weight_group_stride(gw, p.groups));
}

template <class T>
void run_direct_fold_wgrad(const Problem& p, const at::Tensor& gy, const at::Tensor& x, const at::Tensor& gw,
                           const at::Tensor& gb) {
  check_direct<T>(p);
  direct_fold_wgrad<T>(p, const_view<Element<T>>(gy), const_view<Element<T>>(x),
                       weight_view(static_cast<Element<T>*>(gw.data_ptr()), gw, p.transposed),
                       weight_group_stride(gw, p.groups),
                       gb.defined() ? static_cast<Element<T>*>(gb.data_ptr()) : nullptr);
}

// The kernels read along channels or along the last dimension; anything else is copied once.
at::Tensor readable(const at::Tensor& t) {
  if (t.stride(1) == 1 || t.stride(-1) == 1) return t;
  const bool last = t.stride(1) < t.stride(-1) && t.dim() > 3 && t.stride(1) != 0;
  return t.contiguous(memory_format(t.dim(), last));
}

}  // namespace

bool sums_bias(const std::string& algorithm) { return algorithm == "direct_fold"; }

void native_fprop(const NativePass& pass, const at::Tensor& x, const at::Tensor& w,
                  const std::optional<at::Tensor>& bias, const at::Tensor& y) {
  const Problem& p = pass.problem;
  if (const int axes = direct_axes(pass.algorithm); axes >= 0) {
    SYMCONV_DISPATCH(y, run_direct_fprop<scalar>(p, axes, x, w, bias, y));
  } else if (pass.depthwise) {
    SYMCONV_DISPATCH(y, run_depthwise<scalar>(p, true, x, w, bias, y));
  } else {
    const Forward how = forward_of(pass.algorithm, y);
    const at::Tensor source = readable(x);
    SYMCONV_DISPATCH_MATRIX(y, run_fprop<scalar>(p, pass.prepared, source, w, bias, y, how));
  }
}

void native_dgrad(const NativePass& pass, const at::Tensor& gy, const at::Tensor& w, const at::Tensor& gx) {
  const Problem& p = pass.problem;
  if (pass.algorithm == "direct") {
    SYMCONV_DISPATCH(gx, run_direct_dgrad<scalar>(p, gy, w, gx));
  } else if (pass.depthwise) {
    SYMCONV_DISPATCH(gx, run_depthwise<scalar>(p, false, gy, w, std::nullopt, gx));
  } else {
    const Filtering filtering = filtering_of(pass.algorithm, gx);
    const at::Tensor source = readable(gy);
    SYMCONV_DISPATCH_MATRIX(gx, run_dgrad<scalar>(p, pass.prepared, source, w, gx, filtering));
  }
}

void native_wgrad(const NativePass& pass, const at::Tensor& gy, const at::Tensor& x, const at::Tensor& gw,
                  const at::Tensor& gb, const std::function<bool()>& next) {
  const Problem& p = pass.problem;
  TORCH_CHECK(!gb.defined() || sums_bias(pass.algorithm), "algorithm ", pass.algorithm,
              " does not sum the bias");
  const bool direct = direct_axes(pass.algorithm) >= 0;
  if (!direct && !pass.depthwise) {
    const Filtering filtering = filtering_of(pass.algorithm, gw);
    const at::Tensor source = readable(gy);
    TORCH_CHECK(!next || source.is_same(gy), "parts of grad_output must be channels_last");
    SYMCONV_DISPATCH_MATRIX(gw, run_wgrad<scalar>(p, source, x, gw, filtering, next));
    return;
  }
  if (!direct) {
    SYMCONV_DISPATCH(gw, run_depthwise_wgrad<scalar>(p, gy, x, gw));
  } else if (sums_bias(pass.algorithm)) {
    SYMCONV_DISPATCH(gw, run_direct_fold_wgrad<scalar>(p, gy, x, gw, gb));
  } else {
    SYMCONV_DISPATCH(gw, run_direct_wgrad<scalar>(p, gy, x, gw));
  }
  TORCH_CHECK(!next || !next(), "algorithm ", pass.algorithm, " does not sum over parts");
}

}  // namespace symconv
