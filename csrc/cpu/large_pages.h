// Memory that is new every time: in how large pieces the system gives it.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>

#include "blocking.h"

namespace symconv {

// From here on glibc's malloc asks the system for every block, and gives it back.
constexpr int64_t kFreshBytes = 32 << 20;

// Has a block that is about to be written come in pages of 2 MiB, where the system gives those to who asks.
// The first write to each page interrupts the program, 512 times as often with pages of 4 KiB, and every time
// for longer than these take to clear. Pages that are there already stay as they are.
inline void ask_for_large_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr int64_t page = 2 << 20;
  if (bytes < kFreshBytes) return;
  const auto at = reinterpret_cast<intptr_t>(data);
  const int64_t begin = round_up(at, page), end = (at + bytes) / page * page;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // no matter if it is refused
#endif
}

}  // namespace symconv
