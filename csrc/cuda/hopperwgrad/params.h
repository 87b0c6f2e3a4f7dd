// What a call of the Hopper weight gradient is given: sizes, strides, strip, splits; checked before it runs.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace symconv {

struct Pointers;
struct Queue;
struct Variant;

// Gradient of the reduced weight of a 3 x 3 convolution, stride 1, padding 1, whose filters are tied by one
// mask: 1 (h), 2 (v) or 3 (hv).
//
// dtype: 0 bfloat16, 1 float16. channels and rows (orbits) are those of a group. strip: index into the strips
// of hopperwgrad/strip.h with this number of members, 0 the tall one. splits: parts of the pixels, summed one
// by one. Strides are in elements: of images, rows and columns of x and y (the output's gradient), whose
// channels have stride 1; of groups, rows, channels, tap rows and tap columns of the weight. Channel of y of
// group g, member m, orbit u: (g * members + m) * rows + u.
#define HOPPERWGRAD_FIELDS(F) \
  F(dtype)                    \
  F(batch)                    \
  F(height)                   \
  F(width)                    \
  F(groups)                   \
  F(channels)                 \
  F(rows)                     \
  F(mask)                     \
  F(strip)                    \
  F(splits)                   \
  F(x_n)                      \
  F(x_y)                      \
  F(x_x)                      \
  F(y_n)                      \
  F(y_y)                      \
  F(y_x)                      \
  F(w_group)                  \
  F(w_row)                    \
  F(w_channel)                \
  F(w_y)                      \
  F(w_x)

struct HopperwgradParams {
#define SYMCONV_FIELD(name) int64_t name = 0;
  HOPPERWGRAD_FIELDS(SYMCONV_FIELD)
#undef SYMCONV_FIELD
};

std::string hopperwgrad_check(const HopperwgradParams& p);
int64_t hopperwgrad_workspace(const HopperwgradParams& p);  // bytes: the sums of every split
// x: the input, w: the output's gradient, y: the weight's gradient.
std::string hopperwgrad_launch(const HopperwgradParams& p, const Pointers& pointers, const Queue& queue);
std::vector<Variant> hopperwgrad_variants();

}  // namespace symconv
