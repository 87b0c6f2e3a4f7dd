// Staging: the part of the source that one tile reads, copied plane by plane with zeros around the map.
//
// Layers with few channels or few orbits have no runs along channels worth a vector. Their source is
// brought into [channel][depth][height][width] first, whatever its layout, so that the panel can be packed
// along the width, without borders. With a stride along the width its residues lie apart, so that the
// positions of neighbouring anchors are contiguous.
//
// Orbit members that differ in the depth alone are added up on the way (DepthSum): a stage of sums has a
// plane for each anchor, and every tap of the kernel loads half as many sources.
#pragma once

#include <cstdint>
#include <vector>

#include "microkernels/kernels.h"
#include "packed/panel.h"
#include "packed/plan.h"

namespace symconv {

// Sizes of the stage of one phase; the same for all its tiles.
class Stage {
 public:
  // `order`: the channel of the source that comes at each place, or null.
  Stage(const Plan& plan, const Phase& phase, int64_t channels, int lanes,
        const std::vector<int64_t>* order = nullptr);

  int64_t elements() const { return channels_ * channel_stride_ + lines_ + slack_; }
  int64_t channel_stride() const { return channel_stride_; }

  // First source position of a tile on an axis, given its first anchor.
  int64_t first(int axis, int64_t anchor) const { return step_[axis] * anchor + low_[axis]; }

  // Offset in the stage of source position `at` on an axis, where the tile's stage begins at `first`.
  int64_t offset(int axis, int64_t at, int64_t first) const {
    const int64_t i = at - first;
    if (axis < kAxes - 1) return i * stride_[axis];
    return i % residues_ * pitch_ + i / residues_;
  }

  // Copies `channels` of `source`, at most as many as there is room for, or fills the stage with their sums.
  // `out` holds elements().
  template <class T>
  void fill(const Kernels<T>& kernels, const Phase& phase, const Tile& tile,
            const View<const Element<T>>& source, int64_t first_channel, int64_t channels,
            Element<T>* out) const;

  // Of the calling thread's tile: where its stage begins in the source, and how far the channels of a copy
  // are apart.
  template <class T>
  struct Copy {
    const Kernels<T>& kernels;
    const Phase& phase;
    View<const Element<T>> source;
    Triple first;
    int64_t channels, channel_stride;
    Element<T>* room;  // for a line, [channel][position], before its residues are set apart
  };

 private:
  template <class T>
  void copy_line(const Copy<T>& copy, int64_t z, int64_t y, Element<T>* to) const;
  template <class T>
  void sum_lines(const Copy<T>& copy, int64_t h, Element<T>* lines, const Element<T>* zeros,
                 Element<T>* out) const;

  const std::vector<DepthSum>& sums_;
  const std::vector<int64_t>* order_;
  int64_t channels_, residues_, pitch_;
  int64_t planes_, lines_ = 0, slack_;  // planes of the source; of a stage of sums a line of each, then zeros
  Triple step_, low_, size_, stride_;
  int64_t channel_stride_;
};

}  // namespace symconv
