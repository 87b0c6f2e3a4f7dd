// The fold of one tied axis inside the matrix kernel: what it multiplies, and where that lies.
//
// The other tied axes are folded while the panel is packed. Along this one the panel has lines, a tap is a
// shift, and the kernel adds and subtracts a shifted line and its mirror image: the panel is smaller by the
// kernel's size on that axis.
#pragma once

#include <cstdint>
#include <vector>

#include "panel.h"
#include "weights.h"

namespace symconv {

// One slot of the panel at one tap of the axis and at its mirror image.
struct MirrorTerm {
  int64_t panel_row, channels;
  int64_t even_row, odd_row;  // of the packed weights
  int tap, mirror;            // the second is -1 for a tap that is its own mirror image
};

// Terms of one parity of the other axes. `weight_plan` folds this axis as well.
std::vector<MirrorTerm> make_mirror_terms(const Plan& plan, const Plan& weight_plan,
                                          const PanelLayout& layout, const WeightRows& rows,
                                          const Chunk& chunk, int parity);

// The same for one tile, as the kernel takes it.
class MirrorSegments {
 public:
  void set(const std::vector<MirrorTerm>& terms, const Plan& plan, const Phase& phase, const Tile& tile,
           int64_t ld);

  template <class W>
  void attach(MirrorArgs<W>& g) const {
    g.even_row = even_.data(), g.odd_row = odd_.data(), g.b_offset = b_.data();
    g.mirror_offset = mirror_.data(), g.k = k_.data(), g.segments = static_cast<int64_t>(k_.size());
  }

 private:
  std::vector<int64_t> even_, odd_, b_, mirror_, k_;
};

}  // namespace symconv
