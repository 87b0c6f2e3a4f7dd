// What has to be computed, as index maps: which source positions and channels feed which slot.
//
// Two kinds of plan cover every pass. A *fold* plan (forward, and the gradients of blocks of input channels
// that mirrors exchange) sums mirrored positions of one tensor, once for each parity. A *sum* plan (the other
// gradients) sums the orbit members of one tensor, each at its own mirrored position. A slot is one such sum:
// a block of rows of the contraction. Strided scatters are split into phases, so that in every phase the
// source position on an axis is
//   a * t + b[tap]   for the anchors t = 0 .. count-1,   and the destination is   first + step * t.
// So is a dilated axis along which the panel is shifted: positions d apart are neighbours to a dilation of d,
// and a phase has those of one residue, in the source every `source_step`-th from `source_first` on.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "microkernels/kernels.h"
#include "problem.h"

namespace symconv {

struct AxisMap {
  int64_t count = 0, a = 1, extent = 0, first = 0, step = 1;
  int64_t source_first = 0, source_step = 1;
  std::vector<int64_t> b;     // by tap
  std::vector<char> present;  // taps that contribute in this phase

  // Where the tensor has a source position.
  int64_t source(int64_t at) const { return source_first + source_step * at; }
  // First and last source position that anchor 0 reads; 0 where no tap is present.
  std::pair<int64_t, int64_t> reach() const;
};

struct Slot {
  int parity;  // fold: compressed parity; sum: 0
  int segment;
  int64_t row;       // first orbit inside the segment (sum)
  int64_t channels;  // rows of the contraction that the slot covers
  Taps tap;          // representative tap of the weights; that of the offset axis is set later
  bool odd = false;  // sum, with both parities of the offset axis: which of them
  int group = 0;     // fold: which one it is of
};

// Sources that are loaded together. Fold: source s is mirrored on the subset s of the paired axes, has a
// weight of its own, and there are as many slots as sources. With one parity there is one slot, and sources
// are in such an order that the last sum or difference of a butterfly is that of the parity. Of blocks of
// input channels that fewer mirrors move than there are members of an orbit, these are summed first: a slot
// is a parity of the sums. Sum: source s is orbit member s, and there is one slot, or with both parities of
// the offset axis one for each.
struct Group {
  int log_sources = 0;
  int slots = 1;
  Taps tap[8];
  int64_t channel[8];  // first channel of the source, inside its group of the layer
  Place weight[8];     // by slot: the first weight of its rows
  int slot[8];
  int64_t channels = 0;
};

// Two sources in one, before they are loaded: some channels at a tap of the depth, and others at its mirror
// image, whose sums are channels of a stage.
struct DepthSum {
  int64_t tap[2], channel[2];
  int64_t channels, to;  // how many, and the first one in the stage
};
constexpr int kDepthAxis = 0;

struct Plan {
  bool fold = true;
  bool forward = true;          // else rows of the contraction are orbits, and columns input channels
  bool moves_channels = false;  // fold: sources differ in their channels
  bool adds = false;            // every sum has positive signs alone
  bool sums_members = false;    // some members are summed, and the sums folded
  int parities = 1;
  int offset_axis = -1;          // its taps are shifts of the panel and need no slots of their own
  bool reversed = false;         // shifts grow as its taps fall
  Filtering filtering = kPlain;  // along the offset axis
  std::vector<Slot> slots;       // parity-major
  std::vector<Group> groups;
  std::vector<AxisMap> axes[kAxes];  // by phase
  std::vector<DepthSum> sums;        // where there are any, groups are made of them

  // Sum plans alone: is the offset axis tied, and filtered?
  bool filters_parities() const { return filtering == kF4Parities; }
  // Are members that differ in the depth alone summed first, in a stage?
  bool sums_depth() const { return !sums.empty(); }
};

// Index maps of one axis, by residue of the destination position.
std::vector<AxisMap> axis_maps(const Problem& p, bool forward, int axis);

// Axis on which a plan over these segments may shift the panel, or -1.
int choose_offset_axis(const Problem& p, bool forward, const Segment* segments, size_t count, bool planes);

// As choose_offset_axis, for a sum plan over all segments. Where there is no such axis F(4,3) may go along
// the outer one of two tied axes, for both of its parities: `filtering` becomes that.
int choose_sum_axis(const Problem& p, bool planes, Filtering& filtering);

// Forward, of all input channels.
Plan fold_plan(const Problem& p, int segment, int offset_axis, Filtering filtering);

// The gradient of one part of the input channels of a segment. Of the filters v[c, (g, m), k] =
// w[m, (g, c), J_g k] it is the forward pass of the transposed layer. Filters that are their own images, and
// whose mirrors move channels, are in it what an orbit is without them: blocks of channels are its members.
Plan gradient_plan(const Problem& p, int segment, int part, int offset_axis, Filtering filtering);

// Of a fold whose groups have a slot for each parity: taps that differ in the width alone come last, so that
// all others of one follow each other in the contraction.
Plan width_first(Plan plan);

// `part` of `parts`: the orbits of every segment are cut into that many ranges. `sums_depth` wants the depth
// tied in all of them.
Plan sum_plan(const Problem& p, int part, int parts, int offset_axis, Filtering filtering, bool sums_depth);

}  // namespace symconv
