// What a call of the 3 x 3 gradient of the input for Hopper is given: sizes, strides, the tile.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace symconv {

struct Pointers;
struct Queue;
struct Variant;

// The gradient of the input of a 3 x 3 convolution, stride 1, padding 1, whose filters are tied by one mask:
// 1 (h), 2 (v) or 3 (hv). x is that gradient, y the gradient of the output, w the reduced weight: Pointers
// have y in the place of what is read, x in that of what is written.
//
// dtype: 0 bfloat16, 1 float16. channels (of x) and rows (of the weight) are those of a group; member m of
// row u of group g is channel (g * members + m) * rows + u of y. tile: index into hopperdgrad_variants().
// Strides are in elements: of images, rows and columns of x and y, whose channels have stride 1; of groups,
// rows, channels, tap rows and tap columns of the weight.
#define HOPPERDGRAD_FIELDS(F) \
  F(dtype)                    \
  F(batch)                    \
  F(height)                   \
  F(width)                    \
  F(groups)                   \
  F(channels)                 \
  F(rows)                     \
  F(mask)                     \
  F(tile)                     \
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

struct HopperdgradParams {
#define SYMCONV_FIELD(name) int64_t name = 0;
  HOPPERDGRAD_FIELDS(SYMCONV_FIELD)
#undef SYMCONV_FIELD
};

std::string hopperdgrad_check(const HopperdgradParams& p);
int64_t hopperdgrad_workspace(const HopperdgradParams& p);  // bytes: the packed weights
std::string hopperdgrad_launch(const HopperdgradParams& p, const Pointers& pointers, const Queue& queue);
std::vector<Variant> hopperdgrad_variants();

}  // namespace symconv
