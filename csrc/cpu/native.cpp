// Tensors to kernels, as they were selected.
#include "native.h"

#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <utility>

#include "depthwise/depthwise.h"
#include "few_channels/direct.h"
#include "few_channels/direct_fold.h"
#include "microkernels/kernels.h"
#include "packed/multiply.h"
#include "packed/wgrad.h"
#include "scatter/scatter.h"
#include "selection/counters.h"
#include "views.h"
#include "workspace.h"

namespace symconv {
namespace {

// What every function below is given.
struct Given {
  const Selection& selection;
  Preparations& prepared;
  int64_t threads;
  const Problem& problem() const { return selection.problem; }
};

// Where the extent is 1 torch lets a stride be anything; kernels ask whether channels, or positions of a
// line, follow each other.
template <class T>
View<const Element<T>> source_view(const at::Tensor& t) {
  View<const Element<T>> v = const_view<Element<T>>(t);
  if (t.size(1) == 1) v.channel_stride = 1;
  if (t.size(-1) == 1) v.stride[kAxes - 1] = 1;
  return v;
}

template <class T>
MultiplyTensors<T> multiplied(const Given& c, const at::Tensor& source, const at::Tensor& w,
                              const std::optional<at::Tensor>& bias, const at::Tensor& out) {
  const Problem& p = c.problem();
  return {source_view<T>(source), const_weight<T>(w, p.transposed), weight_group_stride(w, p.groups),
          view<Element<T>>(out), bias ? static_cast<const Element<T>*>(bias->const_data_ptr()) : nullptr};
}

// --- folds, gather-sums and scatters ---

// Members along axes that move nothing repeat the others.
std::vector<int64_t> stored_members(const Segment& s, const Triple& kernel) {
  const Tie moving = s.moving(kernel), still = s.tie.without(moving);
  std::vector<int64_t> members;
  for (int copy = 0; copy < still.members(); ++copy)
    for (int g = 0; g < moving.members(); ++g)
      members.push_back(member_channel(s, s.tie.member_of(still, copy) | s.tie.member_of(moving, g)));
  return members;
}

Plan in_order(Plan plan, const Multiplication& m) {
  return m.layout.by_lines ? width_first(std::move(plan)) : plan;
}

MultiplyShape folded(const Given& c, const Multiplication& m, int64_t out_channel_stride) {
  const Problem& p = c.problem();
  const Segment& s = p.segments[m.segment];
  int64_t widest = 0;
  for (const Blocks& part : s.inputs) widest = std::max(widest, part.size);
  return {p,
          in_order(fold_plan(p, m.segment, m.axis, m.filtering), m),
          p.channels,
          p.filters,
          out_channel_stride,
          s.rows,
          widest,
          s.own_image ? std::vector<int64_t>{s.first} : stored_members(s, p.kernel),
          !p.order.empty(),
          false,
          m.layout.planes,
          m.layout.staged,
          m.layout.pixel_lanes,
          m.layout.by_lines};
}

// Of the gradient of blocks of input channels these are the members.
MultiplyShape unfolded(const Given& c, const Multiplication& m, int64_t out_channel_stride) {
  const Problem& p = c.problem();
  const Segment& s = p.segments[m.segment];
  const Blocks& part = s.inputs[m.part];
  return {p,
          in_order(gradient_plan(p, m.segment, m.part, m.axis, m.filtering), m),
          p.filters,
          p.channels,
          out_channel_stride,
          part.size,
          s.rows,
          {part.at.begin(), part.at.begin() + part.count()},
          false,
          !p.order.empty(),
          m.layout.planes,
          m.layout.staged,
          m.layout.pixel_lanes,
          m.layout.by_lines};
}

template <class T>
void fold(const Given& c, size_t i, const MultiplyTensors<T>& tensors) {
  const Multiplication& m = c.selection.multiplications[i];
  const auto shape = c.selection.op == Op::fprop ? folded : unfolded;
  const auto make = [&] { return prepare<T>(shape(c, m, tensors.out.channel_stride), c.threads); };
  count_run(m.filtering ? Ran::filtered_fold : Ran::fold);
  multiply<T>(*c.prepared.find<Prepared<T>>(c.threads, i, make), tensors);
}

template <class T>
void scatter(const Given& c, size_t i, const MultiplyTensors<T>& tensors) {
  const Multiplication& m = c.selection.multiplications[i];
  const auto make = [&] {
    const Scattered& how = *m.scattered;
    return prepare_scatter<T>(
        {c.problem(), m.segment, how.plan, how.planes, how.turned, how.in_place, how.relaid}, c.threads);
  };
  count_run(m.filtering ? Ran::filtered_scatter : Ran::scatter);
  scatter<T>(*c.prepared.find<PreparedScatter<T>>(c.threads, i, make), tensors);
}

template <class T>
void forward(const Given& c, const MultiplyTensors<T>& tensors) {
  for (size_t i = 0; i < c.selection.multiplications.size(); ++i)
    c.selection.multiplications[i].scattered ? scatter<T>(c, i, tensors) : fold<T>(c, i, tensors);
}

template <class T>
void gather(const Given& c, const MultiplyTensors<T>& tensors) {
  const Problem& p = c.problem();
  const Multiplication& m = c.selection.multiplications[0];
  if (p.folds_gradients()) {
    for (size_t i = 0; i < c.selection.multiplications.size(); ++i) fold<T>(c, i, tensors);
    return;
  }
  const auto make = [&] {
    return prepare<T>({p,
                       sum_plan(p, 0, 1, m.axis, m.filtering, m.layout.sums_depth),
                       p.filters,
                       p.channels,
                       tensors.out.channel_stride,
                       p.channels,
                       p.orbits,
                       {0},
                       false,
                       false,
                       m.layout.planes,
                       m.layout.staged,
                       m.layout.pixel_lanes,
                       false},
                      c.threads);
  };
  count_run(m.filtering ? Ran::filtered_sum : Ran::sum);
  multiply<T>(*c.prepared.find<Prepared<T>>(c.threads, 0, make), tensors);
}

// Must the input of a weight gradient lie as it was declared?
bool reads_lines(const Multiplication& m) { return m.of_input || m.layout.by_lines; }

template <class T>
void weigh(const Given& c, const at::Tensor& gy, const at::Tensor& x, const at::Tensor& gw,
           const std::function<bool()>& next) {
  const Problem& p = c.problem();
  for (const Multiplication& m : c.selection.multiplications) {
    count_run(m.filtering ? Ran::filtered_weight_sum : Ran::weight_sum);
    wgrad<T>({p, source_view<T>(gy), reads_lines(m) ? source_view<T>(x) : const_view<Element<T>>(x),
              weight_view(static_cast<Element<T>*>(gw.data_ptr()), gw, p.transposed),
              weight_group_stride(gw, p.groups), m.axis, m.filtering, m.layout.planes, m.layout.staged,
              m.layout.sums_depth, m.layout.by_lines, m.segment, m.part, m.of_input, next});
  }
}

// --- depthwise layers ---

template <class T>
void run_depthwise(const Given& c, const at::Tensor& source, const at::Tensor& w,
                   const std::optional<at::Tensor>& bias, const at::Tensor& out) {
  const Problem& p = c.problem();
  count_run(Ran::depthwise);
  depthwise<T>({p, c.selection.op == Op::fprop, const_view<T>(source),
                weight_view(static_cast<const T*>(w.const_data_ptr()), w, p.transposed),
                weight_group_stride(w, p.groups), view<T>(out),
                bias ? static_cast<const T*>(bias->const_data_ptr()) : nullptr});
}

template <class T>
void weigh_depthwise(const Given& c, const at::Tensor& gy, const at::Tensor& x, const at::Tensor& gw) {
  const Problem& p = c.problem();
  count_run(Ran::depthwise);
  depthwise_wgrad<T>({p, const_view<T>(gy), const_view<T>(x),
                      weight_view(static_cast<T*>(gw.data_ptr()), gw, p.transposed),
                      weight_group_stride(gw, p.groups)});
}

// --- direct algorithms ---

template <class T>
void direct_forward(const Given& c, const MultiplyTensors<T>& tensors) {
  const bool folds = c.selection.algorithm == Algorithm::direct_fold;
  count_run(folds ? Ran::direct_fold : Ran::direct);
  if (folds)
    return direct_fold_fprop<T>(c.problem(), tensors, turns_lines(c.problem(), c.selection.vectors.lanes));
  direct_fprop<T>(c.problem(), tensors);
}

template <class T>
void direct_gradient(const Given& c, const MultiplyTensors<T>& tensors) {
  const bool folds = c.selection.algorithm == Algorithm::direct_fold;
  count_run(folds ? Ran::direct_fold : Ran::direct);
  folds ? direct_fold_dgrad<T>(c.problem(), tensors) : direct_dgrad<T>(c.problem(), tensors);
}

template <class T>
void direct_weigh(const Given& c, const at::Tensor& gy, const at::Tensor& x, const at::Tensor& gw,
                  const at::Tensor& gb) {
  const Problem& p = c.problem();
  const auto grad = const_view<Element<T>>(gy), input = const_view<Element<T>>(x);
  const auto out = weight_view(static_cast<Element<T>*>(gw.data_ptr()), gw, p.transposed);
  const int64_t group_stride = weight_group_stride(gw, p.groups);
  count_run(c.selection.sums_bias() ? Ran::direct_fold : Ran::direct);
  if (!c.selection.sums_bias()) return direct_wgrad<T>(p, grad, input, out, group_stride);
  Element<T>* const bias = gb.defined() ? static_cast<Element<T>*>(gb.data_ptr()) : nullptr;
  direct_fold_wgrad<T>(p, grad, input, out, group_stride, bias);
}

// Lines that the matrix kernel reads in place are whole words.
int64_t word_of(const Selection& s) {
  for (const Multiplication& m : s.multiplications)
    if (m.scattered && m.scattered->in_place) return s.vectors.depth;
  return 1;
}

}  // namespace

NativePass::NativePass(std::shared_ptr<const Selection> selection)
    : selection_(std::move(selection)),
      macs_(selection_->problem.macs()),
      word_(word_of(*selection_)),
      order_(selection_->problem) {}

// A source as it was declared: where it lies, or copied once.
at::Tensor NativePass::readable(const at::Tensor& t) const {
  const bool last = selection_->source_last;
  const int64_t inner = last ? 1 : t.dim() - 1;
  bool lies = t.size(inner) == 1 || t.stride(inner) == 1;
  for (int64_t dim = 0; last && dim < t.dim(); ++dim)
    lies = lies && (dim == inner || t.size(dim) == 1 || t.stride(dim) % word_ == 0);
  if (lies) return t;
  count_run(Ran::copy);
  return t.contiguous(memory_format(t.dim(), last));
}

void NativePass::fprop(const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& bias,
                       const at::Tensor& y) const {
  const Given c{*selection_, prepared_, thread_count(macs_)};
  if (selection_->is_direct()) {
    SYMCONV_DISPATCH(y, direct_forward<scalar>(c, multiplied<scalar>(c, x, w, bias, y)));
  } else if (selection_->depthwise) {
    SYMCONV_DISPATCH(y, run_depthwise<scalar>(c, x, w, bias, y));
  } else {
    const at::Tensor source = readable(x), weight = order_.sorted_weight(w);
    SYMCONV_DISPATCH_MATRIX(y, forward<scalar>(c, multiplied<scalar>(c, source, weight, bias, y)));
  }
}

void NativePass::dgrad(const at::Tensor& gy, const at::Tensor& w, const at::Tensor& gx) const {
  const Given c{*selection_, prepared_, thread_count(macs_)};
  if (selection_->is_direct()) {
    const at::Tensor weight = order_.sorted_weight(w);
    SYMCONV_DISPATCH(gx, direct_gradient<scalar>(c, multiplied<scalar>(c, gy, weight, std::nullopt, gx)));
  } else if (selection_->depthwise) {
    SYMCONV_DISPATCH(gx, run_depthwise<scalar>(c, gy, w, std::nullopt, gx));
  } else {
    const at::Tensor source = readable(gy), weight = order_.sorted_weight(w);
    SYMCONV_DISPATCH_MATRIX(gx, gather<scalar>(c, multiplied<scalar>(c, source, weight, std::nullopt, gx)));
  }
}

void NativePass::wgrad(const at::Tensor& gy, const at::Tensor& x, const at::Tensor& gw, const at::Tensor& gb,
                       const std::function<bool()>& next) const {
  const Given c{*selection_, prepared_, thread_count(macs_)};
  if (selection_->is_direct()) {
    SYMCONV_DISPATCH(gw, direct_weigh<scalar>(c, gy, x, gw, gb));
  } else if (selection_->depthwise) {
    SYMCONV_DISPATCH(gw, weigh_depthwise<scalar>(c, gy, x, gw));
  } else {
    const auto& all = selection_->multiplications;
    const at::Tensor input = std::any_of(all.begin(), all.end(), reads_lines) ? readable(x) : x;
    const at::Tensor grad = readable(gy), sums = order_.moves_weights() ? at::empty_like(gw) : gw;
    SYMCONV_DISPATCH_MATRIX(gw, weigh<scalar>(c, grad, input, sums, next));
    if (order_.moves_weights()) gw.copy_(order_.restored_weight(sums));
  }
}

}  // namespace symconv
