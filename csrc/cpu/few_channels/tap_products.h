// Products of upstream gradients with the taps of filters, and the lines that they are added to.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "problem.h"

namespace symconv {

constexpr int kSigns[] = {1, -1};  // with which a row of products is added

inline int64_t tap_index(const Triple& kernel, const Taps& tap) {
  return (tap[0] * kernel[1] + tap[1]) * kernel[2] + tap[2];
}

// Taps that are paired along the same axes: the first one of every pair stands for all of its images.
struct PairedTaps {
  Tie paired;
  std::vector<Taps> first;
  int64_t row = 0;            // of the products: [image][first one][channel]
  int64_t filters = 0;        // where its tiles of filters begin: [tile][parity and orbit][row]
  std::vector<int64_t> read;  // where the gradients of each parity and orbit are

  int64_t rows(int64_t channels) const { return static_cast<int64_t>(first.size()) * channels; }
};

// Rows of products that are added to a line together.
struct AddedRows {
  int64_t line;                       // of the kernel
  int64_t at;                         // in what that reads, of the first position
  int64_t span;                       // positions from the first row to the last one
  std::vector<int64_t> offset, sign;  // the sign as an index of kSigns
};

// Some orbits of a segment.
struct FoldedOrbits {
  const Segment* segment;
  int64_t first, count;
  std::vector<PairedTaps> taps;
  std::vector<AddedRows> added;
};

// By the axes along which they are paired. Of filters that are their own images those that are kept,
// unpaired.
inline std::vector<PairedTaps> paired_taps(const Problem& p, const Segment& s) {
  const Tie& tie = s.tie;
  std::vector<PairedTaps> found;
  if (s.own_image) {
    PairedTaps& kept = found.emplace_back();
    for_taps(s.kept(p.kernel), [&](const Taps& tap) { kept.first.push_back(tap); });
    return found;
  }
  for_taps(p.kernel, [&](const Taps& tap) {
    const Tie paired = tie.paired(p.kernel, tap);
    for (int i = 0; i < paired.axes(); ++i)
      if (tap[paired.axis(i)] > mirrored(p.kernel[paired.axis(i)], tap[paired.axis(i)])) return;
    auto same = [&](const PairedTaps& one) {
      bool all = one.paired.axes() == paired.axes();
      for (int i = 0; all && i < paired.axes(); ++i) all = one.paired.has(paired.axis(i));
      return all;
    };
    auto at = std::find_if(found.begin(), found.end(), same);
    if (at == found.end()) at = found.insert(found.end(), {paired, {}, 0, 0, {}});
    at->first.push_back(tap);
  });
  return found;
}

// Every image of a tap that is kept has its row of products. A tap that is its own negative has none: -1.
inline void share_rows(const Problem& p, const Segment& s, std::vector<int64_t>& row_of,
                       std::vector<int64_t>& sign_of) {
  for_taps(p.kernel, [&](const Taps& tap) {
    Taps kept = tap;
    for (int i = 0; i < s.tie.axes(); ++i) {
      const int axis = s.tie.axis(i);
      kept[axis] = std::min(tap[axis], mirrored(p.kernel[axis], tap[axis]));
    }
    const int sign = s.sign(s.inputs[0], p.kernel, 0, tap);
    const int64_t at = tap_index(p.kernel, tap);
    sign_of[at] = sign < 0;
    row_of[at] = sign ? row_of[tap_index(p.kernel, kept)] : -1;
  });
}

}  // namespace symconv
