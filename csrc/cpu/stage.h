// Staging: the part of the source that one tile reads, copied plane by plane with zeros around the map.
//
// Layers with few channels or few orbits have no runs along channels worth a vector. Their source is
// brought into [channel][depth][height][width] first, whatever its layout, so that the panel can be packed
// along the width, without borders. With a stride along the width its residues lie apart, so that the
// positions of neighbouring anchors are contiguous.
#pragma once

#include <cstdint>

#include "geometry.h"
#include "kernels.h"
#include "panel.h"

namespace symconv {

// Sizes of the stage of one phase; the same for all its tiles.
class Stage {
 public:
  Stage(const Plan& plan, const Phase& phase, int64_t channels, int lanes);

  int64_t elements() const { return channels_ * channel_stride_ + slack_; }
  int64_t channel_stride() const { return channel_stride_; }

  // First source position of a tile on an axis, given its first anchor.
  int64_t first(int axis, int64_t anchor) const { return step_[axis] * anchor + low_[axis]; }

  // Offset in the stage of source position `at` on an axis, where the tile's stage begins at `first`.
  int64_t offset(int axis, int64_t at, int64_t first) const {
    const int64_t i = at - first;
    if (axis < kAxes - 1) return i * stride_[axis];
    return i % residues_ * pitch_ + i / residues_;
  }

  // Copies `channels` of `source`, at most as many as there is room for. `out` holds elements().
  template <class T>
  void fill(const Kernels<T>& kernels, const Phase& phase, const Tile& tile,
            const View<const Element<T>>& source, int64_t first_channel, int64_t channels,
            Element<T>* out) const;

 private:
  int64_t channels_, residues_, pitch_, slack_;
  Triple step_, low_, size_, stride_;
  int64_t channel_stride_;
};

}  // namespace symconv
