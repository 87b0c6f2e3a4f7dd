// One convolution with tied filters: its sizes, and its orbits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "orbits.h"

namespace symconv {

// The filter of an output channel whose orbit lies across groups: a row of the weight, mirrored along some
// axes, a member of the tie of all of them.
struct MirroredRow {
  int64_t row;
  int mirrors;
};
constexpr Tie kAllAxes{7};

struct Problem {
  int64_t batch, groups;
  int64_t channels;  // input channels of one group
  int64_t orbits;    // U of one group
  int64_t filters;   // output channels of one group
  Triple in, out, kernel, stride, padding, dilation;
  bool transposed;
  std::vector<Segment> segments;
  // By output channel, where orbits lie across groups of one channel each. Groups then have filters of their
  // own, without a tie, which are no rows of the weight.
  std::vector<MirroredRow> across;
  // The input channel of a group at each place, where blocks of them are no runs: then all channels of blocks
  // are places. Else empty.
  std::vector<int64_t> order;
  const char* refused = nullptr;  // why no kernel runs it, as a clause; then there are no segments

  // Are gradients those of each segment and each part of its input channels by themselves, by folds?
  bool folds_gradients() const {
    return std::any_of(segments.begin(), segments.end(),
                       [](const Segment& segment) { return segment.folds_gradients(); });
  }

  // Multiply-adds of one pass, with the reduced weight.
  int64_t macs() const {
    const Triple& at = transposed ? in : out;
    int64_t n = batch * groups * channels * orbits;
    for (int axis = 0; axis < kAxes; ++axis) n *= at[axis] * kernel[axis];
    return n;
  }
};

inline int64_t kernel_taps(const Problem& p) { return tap_count(p.kernel); }

// Extents of the taps that a row of the weight has: all segments keep as many.
inline Triple kept_kernel(const Problem& p) {
  for (const Segment& s : p.segments)
    if (s.rows > 0) return s.kept(p.kernel);
  return p.kernel;
}

// Is a panel that is shifted along an axis cut into phases, each of every so many lines as taps are apart?
inline bool is_interleaved(const Problem& p, int axis) { return p.stride[axis] == 1 && p.dilation[axis] > 1; }

// Can three taps on that axis, -1 for none, be filtered with fewer products?
inline bool can_filter(const Problem& p, int axis) {
  return axis >= 0 && p.kernel[axis] == 3 && p.stride[axis] == 1 && p.dilation[axis] == 1;
}

}  // namespace symconv
