// Results that are stored past the caches: those would be full of them, and nothing is read for a line that
// is overwritten.
#pragma once

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include <cstdint>

#include "blocking.h"
#include "packed/panel.h"

namespace symconv {

constexpr int64_t kStreamedBytes = 8 << 20;  // of a result

// Are so many elements whole cache lines?
template <class E>
bool are_whole_lines(int64_t elements) {
  return elements % (kCacheLine / static_cast<int64_t>(sizeof(E))) == 0;
}

// Is a result so large, and does each of its runs begin with a cache line? These are the channels of a
// position, or the positions of a channel's line (`planes`).
template <class E>
bool may_stream(const Problem& p, const View<E>& out, bool planes) {
  const auto whole = are_whole_lines<E>;
  const int64_t size = static_cast<int64_t>(sizeof(E));
  return reinterpret_cast<uintptr_t>(out.data) % kCacheLine == 0 && whole(out.batch_stride) &&
         whole(out.stride[0]) && whole(out.stride[1]) && whole(planes ? out.channel_stride : out.stride[2]) &&
         whole(planes ? p.out[2] : p.filters) &&
         p.batch * p.groups * p.filters * p.out[0] * p.out[1] * p.out[2] * size >= kStreamedBytes;
}

// Has other threads see results that were streamed before what this one stores next. Fences of C++ order
// ordinary stores alone.
inline void publish_streamed() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace symconv
