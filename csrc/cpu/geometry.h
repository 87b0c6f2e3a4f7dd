// What has to be computed, as index maps: which source positions and channels feed which slot.
//
// Two kinds of plan cover every pass. A *fold* plan (forward) sums mirrored positions of one tensor,
// once for each parity. A *sum* plan (both gradients) sums the orbit members of one tensor, each at
// its own mirrored position. A slot is one such sum: a block of rows of the contraction.
// Strided scatters are split into phases, so that in every phase the source position on an axis is
//   a * t + b[tap]   for the anchors t = 0 .. count-1,   and the destination is   first + step * t.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace symconv {

constexpr int kAxes = 3;  // 0 = depth, 1 = height, 2 = width; 1-D and 2-D have extent 1 in front
using Triple = std::array<int64_t, kAxes>;
using Taps = std::array<int, kAxes>;

// All orbits of a layer with the same tie. Rows and channels count inside one group of the layer.
struct Segment {
  int mask;        // tied axes: bit 0 width, bit 1 height, bit 2 depth
  int64_t rows;    // orbits
  int64_t first;   // first row of the reduced weight
  int64_t copies;  // first output channel of the mirrored copies
};

struct Problem {
  int64_t batch, groups;
  int64_t channels;  // input channels of one group
  int64_t orbits;    // U of one group
  int64_t filters;   // output channels of one group
  Triple in, out, kernel, stride, padding, dilation;
  bool transposed;
  std::vector<Segment> segments;

  // Multiply-adds of one pass, with the reduced weight.
  int64_t macs() const {
    const Triple& at = transposed ? in : out;
    int64_t n = batch * groups * channels * orbits;
    for (int axis = 0; axis < kAxes; ++axis) n *= at[axis] * kernel[axis];
    return n;
  }
};

inline int64_t kernel_taps(const Problem& p) { return p.kernel[0] * p.kernel[1] * p.kernel[2]; }

struct AxisMap {
  int64_t count = 0, a = 1, extent = 0, first = 0, step = 1;
  std::vector<int64_t> b;     // by tap
  std::vector<char> present;  // taps that contribute in this phase
};

struct Slot {
  int parity;  // fold: compressed parity; sum: 0
  int segment;
  int64_t row;       // first orbit inside the segment (sum)
  int64_t channels;  // rows of the contraction that the slot covers
  Taps tap;          // representative tap of the weights; that of the offset axis is set later
  bool odd = false;  // sum, with both parities of the offset axis: which of them
};

// Sources that are loaded together. Fold: source s is mirrored on the subset s of the paired axes,
// and there are as many slots as sources. Sum: source s is orbit member s, and there is one slot, or with
// both parities of the offset axis one for each.
struct Group {
  int log_sources = 0;
  Taps tap[8];
  int64_t channel[8];  // first channel of the source, inside its group of the layer
  int slot[8];
  int64_t channels = 0;
};

struct Plan {
  bool fold = true;
  int parities = 1;
  int offset_axis = -1;          // its taps are shifts of the panel and need no slots of their own
  bool mirrored = false;         // the offset axis is tied: the matrix kernel folds it, and no slot does
  int mirror_bit = 0;            // and this is its place among the tied axes
  bool reversed = false;         // shifts grow as its taps fall
  Filtering filtering = kPlain;  // along the offset axis
  std::vector<Slot> slots;       // parity-major
  std::vector<Group> groups;
  std::vector<AxisMap> axes[kAxes];  // by residue of the destination position

  // Sum plans alone: is the offset axis tied, and filtered?
  bool filters_parities() const { return filtering == kF4Parities; }
  int slots_of(const Group& g) const { return fold ? 1 << g.log_sources : filters_parities() ? 2 : 1; }
};

// Tied axes of a mask, width first; returns how many.
int tied_axes(int mask, int (&axes)[kAxes]);

// First output channel of an orbit member, given as a subset of the tied axes (bit i: i-th tied axis).
int64_t member_channel(const Segment& segment, int member);

// Index maps of one axis, by residue of the destination position.
std::vector<AxisMap> axis_maps(const Problem& p, bool fold, int axis);

// Axis on which a plan over these segments may shift the panel, or -1.
int choose_offset_axis(const Problem& p, bool fold, const Segment* segments, size_t count, bool planes);

// Tied axis that the matrix kernel may fold, outermost first, or -1.
int choose_mirror_axis(const Problem& p, const Segment& segment);

// As choose_offset_axis, for a sum plan over all segments. Where there is no such axis F(4,3) may go along
// the outer one of two tied axes, for both of its parities: `filtering` becomes that.
int choose_sum_axis(const Problem& p, bool planes, Filtering& filtering);

// Can three taps on that axis be filtered with fewer products?
bool can_filter(const Problem& p, int offset_axis);

// If the offset axis is tied, `parities` and the slots are those of the other tied axes.
Plan fold_plan(const Problem& p, int segment, int64_t channels, int offset_axis, Filtering filtering);

// Parity over all tied axes, from that over those which a mirrored plan folds and that along the mirrored
// one.
int full_parity(const Plan& plan, int parity, bool odd);

// `part` of `parts`: the orbits of every segment are cut into that many ranges.
Plan sum_plan(const Problem& p, int part, int parts, int offset_axis, Filtering filtering);

}  // namespace symconv
