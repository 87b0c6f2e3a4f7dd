// The check of a call of kernels that work on patches: after it, nothing that they count leaves 32 bits.
#include "patch/kernel.h"

namespace symconv {
namespace {

constexpr int64_t kMost = int64_t{1} << 30;  // of what the kernels count in 32 bits

// Product of factors that are not negative, or kMost + 1 where it is more than kMost.
template <class... Factors>
int64_t bounded(Factors... factors) {
  int64_t product = 1;
  for (const int64_t f : {int64_t{factors}...})
    product = f == 0 ? 0 : product > kMost / f ? kMost + 1 : product * f;
  return product;
}

std::string check_kind(const PatchParams& p, const Numbers* tile) {
  if (p.dtype != 0 && p.dtype != 1) return "patch kernels multiply bfloat16 and float16";
  if (!tile) return "there is no such tile";
  if (p.mask < 1 || p.mask > 3) return "patch kernels are for the ties h, v and hv";
  if (tile->members != (p.mask == 3 ? 4 : 2)) return "the tile is for another tie";
  if (p.activation < 0 || p.activation > 3) return "there is no such activation";
  for (const int64_t size : {p.batch, p.depth, p.height, p.width, p.groups, p.channels, p.orbits})
    if (size < 1 || size > kMost) return "a size is not positive, or too large";
  return p.channels % 8 ? "8 does not divide the channels of a group" : "";
}

std::string check_sizes(const PatchParams& p, const Numbers& tile) {
  const bool v = exchanged(p);
  const int64_t down = whole_blocks(v ? p.width : p.height, tile.height);
  const int64_t across = whole_blocks(v ? p.height : p.width, tile.width);
  const int64_t blocks = bounded(p.groups, whole_blocks(p.orbits, tile.orbits));
  const int64_t patches = bounded(p.batch, p.depth, down, across);
  if (bounded(patches + tile.patches, blocks) > kMost) return "there are too many tiles";
  if (bounded(blocks, tile.orbits, whole_blocks(p.channels, tile.channels), tile.channels) > kMost ||
      bounded(p.groups, p.channels) > kMost || bounded(p.groups, tile.members, p.orbits) > kMost / 16)
    return "the weight is too large for offsets of 32 bits";
  return "";
}

std::string check_strides(const PatchParams& p) {
  int64_t last = p.groups * p.channels / 8;  // chunk of x that is reached
  const int64_t sizes[] = {p.batch, p.depth, p.height, p.width}, strides[] = {p.x_n, p.x_z, p.x_y, p.x_x};
  for (int i = 0; i < 4; ++i) {
    if (strides[i] < 0 || strides[i] % 8) return "strides of x are negative, or 8 does not divide them";
    if (strides[i] / 8 > 2 * kMost - 1) return "x is too large for offsets of 32 bits";
    last += bounded(sizes[i] - 1, strides[i] / 8);
  }
  if (last > kMost) return "x is too large for offsets of 32 bits";
  for (const int64_t stride : {p.y_n, p.y_z})
    if (stride < 0 || stride > int64_t{1} << 40) return "strides of y are negative, or too large";
  for (const int64_t stride : {p.y_y, p.y_x})
    if (stride < 0 || stride > kMost / 16) return "strides of y are negative, or too large";
  for (const int64_t stride : {p.w_group, p.w_row, p.w_channel, p.w_y, p.w_x})
    if (stride < 0 || stride > kMost) return "strides of w are negative, or too large";
  return "";
}

}  // namespace

std::string check_call(const PatchParams& p, const Numbers* tile) {
  std::string wrong = check_kind(p, tile);
  if (wrong.empty()) wrong = check_sizes(p, *tile);
  return wrong.empty() ? check_strides(p) : wrong;
}

int64_t weight_bytes(const PatchParams& p, const Numbers& tile) {
  return p.groups * whole_blocks(p.orbits, tile.orbits) * whole_blocks(p.channels, tile.channels) *
         tile.weight_bytes;
}

}  // namespace symconv
