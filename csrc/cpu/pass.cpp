// Passes from tensors to tensors: the native kernels, or torch's convolution on filters that are expanded
// natively.
#include "pass.h"

#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "expand.h"
#include "large_pages.h"
#include "selection/counters.h"
#include "views.h"

namespace symconv {
namespace {

at::Tensor allocate(const Ints& shape, const at::Tensor& like, bool channels_last) {
  const at::Tensor t =
      at::empty(shape, like.options().requires_grad(false), memory_format(shape.size(), channels_last));
  ask_for_large_pages(t.data_ptr(), static_cast<int64_t>(t.nbytes()));
  return t;
}

}  // namespace

at::Tensor channel_sums(const at::Tensor& t) {
  Ints all_but_channels{0};
  for (int64_t d = 2; d < t.dim(); ++d) all_but_channels.push_back(d);
  return t.sum(all_but_channels);
}

Pass::Pass(std::shared_ptr<const Selection> selection, Torch torch)
    : selection_(std::move(selection)),
      torch_(std::move(torch)),
      native_(selection_),
      relay_(selection_->parts),
      order_(selection_->problem) {
  TORCH_CHECK(selection_->reason.empty(), "algorithm ", name(selection_->algorithm),
              " cannot run: ", selection_->reason);
  TORCH_CHECK(selection_->isa == running_isa(), "selected for other instructions than ", instruction_set());
}

void Pass::check(const at::Tensor& t, const char* name, at::IntArrayRef sizes) const {
  const at::ScalarType type = described().type;
  TORCH_CHECK(t.device().is_cpu(), name, " must be a CPU tensor, got one on ", t.device());
  TORCH_CHECK(t.scalar_type() == type, name, " must be ", type, ", got ", t.scalar_type());
  TORCH_CHECK(t.sizes() == sizes, name, " must have shape ", sizes, ", got ", t.sizes());
}

void Pass::check_op(Op op) const {
  TORCH_CHECK(selection_->op == op, name(op), " was called of a pass that is ", name(selection_->op));
}

at::Tensor Pass::fprop(const at::Tensor& x, const at::Tensor& w,
                       const std::optional<at::Tensor>& bias) const {
  const Description& d = described();
  check_op(Op::fprop);
  check(x, "input", d.input), check(w, "weight", d.weight);
  if (bias) check(*bias, "bias", d.output[1]);
  if (selection_->algorithm == Algorithm::expand) return convolve(x, w, bias);
  std::optional<at::Tensor> b;
  if (bias) b = bias->contiguous();
  return made(x, d.output,
              [&](const at::Tensor& source, const at::Tensor& y) { native_.fprop(source, w, b, y); });
}

at::Tensor Pass::dgrad(const at::Tensor& gy, const at::Tensor& w) const {
  const Description& d = described();
  check_op(Op::dgrad);
  check(gy, "grad_output", d.output), check(w, "weight", d.weight);
  if (selection_->algorithm == Algorithm::expand) return convolve_back(gy, w);
  return made(gy, d.input,
              [&](const at::Tensor& source, const at::Tensor& gx) { native_.dgrad(source, w, gx); });
}

std::pair<at::Tensor, at::Tensor> Pass::wgrad(const at::Tensor& gy, const at::Tensor& x, bool bias) const {
  const Description& d = described();
  check_op(Op::wgrad);
  check(gy, "grad_output", d.output), check(x, "input", d.input);
  const at::Tensor gw = allocate(d.weight, x, d.result_last);
  if (selection_->algorithm != Algorithm::expand) {
    const bool here = bias && selection_->sums_bias();
    const at::Tensor gb = here ? at::empty({d.output[1]}, gw.options()) : at::Tensor();
    const auto run = [&](const at::Tensor& grad, const at::Tensor& input, const std::function<bool()>& next) {
      native_.wgrad(grad, input, gw, gb, next);
    };
    selection_->parts.images ? relay_.sum(gy, x, run) : run(gy, x, nullptr);
    return {gw, bias && !here ? channel_sums(gy) : gb};
  }
  const auto [filters, gb] = filter_gradient(gy, x, bias);
  if (filters.scalar_type() == gw.scalar_type()) {
    reduce_into(filters, gw);
  } else {  // rounded once, after the sum
    const at::Tensor wide = allocate(d.weight, filters, d.result_last);
    reduce_into(filters, wide);
    gw.copy_(wide);
  }
  return {gw, bias ? gb.to(gw.scalar_type()) : gb};
}

// --- the ordinary filters, and torch's convolution: autocast has had its say where the layer was entered ---

at::Tensor Pass::expanded(const at::Tensor& w) const {
  const at::Tensor filters = allocate(torch_.filters, w, described().result_last);
  const bool transposed = described().transposed;
  const int64_t groups = described().groups;
  const at::Tensor own = order_.sorted_weight(w);
  SYMCONV_DISPATCH(
      own, expand<scalar>(selection_->problem,
                          weight_view(static_cast<const scalar*>(own.const_data_ptr()), own, transposed),
                          weight_group_stride(own, groups),
                          weight_view(static_cast<scalar*>(filters.data_ptr()), filters, transposed),
                          weight_group_stride(filters, groups)));
  return order_.restored_filters(filters);
}

void Pass::reduce_into(const at::Tensor& filters, const at::Tensor& gw) const {
  const bool transposed = described().transposed;
  const int64_t groups = described().groups;
  const at::Tensor from = order_.sorted_filters(filters);
  const at::Tensor to = order_.moves_weights() ? at::empty_like(gw) : gw;
  SYMCONV_DISPATCH(
      to, reduce<scalar>(selection_->problem,
                         weight_view(static_cast<const scalar*>(from.const_data_ptr()), from, transposed),
                         weight_group_stride(from, groups),
                         weight_view(static_cast<scalar*>(to.data_ptr()), to, transposed),
                         weight_group_stride(to, groups)));
  if (order_.moves_weights()) gw.copy_(order_.restored_weight(to));
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
  const Description& g = described();
  count_run(Ran::expand);
  std::optional<at::Tensor> b;
  if (bias) b = asked(*bias);
  const at::Tensor y = at::convolution(asked(x), asked(expanded(w)), b, g.stride, g.padding, torch_.dilation,
                                       g.transposed, torch_.output_padding, g.groups);
  return as_result(y.to(x.scalar_type()));
}

at::Tensor Pass::convolve_back(const at::Tensor& gy, const at::Tensor& w) const {
  const at::Tensor filters = asked(expanded(w));
  // Only shape and layout of the input are read for its own gradient.
  const at::Tensor like =
      allocate(described().input, filters, described().result_last && torch_.type != at::kDouble);
  const at::Tensor gx = std::get<0>(backward(asked(gy), like, filters, {true, false, false}));
  return as_result(gx.to(gy.scalar_type()));
}

std::pair<at::Tensor, at::Tensor> Pass::filter_gradient(const at::Tensor& gy, const at::Tensor& x,
                                                        bool bias) const {
  const at::Tensor input = asked(x);
  const at::Tensor like =
      allocate(torch_.filters, input, described().result_last && torch_.type != at::kDouble);
  auto grads = backward(asked(gy), input, like, {false, true, bias});
  return {std::get<1>(grads), std::get<2>(grads)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> Pass::backward(const at::Tensor& gy, const at::Tensor& x,
                                                              const at::Tensor& filters,
                                                              std::array<bool, 3> wanted) const {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const Description& g = described();
  count_run(Ran::expand);
  return at::convolution_backward(gy, x, filters, at::IntArrayRef(g.output[1]), g.stride, g.padding,
                                  torch_.dilation, g.transposed, torch_.output_padding, g.groups, wanted);
}

at::Tensor Pass::made(const at::Tensor& source, const Ints& shape,
                      const std::function<void(const at::Tensor& source, const at::Tensor& out)>& run) const {
  const at::Tensor out = allocate(shape, source, described().result_last);
  selection_->parts.images ? relay_(source, out, run) : run(source, out);
  return out;
}

at::Tensor Pass::as_result(const at::Tensor& t) const {
  const at::Tensor same = t.contiguous(memory_format(t.dim(), described().result_last));
  // Dimensions of size 1 may carry any stride; torch.compile compares them all the same.
  return same.strides() == at::IntArrayRef(torch_.strides) ? same
                                                           : same.as_strided(same.sizes(), torch_.strides);
}

}  // namespace symconv
