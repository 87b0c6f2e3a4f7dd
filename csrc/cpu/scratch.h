// Working memory and threads: the only place that asks torch for either.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <cstdint>

namespace symconv {

// Uninitialised, released with the object; seen by torch's memory profiler like any tensor.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t elements)
      : tensor_(at::empty({elements * static_cast<int64_t>(sizeof(T))}, at::TensorOptions().dtype(at::kByte))) {}
  T* data() { return static_cast<T*>(tensor_.data_ptr()); }

 private:
  at::Tensor tensor_;
};

inline int64_t thread_count() { return at::in_parallel_region() ? 1 : at::get_num_threads(); }

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
