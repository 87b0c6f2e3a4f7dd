// One pass of one problem by one algorithm, from tensors to tensors: everything else is bound once.
#pragma once

#include <ATen/ATen.h>

#include <array>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "geometry.h"
#include "multiply.h"
#include "scratch.h"

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

struct Layout {
  bool planes, staged, pixel_lanes;
};

// What multiplications worked out for earlier calls, by all that it depends on beside the problem.
class Preparations {
 public:
  // A `P` for segment number `segment`; `make` gives it, for a number of threads, if this is the first time.
  template <class P, class Make>
  std::shared_ptr<const P> find(const Problem& problem, int64_t segment, const Layout& layout,
                                int64_t out_channel_stride, const Make& make) {
    static const char type = 0;
    const int64_t threads = thread_count(problem.macs());
    const Key key{&type,  segment, layout.planes, layout.staged, layout.pixel_lanes, out_channel_stride,
                  threads};
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [known, prepared] : known_)
      if (known == key) return std::static_pointer_cast<const P>(prepared);
    std::shared_ptr<const P> fresh = make(threads);
    known_.emplace_back(key, fresh);
    return fresh;
  }

 private:
  using Key = std::tuple<const void*, int64_t, bool, bool, bool, int64_t, int64_t>;
  std::mutex mutex_;
  std::vector<std::pair<Key, std::shared_ptr<const void>>> known_;
};

// Neither takes the GIL nor needs it. Tensors must have the shapes and one of the four types.
class Pass {
 public:
  Pass(Geometry geometry, Shapes shapes, Torch torch, bool channels_last, bool depthwise,
       std::string algorithm);

  at::Tensor fprop(const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& bias) const;
  at::Tensor dgrad(const at::Tensor& gy, const at::Tensor& w) const;
  at::Tensor wgrad(const at::Tensor& gy, const at::Tensor& x) const;

 private:
  at::Tensor expanded(const at::Tensor& w) const;
  at::Tensor asked(const at::Tensor& t) const;
  void reduce_into(const at::Tensor& filters, const at::Tensor& gw) const;
  at::Tensor convolve(const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& bias) const;
  at::Tensor convolve_back(const at::Tensor& gy, const at::Tensor& w) const;
  at::Tensor filter_gradient(const at::Tensor& gy, const at::Tensor& x) const;
  std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& gy, const at::Tensor& x,
                                                          const at::Tensor& filters,
                                                          std::array<bool, 3> wanted) const;
  at::Tensor as_result(const at::Tensor& t) const;

  Geometry geometry_;
  Shapes shapes_;
  Torch torch_;
  bool channels_last_, depthwise_;
  std::string algorithm_;
  Problem problem_;
  mutable Preparations preparations_;
};

}  // namespace symconv
