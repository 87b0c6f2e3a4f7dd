// Products of upstream gradients with the taps of filters, and the lines that they are added to.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "problem.h"

namespace symconv {

constexpr int kSigns[] = {1, -1};  // with which a row of products is added

// By channel within a tap.
inline int64_t place_index(const Problem& p, const Place& place) {
  const Taps& tap = place.tap;
  return ((tap[0] * p.kernel[1] + tap[1]) * p.kernel[2] + tap[2]) * p.channels + place.channel;
}

// Taps of channels that are paired along the same axes: the first one of every pair, in a first block where
// mirrors move channels, stands for all of its images.
struct PairedTaps {
  struct First {
    const Blocks* part;
    int64_t channel;  // of its block
    Taps tap;
  };

  Tie paired;
  std::vector<First> first;
  int64_t row = 0;            // of the products: [image][first one]
  int64_t filters = 0;        // where its tiles of filters begin: [tile][parity and orbit][row]
  std::vector<int64_t> read;  // where the gradients of each parity and orbit are

  int64_t rows() const { return static_cast<int64_t>(first.size()); }
  Place image(const Problem& p, const Segment& s, const First& of, int image) const {
    Place place = s.image(*of.part, p.kernel, 0, of.tap, s.tie.member_of(paired, image));
    place.channel += of.channel;
    return place;
  }
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

// Is a tap of a first block the first one of its pairs?
inline bool is_first(const Problem& p, const Tie& paired, const Tie& blocks, const Taps& tap) {
  for (int i = 0; i < paired.axes(); ++i) {
    const int axis = paired.axis(i);
    if (!blocks.has(axis) && tap[axis] > mirrored(p.kernel[axis], tap[axis])) return false;
  }
  return true;
}

// By the axes along which they are paired. Of filters that are their own images those that are kept,
// unpaired.
inline std::vector<PairedTaps> paired_taps(const Problem& p, const Segment& s) {
  std::vector<PairedTaps> found;
  for_taps(s.kept(p.kernel), [&](const Taps& tap) {
    for (const Blocks& part : s.inputs) {
      const Tie paired = s.own_image ? Tie() : s.tie.paired(p.kernel, tap, part.tie);
      if (!is_first(p, paired, part.tie, tap)) continue;
      const auto same = [&](const PairedTaps& one) { return one.paired == paired; };
      auto at = std::find_if(found.begin(), found.end(), same);
      if (at == found.end()) at = found.insert(found.end(), {paired, {}, 0, 0, {}});
      for (int64_t c = 0; c < part.size; ++c) at->first.push_back({&part, c, tap});
    }
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
    for (int64_t c = 0; c < p.channels; ++c) {
      const int64_t at = place_index(p, {c, tap});
      sign_of[at] = sign < 0;
      row_of[at] = sign ? row_of[place_index(p, {c, kept})] : -1;
    }
  });
}

}  // namespace symconv
