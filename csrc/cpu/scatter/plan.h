// The forward pass as the transpose of the gather-sum: every tap's product is computed once, with the raw
// weights, and scattered to each member at its own mirrored position. What is summed afterwards are results,
// of which there are as many as orbits, and not inputs, of which there are as many as channels.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "microkernels/kernels.h"
#include "problem.h"

namespace symconv {

// Longer lines are cut into tiles of so many results; each has products of its own for all that its taps
// read.
constexpr int64_t kLongLine = 160, kTilePositions = 128;

// The taps of one axis by the residue, for its stride, of the source positions that they read. Result t takes
// tap k from position t + shift[k] of the residue class class_of[k].
struct ScatterAxis {
  struct Class {
    int64_t residue, count;  // source positions: residue + stride * (0 .. count - 1)
    std::vector<int> taps;
    int64_t low, high;  // least and largest shift of them
  };
  std::vector<Class> classes;
  std::vector<int> class_of, index;  // by tap: its class, and its place there
  std::vector<int64_t> shift;
};

// Lines run along the inner axis. It is tied, and products are summed along it (`summed`), or it is
// contracted. The outer axis is tied too (`ring`: what lines give is kept until all their taps are there), or
// else contracted; so is the deep one, unless it is a third tied axis, which is folded.
struct ScatterPlan {
  int deep, outer, inner;
  bool summed, ring, folded;
  // Along the outer axis: where that is not tied, or with F(4,3) for both of its parities.
  Filtering filtering;
  ScatterAxis lines, line;  // outer axis (ring only), inner axis; where that is contracted, its results
  int parities() const { return folded ? 2 : 1; }
  // Orbit members that differ in the inner axis, and all of them.
  int line_members() const { return summed ? 2 : 1; }
  int members() const { return line_members() * (ring || filters_parities() ? 2 : 1) * parities(); }
  int lines_in() const { return kLinesIn[filtering]; }
  // Multiplications of different weights, and what line of the panel one multiplies.
  int weights() const { return parities() * kProducts[filtering]; }
  int line_of(int weight) const {
    return folded ? 0 : weight < lines_in() ? weight : kOddLines[weight - lines_in()];
  }
  // Is the outer axis tied and filtered?
  bool filters_parities() const { return filtering == kF4Parities; }
  // Members that are stored together: of the inner axis, or of the other ones where they wait in a ring.
  int stored() const { return 2 * parities() * (filters_parities() ? 2 : 1); }
  // Which orbit member is stored i-th: of those with `member` of the inner axis where the others waited.
  int member(int member, int i) const { return ring && summed ? member | (i & 1) << 1 | (i >> 1) << 2 : i; }
  // Taps whose products are kept apart.
  int64_t taps(const Problem& p) const {
    return (summed ? p.kernel[inner] : 1) * (ring ? p.kernel[outer] : 1);
  }
};

// None where products of mirrored taps are not wanted at the same positions, or are too many to keep, or
// those of a tile of a line mostly for other tiles. With `pixels` orbits are the lanes, and lines may run
// along an axis that is not tied.
std::optional<ScatterPlan> scatter_plan(const Problem& p, const Segment& segment, Filtering filtering,
                                        bool pixels);

}  // namespace symconv
