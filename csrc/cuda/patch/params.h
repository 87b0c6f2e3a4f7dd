// What a call of the 3 x 3 patch kernels is given: sizes, strides, the tile; checked before anything runs.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace symconv {

struct Pointers;
struct Queue;
struct Variant;

// A 3 x 3 convolution, stride 1, padding 1, whose filters are tied by one mask: 1 (h), 2 (v) or 3 (hv).
//
// dtype: 0 bfloat16, 1 float16. The map has depth planes of height x width, which are convolved one by one.
// channels and orbits (rows of the reduced weight) are those of a group. tile: index into patch_variants().
// activation: 0 none, 1 ReLU, 2 SiLU, 3 GELU. Strides are in elements: of images, planes, rows and columns of
// x and y, whose channels have stride 1; of groups, rows, channels, tap rows and tap columns of the weight.
// Output channel of group g, member m, orbit u: (g * members + m) * orbits + u.
#define PATCH_FIELDS(F) \
  F(dtype)              \
  F(batch)              \
  F(depth)              \
  F(height)             \
  F(width)              \
  F(groups)             \
  F(channels)           \
  F(orbits)             \
  F(mask)               \
  F(tile)               \
  F(activation)         \
  F(x_n)                \
  F(x_z)                \
  F(x_y)                \
  F(x_x)                \
  F(y_n)                \
  F(y_z)                \
  F(y_y)                \
  F(y_x)                \
  F(w_group)            \
  F(w_row)              \
  F(w_channel)          \
  F(w_y)                \
  F(w_x)

struct PatchParams {
#define SYMCONV_FIELD(name) int64_t name = 0;
  PATCH_FIELDS(SYMCONV_FIELD)
#undef SYMCONV_FIELD
};

std::string patch_check(const PatchParams& p);
int64_t patch_workspace(const PatchParams& p);  // bytes: the folded weights
std::string patch_launch(const PatchParams& p, const Pointers& pointers, const Queue& queue);
std::vector<Variant> patch_variants();

}  // namespace symconv
