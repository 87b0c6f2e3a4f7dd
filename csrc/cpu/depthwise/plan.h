// What a depthwise pass does with every line of the kernel and of the map, worked out once a call.
//
// A kernel line and its mirror images along height and depth are folded first (sums and differences of
// source lines), then the taps along the width. Positions are lines of vectors: see depthwise/args.h.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "depthwise/args.h"
#include "packed/plan.h"

namespace symconv {

// A line of the kernel with its images. Image s mirrors the subset s of its paired axes.
struct KernelLine {
  int log_images = 0;
  int tap[kMaxKernelLines][2];  // depth, height
  int parity[kMaxKernelLines];  // vertical parity of combination s
  int weight = 0;               // first vector in the packed weights; combination s follows s * width later
};

// Which combination of a kernel line has this vertical parity, or -1.
int combination_of(const KernelLine& line, int up);

// Everything that depends on a tie only.
struct TiePlan : Tie {
  bool tied;     // along the width
  int vertical;  // tied axes among height and depth
  // Filters that are their own images have one parity: its part along the width, and its vertical part.
  // Packed weights have room for the others all the same.
  bool own_image;
  int own_across, own_up;
  std::vector<KernelLine> lines;  // that are not zero
  std::vector<TapGroup> taps;
  // Parity, or orbit member, by its part along the width and its vertical part.
  int parity(int across, int up) const { return across | up << (tied ? 1 : 0); }
  // Of which plane that is in the gradients; filters that are their own images have one.
  int plane(int across, int up) const { return own_image ? 0 : parity(across, up); }
  // Of filters that are their own images, along a line of taps, and of a line with so many images.
  LineParity along() const { return !tied ? kBothParities : own_across ? kOddParity : kEvenParity; }
  LineParity beside(int log_images) const {
    return log_images == 0 ? kBothParities : own_up ? kOddParity : kEvenParity;
  }
  // Images of the first line, which is the farthest from the middle and has the most of them.
  int most_images() const { return lines.empty() ? 0 : lines[0].log_images; }
};
// `backwards`: windows run the taps of filters that are their own images backwards, and the pass does not.
TiePlan tie_plan(const Problem& p, const Segment& segment, bool backwards);

// Packed weights of filters without a tie that are rows of the weight, mirrored: by member of all axes.
using MirroredTaps = std::array<std::vector<TapGroup>, kAllAxes.members()>;
MirroredTaps mirrored_taps(const Problem& p);

// A box of destination lines and the source lines that it needs.
struct Box {
  int64_t begin[2], end[2];  // anchors: depth, height
  int64_t source_begin[2], source_end[2];
  int64_t lines() const { return (end[0] - begin[0]) * (end[1] - begin[1]); }
  int64_t source_lines() const {
    return (source_end[0] - source_begin[0]) * (source_end[1] - source_begin[1]);
  }
  int64_t anchor(int64_t line, int axis) const {
    const int64_t height = end[1] - begin[1];
    return begin[axis] + (axis == 0 ? line / height : line % height);
  }
};

// Steps of one tie in one box: `first[key]` .. `first[key + 1]` belong together.
struct Steps {
  std::vector<DepthwiseStep> all;
  std::vector<int32_t> first;
  const DepthwiseStep* begin(int64_t key) const { return all.data() + first[key]; }
  int64_t count(int64_t key) const { return first[key + 1] - first[key]; }
};

// All destination positions that share their residues modulo the stride.
struct LinePhase {
  const AxisMap* axis[kAxes];
  int64_t column = 0;  // source position of column 0 of the packed lines
  int64_t span = 0;    // columns that the taps of one position cover, less one
  std::vector<LineTap> plain, pairs, lefts, rights, untied;
  std::vector<Box> boxes;
  LineTaps taps(bool tied) const;
};

// Lines that follow each other in memory without a gap move together, a run of them at a time: squares of
// lanes x positions are transposed, and lines shorter than a vector would fill none.
class Runs {
 public:
  // Lines of `width` positions; their vectors begin at `first`, `pitch` apart.
  Runs(int64_t lines, int64_t width, int64_t pitch, int64_t first, bool together);
  int64_t count() const { return count_; }
  int64_t begin(int64_t run) const { return lines_ * run / count_; }
  const int32_t* place() const { return together_ ? place_ : nullptr; }  // vector of every position of a run

 private:
  static constexpr int64_t kPositions = 112;  // at least: whole squares of 16 for lines of 7, 14, 28 and 56
  int64_t lines_, count_;
  bool together_;
  int32_t place_[2 * kPositions];
};

// Columns of a packed line for `positions` destination positions. Odd: lines must not collide in the cache.
int64_t line_pitch(const LinePhase& phase, int64_t positions);

std::vector<LinePhase> line_phases(const std::vector<AxisMap> (&axes)[kAxes], const Problem& p);

// Cuts a phase into boxes of at most `most` vectors of source, and into `at_least` boxes where that is
// possible.
void cut_boxes(LinePhase& phase, int64_t pitch, int64_t most, int64_t at_least);

// Planes of the source that are summed, with weights of their own.
struct Contraction {
  int64_t planes, source, weights;  // vectors from one to the next
};

// Keyed by line * 3 + log_images (forward and input gradient), or by kernel line (weight gradient).
Steps steps_by_line(const TiePlan& tie, const LinePhase& phase, const Box& box, int64_t pitch,
                    const Contraction& contraction);
Steps steps_by_kernel_line(const TiePlan& tie, const LinePhase& phase, const Box& box, int64_t pitch);

// Index of the register windows for this layer, or -1 where the width of the kernel, its stride or its
// dilation asks for the general lines.
int window_index(const Problem& p);

}  // namespace symconv
