// Staging: the source that tiles read, copied plane by plane with zeros around the map.
//
// Layers with few channels or few orbits have no runs along channels worth a vector. Their source is
// brought into [depth][height][channel][width] first, whatever its layout, so that the panel can be packed
// along the width, without borders. With a stride along the width its residues lie apart, so that the
// positions of neighbouring anchors are contiguous.
//
// Tiles whose panel is not shifted go along the depth: planes that the next one reads too stay where they
// are, and its own take the places of those that no tile reads any more. All phases of such a plan read one
// stage, tile by tile.
//
// Orbit members that differ in the depth alone are added up on the way (DepthSum): sums have a plane for each
// anchor, and every tap of the kernel loads half as many sources.
#pragma once

#include <cstdint>
#include <vector>

#include "microkernels/kernels.h"
#include "packed/panel.h"
#include "packed/plan.h"

namespace symconv {

// A plane of the source in a stage, with its lines [begin, end).
struct HeldPlane {
  int64_t plane, begin, end;
};

class Stage;

// What the stage of a thread holds. Fresh ones hold nothing.
template <class E>
struct Held {
  E* data = nullptr;          // elements()
  const Stage* of = nullptr;  // which lays it out
  int64_t image = -1, channel = 0, channels = 0;
  Triple first{};                 // the source position that lies first, of a plane and of its lines
  std::vector<HeldPlane> planes;  // by place
  // Of which tile the sums are, and by which map of the depth.
  const AxisMap* summed_by = nullptr;
  Triple summed{};
};

// Sizes of the stage of some phases; the same for all their tiles.
class Stage {
 public:
  // `order`: the channel of the source that comes at each place, or null.
  Stage(const Plan& plan, const std::vector<const Phase*>& phases, int64_t channels, int lanes,
        const std::vector<int64_t>* order = nullptr);

  int64_t elements() const { return kept_ + summed_ + slack_; }
  // What is packed of it.
  template <class E>
  View<const E> view(const Held<E>& held) const {
    return {held.data + (has_sums() ? kept_ : 0), 0, line_, {}};
  }

  // Where planes do not take turns: from one channel to the next, and to source position `at` on an axis, if
  // what the tile reads begins at `first`.
  int64_t channel_stride() const { return line_; }
  int64_t offset(int axis, int64_t at, int64_t first) const {
    const int64_t i = at - first;
    return axis < kAxes - 1 ? i * stride_[axis] : i % residues_ * pitch_ + i / residues_;
  }

  // Has the stage hold `channels` channels of `source`, at most as many as there is room for, as far as a
  // tile reads them, or the sums of these. `tile` is one of `phase`. Says where they lie.
  template <class T>
  StagePlaces fill(const Kernels<T>& kernels, const Phase& phase, const Tile& tile,
                   const View<const Element<T>>& source, int64_t first_channel, int64_t channels,
                   Held<Element<T>>& held) const;

 private:
  template <class T>
  struct Copy;
  bool has_sums() const { return !sums_.empty(); }
  // Do planes take turns?
  bool turns() const { return tiling_.strip > 0; }
  int64_t plane_offset(int64_t z, int64_t first) const;
  Tile widest(const Tile& tile) const;
  template <class T>
  void copy_planes(const Copy<T>& copy, const Tile& tile, Held<Element<T>>& held) const;
  template <class T>
  void copy_line(const Copy<T>& copy, int64_t z, int64_t y, const Held<Element<T>>& held,
                 Element<T>* to) const;
  template <class T>
  void sum_lines(const Copy<T>& copy, const Tile& tile, Held<Element<T>>& held) const;

  const std::vector<DepthSum>& sums_;
  const std::vector<int64_t>* order_;
  const Tiling tiling_;  // of the phase with most anchors
  int64_t channels_;
  Triple step_, low_, reach_;  // source position = step * anchor + low .. + reach
  int64_t planes_, lines_, width_;
  int64_t residues_, pitch_, line_;
  Triple stride_, sum_stride_;
  int64_t kept_, summed_, slack_;
};

// Has all phases of a plan be cut into tiles alike, and these go along the depth, if their panels are not
// shifted. A position of the source has `channel_bytes`.
void share_tiles(const Plan& plan, std::vector<Phase>& phases, int64_t channel_bytes);

// Stages of the phases of a plan: one that all share where that is possible, else one for each.
std::vector<Stage> make_stages(const Plan& plan, const std::vector<const Phase*>& phases, int64_t channels,
                               int lanes, const std::vector<int64_t>* order);

}  // namespace symconv
