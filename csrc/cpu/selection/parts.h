// What of contiguous tensors is copied to channels_last at a time, for a pass that is quicker there.
//
// Channels are the long side of a small map: 512 channels of 7 x 7 positions fill vectors, lines of 7 do not.
// What is copied at a time is small: as many images as stay within 1 MiB with their results, or some lines of
// one, with those around them that their taps read; or all of them, where the reduced weight is larger than
// they are. A weight gradient is a sum over all images, with one accumulator, and its parts are images.
#pragma once

#include <cstdint>
#include <optional>

#include "problem.h"

namespace symconv {

// What a part is copied for.
enum class PartOf { output, input, sum };  // forward, gradient of the input, gradient of the weight

// `images` 0: nothing is copied. `lines` of results along the outermost dimension, a multiple of its stride
// where these are of the input; 0: all of them.
struct Parts {
  PartOf of = PartOf::output;
  int64_t images = 0, lines = 0;
  int64_t number = 0;        // how many parts there are
  int64_t source_lines = 0;  // that a part reads; 0: all
  // The source line that comes first for a part whose results begin at line r: r * step / per + offset.
  int64_t step = 1, per = 1, offset = 0;

  int64_t first_source(int64_t result) const { return result * step / per + offset; }
};

constexpr int64_t kMostPartBytes = 1 << 20;

// None where they would be too many or too large. `bytes` of an element.
std::optional<Parts> choose_parts(const Problem& p, int dims, PartOf what, int64_t bytes);

// The problem of one part. Along the outermost dimension its lines outside of the map are zeros that the
// source has, and padding no more.
Problem problem_of(const Problem& p, int dims, const Parts& parts);

// Elements that are copied there and back, over all parts.
int64_t copied_elements(const Problem& p, int dims, const Parts& parts);

}  // namespace symconv
