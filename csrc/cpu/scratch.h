// Working memory and threads: the only place that asks torch for either.
#pragma once

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace symconv {

// Buffers that the calling thread has used and may use again. Memory that goes back to the system
// after every call comes back page by page: at 512 channels on a 7 x 7 map that took as long as the
// convolution. At most kKept bytes are kept.
class Workspace {
 public:
  static constexpr int64_t kKept = 32 << 20, kSmall = 64 << 10;

  static Workspace& of_thread() {
    static thread_local Workspace workspace;
    return workspace;
  }

  // The smallest that will do, but none of many times the size: a larger request that follows would find
  // nothing. Where there is none, the new one takes the place of the largest that was too small, so that
  // layers of a network share buffers instead of keeping a set each.
  at::Tensor take(int64_t bytes) {
    auto best = free_.end(), small = free_.end();
    for (auto it = free_.begin(); it != free_.end(); ++it) {
      if (it->numel() < bytes) {
        if (small == free_.end() || it->numel() > small->numel()) small = it;
      } else if (it->numel() <= 4 * bytes + kSmall && (best == free_.end() || it->numel() < best->numel())) {
        best = it;
      }
    }
    if (best == free_.end()) {
      if (small != free_.end()) free_.erase(small);
      return at::empty({bytes}, at::TensorOptions().dtype(at::kByte));
    }
    at::Tensor found = std::move(*best);
    free_.erase(best);
    return found;
  }

  void give_back(at::Tensor buffer) {
    // In deterministic mode fresh memory is filled, so that a read before a write shows in tests.
    if (at::globalContext().deterministicAlgorithms()) return;
    free_.push_back(std::move(buffer));
    while (bytes() > kKept) free_.erase(free_.begin());
  }

  int64_t bytes() const {
    int64_t sum = 0;
    for (const at::Tensor& buffer : free_) sum += buffer.numel();
    return sum;
  }

  void clear() { free_.clear(); }

 private:
  std::vector<at::Tensor> free_;  // oldest first
};

// Uninitialised, for the time of the object.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t elements)
      : buffer_(Workspace::of_thread().take(elements * static_cast<int64_t>(sizeof(T)))) {}
  ~Scratch() { Workspace::of_thread().give_back(std::move(buffer_)); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* data() { return static_cast<T*>(buffer_.data_ptr()); }

 private:
  at::Tensor buffer_;
};

inline int64_t thread_count() { return at::in_parallel_region() ? 1 : at::get_num_threads(); }

// Waking other threads takes as long as some 2^16 multiply-adds.
inline int64_t thread_count(int64_t macs) { return macs < (1 << 16) ? 1 : thread_count(); }

// f(begin, end, slice): at most `slices` calls, each with its own slice number.
template <class F>
void parallel_slices(int64_t count, int64_t slices, const F& f) {
  if (count <= 0) return;
  slices = std::min(slices, count);
  at::parallel_for(0, slices, 1, [&](int64_t s0, int64_t s1) {
    for (int64_t s = s0; s < s1; ++s) f(count * s / slices, count * (s + 1) / slices, s);
  });
}

}  // namespace symconv
