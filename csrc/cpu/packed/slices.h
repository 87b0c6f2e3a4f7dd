// Panels of octuples whose mirrors exchange input channels, a slice at a time: all parities of a few taps,
// for one or two vectors of positions.
//
// There an orbit is an eighth of the channels on both sides, so that the panel has 27 taps for few columns:
// it is written once for a single use. Results are as few as columns, and are loaded and stored for every
// slice.
//
// Sources are read from a copy of what a tile reads, with zeros around the map: a Stage where positions are
// the lanes, and else one that lies as the source does. Every position exists there, so that all sources of a
// tap keep their distances, and no run ends at a border.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "microkernels/kernels.h"
#include "packed/panel.h"
#include "packed/plan.h"
#include "packed/stage.h"

namespace symconv {

// Of a slice and of results, all parities, and the rows that a contraction should have, for the loads of its
// results: slices that fit the first-level cache have a third of these rows, and took 1.08 times as long.
constexpr int64_t kSliceBytes = 80 << 10, kSliceRows = 72;
// Source elements of a tile, in bytes: with its halo it is two to three times as large.
constexpr TileLimits kSlicedTile{256 << 10, 1024};

// Positions that are multiplied together, and groups of the plan that are.
struct SliceSizes {
  int64_t pixels, groups;
};
// Forward. `row`: bytes of a panel row of all parities.
SliceSizes slice_sizes(int64_t channels, int64_t columns, int lanes, int64_t row);

// Of the block of a tile, `pixels` of lines that follow each other.
Triple slice_block(const Tiling& tiling, int64_t pixels);

// Calls f(part) for the boxes of a tile.
template <class F>
void for_parts(const Tile& tile, const Triple& block, const F& f) {
  Tile part = tile;
  for (int64_t i0 = 0; i0 < tile.size[0]; i0 += block[0])
    for (int64_t i1 = 0; i1 < tile.size[1]; i1 += block[1])
      for (int64_t i2 = 0; i2 < tile.size[2]; i2 += block[2]) {
        const int64_t at[kAxes] = {i0, i1, i2};
        for (int i = 0; i < kAxes; ++i) {
          part.begin[i] = tile.begin[i] + at[i];
          part.size[i] = std::min(block[i], tile.size[i] - at[i]);
        }
        f(part);
      }
}

// Of a plan with a single phase, in which all taps are present; axes are in order.
template <class T>
class Slicer {
 public:
  // `stage`: null where channels are the lanes. `channels` of the source, in a group of the layer.
  Slicer(const Kernels<T>& kernels, const Plan& plan, const Phase& phase, const Stage* stage,
         int64_t channels);

  // Of the copy.
  int64_t elements() const;

  // Copies what a tile reads of some channels.
  void fill(const Tile& tile, const View<const Element<T>>& source, int64_t first_channel,
            Held<Element<T>>& copy) const;

  // Of a part of that tile some groups, parity after parity: rows of the panel, or columns of one with
  // channels for lanes, `apart` from one parity to the next.
  void pack(const Tile& tile, const Tile& part, const Chunk& chunk, const Element<T>* copy, int64_t apart,
            Stored<T>* panel, int64_t ld) const;

 private:
  void copy_line(const View<const Element<T>>& source, const Triple& at, Element<T>* to) const;

  const Kernels<T>& kernels_;
  const Phase& phase_;
  const Stage* stage_;
  int64_t channels_;
  int64_t rows_;       // channels of a group of the plan
  Triple low_, size_;  // of the copy, in positions of the source
  Triple stride_;      // from one of them to the next, where channels are the lanes
  Triple step_;        // in the copy, from one anchor to the next
  std::vector<std::array<int64_t, kMaxSources>> sources_;  // of the first anchor, by group
};

}  // namespace symconv
