// One pass of one problem by one algorithm, from tensors to tensors: everything else is bound once.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <functional>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "geometry.h"
#include "native.h"
#include "relay.h"

namespace symconv {

using Ints = std::vector<int64_t>;

struct Geometry {
  Ints ties, stride, padding, dilation;
  bool transposed;
  int64_t groups;
};

struct Shapes {
  Ints input, weight, output;
};

// What torch's convolution takes where it differs, the shape of the ordinary filters, strides of the result,
// and the type in which torch is asked.
struct Torch {
  Ints dilation, output_padding, filters, strides;
  at::ScalarType type;
};

// Neither takes the GIL nor needs it. Tensors must have the shapes and one of the four types.
class Pass {
 public:
  Pass(Geometry geometry, Shapes shapes, Torch torch, bool channels_last, bool depthwise,
       std::string algorithm, Parts parts);

  at::Tensor fprop(const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& bias) const;
  at::Tensor dgrad(const at::Tensor& gy, const at::Tensor& w) const;
  at::Tensor wgrad(const at::Tensor& gy, const at::Tensor& x) const { return wgrad(gy, x, false).first; }
  // The gradients of weight and bias, in one pass over the upstream gradient where there is a way.
  std::pair<at::Tensor, at::Tensor> wgrad_and_bias(const at::Tensor& gy, const at::Tensor& x) const {
    return wgrad(gy, x, true);
  }

 private:
  NativePass native() const { return {problem_, algorithm_, depthwise_, preparations_}; }
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

  Geometry geometry_;
  Shapes shapes_;
  Torch torch_;
  bool channels_last_, depthwise_;
  std::string algorithm_;
  bool relays_;
  Problem problem_;
  Relay relay_;
  mutable Preparations preparations_;
};

}  // namespace symconv
