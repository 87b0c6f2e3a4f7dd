// Working memory and threads: the only place that asks torch for either.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

namespace c10 {
struct TensorImpl;
}

namespace symconv {

// A buffer of torch's, taken out of the caches of the thread. Torch's headers stay out of this one: they
// take longer to compile than the kernels that need the memory.
struct Buffer {
  void* data;
  c10::TensorImpl* owner;
};
Buffer take_buffer(int64_t bytes);
void give_back(Buffer buffer);

// Uninitialised, for the time of the object.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t elements) : buffer_(take_buffer(elements * static_cast<int64_t>(sizeof(T)))) {}
  ~Scratch() { give_back(buffer_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* data() { return static_cast<T*>(buffer_.data); }

 private:
  const Buffer buffer_;
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
