// Ties as operators take them: [mask, rows, ...] of each segment, over all groups. Where mirrors do more than
// to exchange members a head comes before that: minus its length; 1 where mirrors exchange groups, else 0;
// the number of dims of the kernel and its sizes, where filters are their own images, or 0; then what moves
// input channels: 0 for nothing, or 1, the groups and the number of the segments of the input, and mask and
// rows of each, or 2, the number of channels, the mask of the letters and an involution for each of them.
// Segments of filters that are their own images have a code for a mask (Segment).
// symconv_fast/flat_ties.py writes it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "orbits.h"

namespace symconv {

struct Head {
  size_t length = 0;             // numbers before the first segment
  std::vector<int64_t> kernel;   // its sizes, where the weight has fewer taps
  const char* reason = nullptr;  // why no kernel runs such ties, or null
  bool across = false;           // mirrors exchange groups; that is then the reason
  int letters = 0;               // mask of the axes whose mirrors move input channels
  // Of all groups, by letter: the channel that each channel changes places with; none for other letters.
  std::array<std::vector<int64_t>, kAxes> partners;

  // Input channels of all groups; 0 where none is moved.
  int64_t channels() const {
    size_t most = 0;
    for (const auto& table : partners) most = std::max(most, table.size());
    return static_cast<int64_t>(most);
  }
};

Head read_head(const std::vector<int64_t>& ties, int64_t groups);

// What the mirrors of a tie do to the input channels of a group.
struct Inputs {
  std::vector<Blocks> parts;
  // The channel at each place, where blocks are no runs of channels; else empty. All blocks count places.
  std::vector<int64_t> order;
  const char* reason = nullptr;  // why no kernel runs such, or null
};

// `channels` of a group, and all the axes that are tied in the output.
Inputs read_inputs(const Head& head, const Tie& tie, int64_t channels);

// Those that a segment of the layer has, whose tie may have fewer axes.
std::vector<Blocks> inputs_of(const Tie& tie, const std::vector<Blocks>& parts, int64_t channels);

}  // namespace symconv
