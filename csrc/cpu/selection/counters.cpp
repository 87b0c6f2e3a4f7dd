// Counters of a thread.
#include "selection/counters.h"

namespace symconv {

Counters& counters() {
  static thread_local Counters counts{};
  return counts;
}

const char* name(Ran ran) {
  static constexpr const char* kNames[] = {"fold",   "fold filtered", "scatter",    "scatter filtered",
                                           "sum",    "sum filtered",  "weight sum", "weight sum filtered",
                                           "direct", "direct_fold",   "depthwise",  "expand",
                                           "part",   "copy"};
  static_assert(sizeof(kNames) / sizeof(*kNames) == static_cast<size_t>(Ran::kinds));
  return kNames[static_cast<size_t>(ran)];
}

}  // namespace symconv
