// A selection run by the kernels of this library, into a result that is there already. Nothing is decided
// here.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "channel_order.h"
#include "selection/select.h"

namespace symconv {

// What multiplications worked out for earlier calls: by the number of threads, one of each multiplication.
class Preparations {
 public:
  template <class P, class Make>
  std::shared_ptr<const P> find(int64_t threads, size_t multiplication, const Make& make) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const Prepared& one : known_)
      if (one.threads == threads && one.multiplication == multiplication)
        return std::static_pointer_cast<const P>(one.what);
    std::shared_ptr<const P> fresh = make();
    known_.push_back({threads, multiplication, fresh});
    return fresh;
  }

 private:
  struct Prepared {
    int64_t threads;
    size_t multiplication;
    std::shared_ptr<const void> what;
  };
  std::mutex mutex_;
  std::vector<Prepared> known_;
};

class NativePass {
 public:
  // Tensors have the type and the sizes of the selection, whose layouts they are copied to where they lie
  // otherwise. Results are allocated in them.
  explicit NativePass(std::shared_ptr<const Selection> selection);

  void fprop(const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& bias,
             const at::Tensor& y) const;
  void dgrad(const at::Tensor& gy, const at::Tensor& w, const at::Tensor& gx) const;
  // `gb`: undefined, or room for the gradient of the bias, where it comes with that of the weight. `next`, if
  // any, brings the next part of gy and x to where this one was, until there is none: the gradient is the sum
  // over all of them. Panels alone can be summed so.
  void wgrad(const at::Tensor& gy, const at::Tensor& x, const at::Tensor& gw, const at::Tensor& gb,
             const std::function<bool()>& next) const;

 private:
  at::Tensor readable(const at::Tensor& t) const;

  const std::shared_ptr<const Selection> selection_;
  const int64_t macs_, word_;
  const ChannelOrder order_;
  mutable Preparations prepared_;
};

}  // namespace symconv
