// A pass by the kernels of this library, into a result that is there already: which kernels, and what each is
// given.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
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

// Algorithms are "fold", "f2", "f4" and "direct", forward also "scatter", "scatter_f2", "scatter_f4",
// "direct_fold" and "direct_lines", for the weight gradient also "direct_fold"; depthwise layers have kernels
// of their own for all of them.
struct NativePass {
  const Problem& problem;
  const std::string& algorithm;
  bool depthwise;
  Preparations& prepared;
};

void native_fprop(const NativePass& pass, const at::Tensor& x, const at::Tensor& w,
                  const std::optional<at::Tensor>& bias, const at::Tensor& y);
void native_dgrad(const NativePass& pass, const at::Tensor& gy, const at::Tensor& w, const at::Tensor& gx);
// `gb`: undefined, or room for the gradient of the bias, where it comes with that of the weight. `next`, if
// any, brings the next part of gy and x to where this one was, until there is none: the gradient is the sum
// over all of them. Panels alone can be summed so.
bool sums_bias(const std::string& algorithm);
void native_wgrad(const NativePass& pass, const at::Tensor& gy, const at::Tensor& x, const at::Tensor& gw,
                  const at::Tensor& gb, const std::function<bool()>& next);

}  // namespace symconv
