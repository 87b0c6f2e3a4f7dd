// One pass as it was selected, from tensors to tensors: everything else is bound once.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <tuple>
#include <utility>

#include "channel_order.h"
#include "export.h"
#include "layout_convert.h"
#include "native.h"
#include "problem.h"
#include "selection/select.h"

namespace symconv {

// What torch's convolution takes where it differs, the shape of the ordinary filters, strides of the result,
// and the type in which torch is asked.
struct Torch {
  Ints dilation, output_padding, filters, strides;
  at::ScalarType type;
};

// The sum over all but the channels, which is the gradient of a bias.
at::Tensor channel_sums(const at::Tensor& t);

// Neither takes the GIL nor needs it. Tensors must have the shapes and the type of the selection.
class SYMCONV_API Pass {
 public:
  Pass(std::shared_ptr<const Selection> selection, Torch torch);

  at::Tensor fprop(const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& bias) const;
  at::Tensor dgrad(const at::Tensor& gy, const at::Tensor& w) const;
  at::Tensor wgrad(const at::Tensor& gy, const at::Tensor& x) const { return wgrad(gy, x, false).first; }
  // The gradients of weight and bias, in one pass over the upstream gradient where there is a way.
  std::pair<at::Tensor, at::Tensor> wgrad_and_bias(const at::Tensor& gy, const at::Tensor& x) const {
    return wgrad(gy, x, true);
  }

 private:
  const Description& described() const { return selection_->description; }
  void check(const at::Tensor& t, const char* name, at::IntArrayRef sizes) const;
  void check_op(Op op) const;
  at::Tensor expanded(const at::Tensor& w) const;
  at::Tensor asked(const at::Tensor& t) const;
  void reduce_into(const at::Tensor& filters, const at::Tensor& gw) const;
  at::Tensor convolve(const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& bias) const;
  at::Tensor convolve_back(const at::Tensor& gy, const at::Tensor& w) const;
  std::pair<at::Tensor, at::Tensor> wgrad(const at::Tensor& gy, const at::Tensor& x, bool bias) const;
  std::pair<at::Tensor, at::Tensor> filter_gradient(const at::Tensor& gy, const at::Tensor& x,
                                                    bool bias) const;
  std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& gy, const at::Tensor& x,
                                                          const at::Tensor& filters,
                                                          std::array<bool, 3> wanted) const;
  at::Tensor as_result(const at::Tensor& t) const;
  // A result from its source, copied to channels_last and back or where they lie.
  at::Tensor made(const at::Tensor& source, const Ints& shape,
                  const std::function<void(const at::Tensor& source, const at::Tensor& out)>& run) const;

  const std::shared_ptr<const Selection> selection_;
  const Torch torch_;
  const NativePass native_;
  const Relay relay_;
  const ChannelOrder order_;
};

}  // namespace symconv
