// Lines of channels_last tensors, folded along every axis but the width (see lines.h), with channels for
// lanes.
//
// Sources are read from a copy of what a tile reads, with zeros around the map: every position exists there,
// so that all sources of a tap keep their distances, and no run ends at a border.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "microkernels/kernels.h"
#include "packed/panel.h"
#include "packed/plan.h"

namespace symconv {

// Source elements of a tile, in bytes: with its halo it is two to three times as large.
constexpr TileLimits kCopiedTile{256 << 10, 1024};

// Of a plan with a single phase, in which all taps are present; axes are in order, and the width is tied.
template <class T>
class PixelLines {
 public:
  // `channels` of the source, in a group of the layer.
  PixelLines(const Kernels<T>& kernels, const Plan& plan, const Phase& phase, int64_t channels);

  int64_t copied() const { return size_[0] * stride_[0]; }  // elements of the copy

  // Of what is folded: a row has the orbits of all taps that differ in no more than the width. Rows of a line
  // are positions of the source; then come the member along the width, and the parity.
  int64_t width() const { return width_; }  // of a row that is used
  int64_t row() const { return row_; }      // elements from one row to the next
  int64_t line() const { return size_[2] * row_; }
  int64_t member(int64_t lines) const { return lines * line(); }
  int64_t parity(int64_t lines) const { return 2 * member(lines); }
  int64_t elements(int64_t lines) const { return parity(lines) << axes_; }
  // From the row of a position's first source to that of its source for a tap of the width.
  int64_t shift(int64_t tap) const { return (phase_.axis[2]->b[tap] - low_[2]) * row_; }
  int64_t step() const { return phase_.axis[2]->a * row_; }  // from one anchor to the next
  // The column of the orbits of a tap.
  int64_t column(const Taps& tap) const { return (tap[0] * taps_[1] + tap[1]) * orbits_; }

  // Copies what a tile reads of the channels from `first` on.
  void copy(const Tile& tile, const View<const T>& source, int64_t first, T* to) const;

  // Of some lines of one plane of that tile.
  void fold(const Tile& tile, const Tile& lines, const T* copied, int64_t most, T* out) const;

 private:
  void copy_line(const View<const T>& source, const Triple& at, T* to) const;

  const Kernels<T>& kernels_;
  const Phase& phase_;
  const int axes_;  // that are folded
  const int64_t channels_, orbits_;
  Triple taps_, low_, size_, stride_, step_;  // size_: of the copy, in positions of the source
  int64_t width_, row_;
  std::vector<std::array<int64_t, kMaxSources>> sources_;  // of the first anchor, by tap without the width
};

}  // namespace symconv
