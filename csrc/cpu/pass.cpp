// Problems from their geometry, and passes from tensors to tensors.
#include "pass.h"

#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>

#include "expand.h"
#include "views.h"

namespace symconv {
namespace {

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

void check(const at::Tensor& t, const char* name, at::IntArrayRef sizes, at::ScalarType type) {
  TORCH_CHECK(t.device().is_cpu(), name, " must be a CPU tensor, got one on ", t.device());
  TORCH_CHECK(t.scalar_type() == type, name, " must be ", type, ", got ", t.scalar_type());
  TORCH_CHECK(t.sizes() == sizes, name, " must have shape ", sizes, ", got ", t.sizes());
}

at::Tensor allocate(const Ints& shape, const at::Tensor& like, bool channels_last) {
  return at::empty(shape, like.options().requires_grad(false), memory_format(shape.size(), channels_last));
}

at::Tensor channel_sums(const at::Tensor& t) {
  Ints all_but_channels{0};
  for (int64_t d = 2; d < t.dim(); ++d) all_but_channels.push_back(d);
  return t.sum(all_but_channels);
}

}  // namespace

Pass::Pass(Geometry geometry, Shapes shapes, Torch torch, bool channels_last, bool depthwise,
           std::string algorithm, Parts parts)
    : geometry_(std::move(geometry)),
      shapes_(std::move(shapes)),
      torch_(std::move(torch)),
      channels_last_(channels_last),
      depthwise_(depthwise),
      algorithm_(std::move(algorithm)),
      relays_(parts.images > 0),
      problem_(make_problem(geometry_, shapes_.input, shapes_.weight, shapes_.output)),
      relay_(parts, shapes_.input.size(), problem_) {
  TORCH_CHECK(!depthwise_ || problem_.channels == 1,
              "a depthwise layer has one input channel in each group, got ", problem_.channels);
}

at::Tensor Pass::fprop(const at::Tensor& x, const at::Tensor& w,
                       const std::optional<at::Tensor>& bias) const {
  check(x, "input", shapes_.input, w.scalar_type()), check(w, "weight", shapes_.weight, x.scalar_type());
  if (bias) check(*bias, "bias", shapes_.output[1], x.scalar_type());
  if (algorithm_ == "expand") return convolve(x, w, bias);
  std::optional<at::Tensor> b;
  if (bias) b = bias->contiguous();
  return made(x, shapes_.output, [&](const at::Tensor& source, const at::Tensor& y) {
    native_fprop(native(), source, w, b, y);
  });
}

at::Tensor Pass::dgrad(const at::Tensor& gy, const at::Tensor& w) const {
  check(gy, "grad_output", shapes_.output, w.scalar_type());
  check(w, "weight", shapes_.weight, gy.scalar_type());
  if (algorithm_ == "expand") return convolve_back(gy, w);
  return made(gy, shapes_.input,
              [&](const at::Tensor& source, const at::Tensor& gx) { native_dgrad(native(), source, w, gx); });
}

std::pair<at::Tensor, at::Tensor> Pass::wgrad(const at::Tensor& gy, const at::Tensor& x, bool bias) const {
  check(gy, "grad_output", shapes_.output, x.scalar_type());
  check(x, "input", shapes_.input, gy.scalar_type());
  const at::Tensor gw = allocate(shapes_.weight, x, channels_last_);
  if (algorithm_ != "expand") {
    const bool here = bias && sums_bias(algorithm_) && !depthwise_;
    const at::Tensor gb = here ? at::empty({shapes_.output[1]}, gw.options()) : at::Tensor();
    const auto run = [&](const at::Tensor& grad, const at::Tensor& input, const std::function<bool()>& next) {
      native_wgrad(native(), grad, input, gw, gb, next);
    };
    relays_ ? relay_.sum(gy, x, run) : run(gy, x, nullptr);
    return {gw, bias && !here ? channel_sums(gy) : gb};
  }
  const auto [filters, gb] = filter_gradient(gy, x, bias);
  if (filters.scalar_type() == gw.scalar_type()) {
    reduce_into(filters, gw);
  } else {  // rounded once, after the sum
    const at::Tensor wide = allocate(shapes_.weight, filters, channels_last_);
    reduce_into(filters, wide);
    gw.copy_(wide);
  }
  return {gw, bias ? gb.to(gw.scalar_type()) : gb};
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

std::pair<at::Tensor, at::Tensor> Pass::filter_gradient(const at::Tensor& gy, const at::Tensor& x,
                                                        bool bias) const {
  const at::Tensor input = asked(x);
  const at::Tensor like = allocate(torch_.filters, input, channels_last_ && torch_.type != at::kDouble);
  auto grads = backward(asked(gy), input, like, {false, true, bias});
  return {std::get<1>(grads), std::get<2>(grads)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> Pass::backward(const at::Tensor& gy, const at::Tensor& x,
                                                              const at::Tensor& filters,
                                                              std::array<bool, 3> wanted) const {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const Geometry& g = geometry_;
  return at::convolution_backward(gy, x, filters, at::IntArrayRef(shapes_.output[1]), g.stride, g.padding,
                                  torch_.dilation, g.transposed, torch_.output_padding, g.groups, wanted);
}

at::Tensor Pass::made(const at::Tensor& source, const Ints& shape,
                      const std::function<void(const at::Tensor& source, const at::Tensor& out)>& run) const {
  const at::Tensor out = allocate(shape, source, channels_last_);
  relays_ ? relay_(source, out, run) : run(source, out);
  return out;
}

at::Tensor Pass::as_result(const at::Tensor& t) const {
  const at::Tensor same = t.contiguous(memory_format(t.dim(), channels_last_));
  // Dimensions of size 1 may carry any stride; torch.compile compares them all the same.
  return same.strides() == at::IntArrayRef(torch_.strides) ? same
                                                           : same.as_strided(same.sizes(), torch_.strides);
}

}  // namespace symconv
