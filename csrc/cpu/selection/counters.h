// What the calling thread has run, so that tests see whether what was selected is what ran.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "export.h"

namespace symconv {

// Multiplications by their algorithm, and passes of those that have none.
enum class Ran {
  fold,
  filtered_fold,
  scatter,
  filtered_scatter,
  sum,
  filtered_sum,
  weight_sum,
  filtered_weight_sum,
  direct,
  direct_fold,
  depthwise,
  expand,
  part,  // of a pass between copies
  copy,  // a source that did not lie as it was declared
  kinds
};

using Counters = std::array<int64_t, static_cast<size_t>(Ran::kinds)>;

SYMCONV_API Counters& counters();  // of the calling thread
SYMCONV_API const char* name(Ran ran);

inline void count_run(Ran ran) { ++counters()[static_cast<size_t>(ran)]; }

}  // namespace symconv
