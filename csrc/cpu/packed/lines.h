// Panels that are folded along every axis but the width, whose fold is the matrix kernel's.
//
// Where mirrors exchange blocks of input channels an orbit has few columns for all taps, so that a panel
// which is folded along every axis is written once and read once or twice. Lines of it that are not folded
// along the width yet are the same for all taps of the width: they are a third of such a panel for three
// taps, take a third of its sums, and are written with their halo as they lie in the stage. What is left are
// two lines, one for each member along the width, which the matrix kernel adds or subtracts as it loads them.
// So all of a contraction is in the second-level cache at a time, and results never leave the first-level one
// before they are complete.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "microkernels/kernels.h"
#include "packed/panel.h"
#include "packed/plan.h"
#include "packed/stage.h"
#include "packed/weights.h"

namespace symconv {

// Source elements of a tile, in bytes: planes that the next one reads too stay in the stage; of a single
// plane tiles are larger, which copy fewer lines twice.
constexpr TileLimits kVolumeOfLines{64 << 10, 256}, kPlaneOfLines{256 << 10, 1024};

// Of a plan with a single phase, in which all taps are present, by width_first(); axes are in order, and the
// width is tied.
template <class T>
class LineFold {
 public:
  static constexpr int kVectors = 2;  // of positions that are multiplied together

  LineFold(const Kernels<T>& kernels, const Plan& plan, const Phase& phase, const Stage& stage,
           const WeightLayout& weights);

  int64_t lines() const { return lines_; }        // of results that are folded together, at most
  int64_t elements() const { return elements_; }  // of what they are folded to

  // Results lie line by line, so far apart that those of a vector are of neighbouring elements.
  int64_t place() const { return place_; }
  int64_t results() const { return lines_ * place_ + kernels_.lanes; }  // at most, of a row

  // Some lines of one plane, from the stage.
  void fold(const StagePlaces& places, const Element<T>* stage, const Tile& lines, Stored<T>* out) const;

  // Sums of a parity for some rows of packed weights, which lie at `weights`, and the vectors of results
  // from `at` on.
  void multiply(int parity, int64_t rows, const T* weights, const Stored<T>* folded, int64_t at, int vectors,
                T* to, int64_t ld, const WeightLayout& layout) const;

 private:
  // Taps that differ in the width alone: where a source is in the stage, by member, beside the plane that it
  // is in for a tap of the depth.
  struct Outer {
    int64_t at[kMaxSources], depth[kMaxSources];
  };

  void choose_lines(const Triple& block);
  int64_t vectors_of(int64_t lines, int64_t place) const { return ceil_div(lines * place, kernels_.lanes); }
  int64_t start(int64_t vector) const {
    const int64_t at = vector * kernels_.lanes;
    return at / place_ * line_step_ + at % place_;
  }

  const Kernels<T>& kernels_;
  const Phase& phase_;
  const Stage& stage_;
  const int axes_;                  // that are folded here
  const int64_t channels_, pitch_;  // of a source; of a line in the stage
  int64_t lines_ = 1, place_;
  int64_t row_step_, line_step_, member_step_, parity_step_, elements_;
  std::vector<Outer> outer_;
  // By tap of the width: both members in what is folded, and by parity the weights in a row of them.
  std::vector<int64_t> first_, second_;
  std::array<std::vector<int64_t>, kMaxSources> weights_;
};

}  // namespace symconv
