// From the numbers of a call to what its kernels take: checks, tiles, parts, the places in shared memory.
#pragma once
#include <algorithm>
#include <numeric>
#include <string>

#include "conv/params.h"
#include "conv/shape.h"

namespace symconv {
namespace {

constexpr int64_t kConvMost = int64_t{1} << 30;  // of what kernels count in 32 bits

// Tile of a warp: fragments of 16 pixels and columns. 128 accumulators a lane, for all parities together.
CONV_BOTH constexpr int conv_fragments(int gradient, int order, int columns) {
  return gradient ? (columns == 128 ? 2 : 4) : order < 2 ? 4 : 4 - order;
}
CONV_BOTH constexpr int conv_warp_columns(int gradient, int order, int columns) {
  return gradient ? columns : order == 0 ? 64 : 32;
}

inline int64_t conv_ceil(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline ConvDivisor conv_divisor(int by) {
  if (by == 1) return {1, 0, 0};
  uint32_t shift = 0;
  while ((int64_t{2} << shift) < by) ++shift;
  return {uint32_t(by), uint32_t(((uint64_t{1} << (32 + shift)) + uint64_t(by) - 1) / uint64_t(by)), shift};
}

// Product of factors that are not negative, or kConvMost + 1 where it is more than kConvMost.
template <class... Factors>
int64_t conv_bounded(Factors... factors) {
  int64_t product = 1;
  for (const int64_t f : {static_cast<int64_t>(factors)...})
    product = f == 0 ? 0 : product > kConvMost / f ? kConvMost + 1 : product * f;
  return product;
}

struct ConvSegment {
  int64_t mask, row, rows, copy;
};

inline ConvSegment conv_segment(const ConvParams& p, int64_t i) {
  switch (i) {
#define CONV_SEGMENT(n) \
  case n:               \
    return {p.mask##n, p.row##n, p.rows##n, p.copy##n};
    CONV_SEGMENT(0)
    CONV_SEGMENT(1)
    CONV_SEGMENT(2)
    CONV_SEGMENT(3)
    CONV_SEGMENT(4)
    CONV_SEGMENT(5)
    CONV_SEGMENT(6)
    CONV_SEGMENT(7)
#undef CONV_SEGMENT
  }
  return {};
}

// Which copy of a row is mirrored along the axes of `member`: 0 is the row itself.
inline int conv_copy(int64_t mask, int member) {
  static constexpr int kAll[] = {0, 1, 2, 6, 3, 5, 4, 7};  // of a row tied along x, y and z
  if (mask == 7) return kAll[member];
  int number = 0, bit = 1;
  for (int axis = 0; axis < 3; ++axis)
    if (mask >> axis & 1) number |= (member >> axis & 1) ? bit : 0, bit <<= 1;
  return number;
}

inline std::string conv_sizes_check(const ConvParams& p) {
  if (p.op < 0 || p.op > 1) return "op must be 0 or 1";
  if (p.dtype < 0 || p.dtype > 2) return "dtype must be 0, 1 or 2";
  if (p.activation < 0 || p.activation > 3) return "there is no such activation";
  const int64_t sizes[] = {p.batch,      p.groups,     p.channels, p.rows,     p.filters,  p.x_z,
                           p.x_y,        p.x_x,        p.y_z,      p.y_y,      p.y_x,      p.kernel_z,
                           p.kernel_y,   p.kernel_x,   p.stride_z, p.stride_y, p.stride_x, p.dilation_z,
                           p.dilation_y, p.dilation_x, p.tile_n,   p.tile_z,   p.tile_y,   p.tile_x};
  for (const int64_t size : sizes)
    if (size < 1 || size > kConvMost) return "a size is not positive, or too large";
  for (const int64_t size : {p.padding_z, p.padding_y, p.padding_x})
    if (size < 0 || size > 1 << 20) return "a padding is negative, or too large";
  for (const int64_t size : {p.stride_z, p.stride_y, p.stride_x, p.dilation_z, p.dilation_y, p.dilation_x})
    if (size > 1 << 10) return "a stride or dilation is too large";
  if (conv_bounded(p.kernel_z, p.kernel_y, p.kernel_x) > 4095) return "a filter has more than 4095 taps";
  const int64_t x[] = {p.x_x, p.x_y, p.x_z}, y[] = {p.y_x, p.y_y, p.y_z};
  const int64_t kernel[] = {p.kernel_x, p.kernel_y, p.kernel_z},
                stride[] = {p.stride_x, p.stride_y, p.stride_z};
  const int64_t dilation[] = {p.dilation_x, p.dilation_y, p.dilation_z};
  const int64_t padding[] = {p.padding_x, p.padding_y, p.padding_z};
  for (int i = 0; i < 3; ++i)
    if ((y[i] - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1 > x[i] + 2 * padding[i])
      return "the output is larger than the layer's";
  return "";
}

inline std::string conv_segments_check(const ConvParams& p) {
  if (p.segments < 1 || p.segments > 8) return "there must be 1 to 8 segments";
  for (int64_t i = 0; i < p.segments; ++i) {
    const ConvSegment s = conv_segment(p, i);
    if (s.mask < 0 || s.mask > 7) return "a mask is not of three axes";
    const int64_t copies = (int64_t{1} << __builtin_popcountll(s.mask)) - 1;
    if (s.row < 0 || s.rows < 1 || s.row > p.rows || s.rows > p.rows - s.row)
      return "rows are beyond the weight";
    if (s.copy < 0 || s.row + s.rows > p.filters || s.copy > kConvMost ||
        (copies && s.copy + copies * s.rows > p.filters))
      return "mirrored copies are beyond the output's channels";
  }
  return "";
}

inline std::string conv_strides_check(const ConvParams& p) {
  const int64_t vector = p.dtype == 2 ? 4 : 8;
  const bool forward = p.op == 0;
  const int64_t x[] = {p.xs_n, p.xs_z, p.xs_y, p.xs_x}, y[] = {p.ys_n, p.ys_z, p.ys_y, p.ys_x};
  const int64_t sizes_x[] = {p.batch, p.x_z, p.x_y, p.x_x}, sizes_y[] = {p.batch, p.y_z, p.y_y, p.y_x};
  const int64_t *from = forward ? x : y, *sizes = forward ? sizes_x : sizes_y, *to = forward ? y : x;
  const int64_t inner = forward ? p.channels : p.filters;
  int64_t last = conv_bounded(p.groups, inner) / vector;
  for (int i = 0; i < 4; ++i) {
    if (from[i] < 0 || from[i] % vector) return "a stride of what is read is not a multiple of 16 bytes";
    last += conv_bounded(sizes[i] - 1, from[i] / vector);
    if (to[i] < 0 || to[i] > int64_t{1} << 42) return "a stride of what is written is negative, or too large";
  }
  if (last > kConvMost) return "what is read is too large for offsets of 32 bits";
  if (inner % vector) return "16 bytes do not divide the channels of a group";
  for (int64_t i = 0; i < p.segments && !forward; ++i) {
    const ConvSegment s = conv_segment(p, i);
    if (s.row % vector || s.rows % vector || (s.mask && s.copy % vector))
      return "16 bytes do not divide the channels of a member";
  }
  for (const int64_t stride : {p.ws_group, p.ws_row, p.ws_channel, p.ws_z, p.ws_y, p.ws_x})
    if (stride < 0 || stride > int64_t{1} << 42) return "a stride of the weight is negative, or too large";
  return "";
}

inline std::string conv_tile_check(const ConvParams& p) {
  const int64_t own = conv_bounded(p.tile_n, p.tile_z, p.tile_y, p.tile_x);
  if (p.warps < 1 || p.warps > 8) return "a CTA must have 1 to 8 warps";
  if (p.pixels < own || p.pixels > 512 || p.pixels % 16) return "the tile does not fit the pixels of a CTA";
  if (p.tile_n > 64 || p.tile_z > 64) return "a tile has too many images or planes";
  if (p.stages < 2 || p.stages > 3) return "there must be 2 or 3 stages";
  if (p.weight_bytes < 0 || p.weight_bytes > 1 << 20) return "weight_bytes is out of range";
  if (p.unfolded < 0 || p.unfolded > 7) return "unfolded is not of three axes";
  if (p.op ? p.columns != 64 && p.columns != 128 : p.columns != 0)
    return "columns must be 64 or 128, or 0 forward";
  if (p.shared_bytes < 0 || p.shared_bytes > 1 << 19) return "shared_bytes is out of range";
  return p.resident < 1 || p.resident > 32 ? "resident is out of range" : "";
}

// Kernel, stride, tile and halo tile of one axis.
inline ConvAxis conv_axis(const ConvParams& p, int i) {
  const int64_t x[] = {p.x_x, p.x_y, p.x_z}, y[] = {p.y_x, p.y_y, p.y_z};
  const int64_t kernel[] = {p.kernel_x, p.kernel_y, p.kernel_z},
                stride[] = {p.stride_x, p.stride_y, p.stride_z};
  const int64_t dilation[] = {p.dilation_x, p.dilation_y, p.dilation_z};
  const int64_t padding[] = {p.padding_x, p.padding_y, p.padding_z}, tile[] = {p.tile_x, p.tile_y, p.tile_z};
  ConvAxis a{};
  a.kernel = int(kernel[i]), a.stride = int(stride[i]), a.dilation = int(dilation[i]);
  a.padding = int(padding[i]), a.tile = int(tile[i]);
  const bool forward = p.op == 0;
  a.source = int(forward ? x[i] : y[i]), a.target = int(forward ? y[i] : x[i]);
  a.classes = forward ? 1 : a.stride;
  a.tiles = int(conv_ceil(conv_ceil(a.target, a.classes), a.tile));
  // Where all taps and pixels read multiples of a number, only those are in the halo tile.
  a.sample = !forward ? 1 : a.kernel == 1 ? a.stride : std::gcd(a.stride, a.dilation);
  a.step = forward ? a.stride / a.sample : 1;
  const int64_t reach = int64_t{a.dilation} * (a.kernel - 1) / (forward ? a.sample : a.stride);
  a.extent = int(std::min<int64_t>(int64_t{a.tile - 1} * a.step + reach + 1, kConvMost));
  a.per_phase = int(conv_ceil(a.extent, a.step));
  a.by_tiles = conv_divisor(a.tiles), a.by_per_phase = conv_divisor(a.per_phase);
  return a;
}

// Places between neighbours: windows of 8 pixels that go over the edge of a row must meet every bank once
// too.
inline int64_t conv_pitch(int64_t places, int64_t pixels) {
  return pixels % 8 == 0 ? places : places + ((pixels - places) % 8 + 8) % 8;
}

inline bool conv_halo(const ConvParams& p, ConvShape& s) {
  int64_t pitch = 1, pixels = 1;
  for (int i = 0; i < 3; ++i) {
    ConvAxis& a = s.axis[i] = conv_axis(p, i);
    a.pitch = int(pitch), a.by_pitch = conv_divisor(a.pitch);
    pixels *= a.tile;
    pitch = conv_pitch(conv_bounded(pitch, a.step, a.per_phase), pixels);
    if (pitch > 1 << 16) return false;
  }
  s.image_pitch = int(pitch), s.by_image_pitch = conv_divisor(s.image_pitch);
  s.tile_images = int(p.tile_n), s.image_tiles = int(conv_ceil(p.batch, p.tile_n));
  s.places = int(pitch * p.tile_n);
  s.slice_bytes = s.places * kConvPitch;
  return s.places <= 1 << 14;
}

// The largest weights of a stage with so many entries of a part.
inline int64_t conv_block_bytes(const ConvShape& s, const ConvPart& part, int entries) {
  int64_t most = 0;
  for (int c = 0; c < s.class_count; ++c) {
    const int all = conv_entries(s, part, c);
    for (int e = 0; e < all; e += entries)
      most = std::max<int64_t>(
          most, conv_first_product(s, part, std::min(e + entries, all)) - conv_first_product(s, part, e));
  }
  return most * part.columns * kConvChunk;
}

// As few stages as weight_bytes allow, all of about the same number of entries; 0 if not even one fits.
inline int conv_block_entries(const ConvShape& s, const ConvPart& part, int64_t weight_bytes) {
  int all = 0;
  for (int c = 0; c < s.class_count; ++c) all = std::max(all, conv_entries(s, part, c));
  for (int blocks = 1; blocks <= std::max(all, 1); ++blocks) {
    const int entries = std::max(int(conv_ceil(all, blocks)), 1);
    if (conv_block_bytes(s, part, entries) <= weight_bytes) return entries;
  }
  return 0;
}

// Members of a part: what is read of each (backward), where each is written (forward).
inline void conv_members(const ConvParams& p, const ConvSegment& segment, ConvPart& part) {
  const int64_t vector = p.dtype == 2 ? 4 : 8;
  part.slices = p.op == 0 ? 1 : 1 << part.order;
  for (int i = 0; i < 1 << part.order; ++i) {
    int member = part.fixed, bit = 0;
    for (int axis = 0; axis < 3; ++axis)
      if (part.mask >> axis & 1) member |= (i >> bit++ & 1) << axis;
    const int copy = part.copy_of[i] = conv_copy(segment.mask, member);
    const int64_t channel = copy ? segment.copy + (copy - 1) * segment.rows : segment.row;
    part.slice[i] = p.op == 0 ? 0 : int(channel / vector);
  }
}

// One part: contraction, table, columns. False where its weights do not fit.
inline bool conv_add_part(const ConvParams& p, const ConvSegment& segment, int mask, int fixed,
                          ConvShape& s) {
  const int64_t vector = p.dtype == 2 ? 4 : 8;
  if (s.parts == kConvParts) return false;
  ConvPart& part = s.part[s.parts++];
  part = {};
  part.mask = mask, part.fixed = fixed, part.order = __builtin_popcount(unsigned(mask));
  part.row = int(segment.row), part.rows = int(segment.rows), part.copy = int(segment.copy);
  part.pieces = int((p.op == 0 ? p.channels : segment.rows) / vector);
  part.chunks = int(conv_ceil(part.pieces, 4));
  conv_members(p, segment, part);
  const int fragments = conv_fragments(int(p.op), part.order, int(p.columns));
  const int columns = conv_warp_columns(int(p.op), part.order, int(p.columns));
  if (p.warps * fragments * 16 % p.pixels) return false;
  part.fragments = fragments;
  part.fragment_bits = __builtin_ctz(unsigned(fragments));
  part.run_bits = __builtin_ctz(unsigned(columns / 32));
  part.column_warps = int(p.warps * fragments * 16 / p.pixels);
  part.columns = columns * part.column_warps;
  part.blocks = int(conv_ceil(p.op == 0 ? segment.rows : p.channels, part.columns));
  part.entries = conv_block_entries(s, part, p.weight_bytes);
  if (!part.entries) return false;
  s.weight_bytes = int(std::max<int64_t>(s.weight_bytes, conv_block_bytes(s, part, part.entries)));
  part.range = s.ranges;
  s.ranges += s.class_count;
  for (int c = 0; c < s.class_count; ++c) {
    const int entries = conv_entries(s, part, c);
    s.entries += entries;
    part.products += conv_first_product(s, part, entries);
  }
  return true;
}

// Do 16 bytes divide all distances between results, those between members included?
inline bool conv_aligned(const ConvParams& p, const ConvSegment& segment) {
  int64_t common = p.op ? p.channels : std::gcd(p.filters, segment.row);
  if (!p.op && segment.mask) common = std::gcd(common, std::gcd(segment.copy, segment.rows));
  for (const int64_t stride :
       {p.op ? p.xs_n : p.ys_n, p.op ? p.xs_z : p.ys_z, p.op ? p.xs_y : p.ys_y, p.op ? p.xs_x : p.ys_x})
    common = std::gcd(common, stride);
  return common % (p.dtype == 2 ? 4 : 8) == 0;
}

inline std::string conv_parts(const ConvParams& p, ConvShape& s) {
  for (int64_t i = 0; i < p.segments; ++i) {
    const ConvSegment segment = conv_segment(p, i);
    const int unfolded = p.op == 0 ? 0 : int(p.unfolded & segment.mask);
    for (int fixed = unfolded;; fixed = (fixed - 1) & unfolded) {
      if (!conv_add_part(p, segment, int(segment.mask) & ~unfolded, fixed, s))
        return "the weights of a stage do not fit, or the warps do not fit the pixels";
      s.part[s.parts - 1].aligned = conv_aligned(p, segment);
      if (!fixed) break;
    }
  }
  const int64_t piece_columns =
      conv_bounded(p.groups, p.channels + p.rows * 8, p.kernel_z * p.kernel_y * p.kernel_x);
  if (piece_columns > kConvMost) return "the weight is too large for offsets of 32 bits";
  s.head = s.ranges + s.class_count;
  int64_t at = s.head + s.entries;
  for (int i = 0; i < s.parts; ++i) {
    ConvPart& part = s.part[i];
    part.weights = int(at);
    at += conv_bounded(p.groups, part.blocks, part.chunks, part.products, part.columns, 4);
    if (at > kConvMost) return "the weight is too large for offsets of 32 bits";
    s.group_blocks = s.gradient ? part.blocks : s.group_blocks + part.blocks;
  }
  s.column_blocks = int(conv_bounded(s.group_blocks, p.groups));
  return "";
}

inline std::string conv_shared(const ConvParams& p, ConvShape& s) {
  int slices = 1, blocks = 1 << 20;
  for (int i = 0; i < s.parts; ++i) {
    slices = std::max(slices, s.part[i].slices);
    for (int c = 0; c < s.class_count; ++c) {
      const int entries = conv_entries(s, s.part[i], c);
      if (entries) blocks = std::min(blocks, int(conv_ceil(entries, s.part[i].entries)));
    }
  }
  s.stages = int(p.stages);
  s.slots = 1 + int(conv_ceil(p.stages - 1, blocks));  // halo tiles in use or on their way
  const int64_t input = conv_ceil(int64_t{slices} * s.slice_bytes, 128) * 128;
  const int64_t table = int64_t{s.head + s.entries} * kConvEntryBytes;
  const int64_t total = s.slots * input + int64_t{p.stages} * s.weight_bytes + table + p.pixels * 8 +
                        p.warps * kConvCursorBytes + s.places * 4;
  if (total > p.shared_bytes) return "the tile does not fit the shared memory";
  s.input_bytes = int(input);
  s.weights_at = s.slots * s.input_bytes;
  s.table_at = s.weights_at + s.stages * s.weight_bytes;
  s.pixels_at = s.table_at + int(table);
  s.cursors_at = s.pixels_at + int(p.pixels) * 8;
  s.sources_at = s.cursors_at + int(p.warps) * kConvCursorBytes;
  s.shared_bytes = int(total);
  return "";
}

// Fills `s`; nothing, or what is wrong.
inline std::string conv_shape(const ConvParams& p, ConvShape& s) {
  std::string wrong = conv_sizes_check(p);
  if (wrong.empty()) wrong = conv_segments_check(p);
  if (wrong.empty()) wrong = conv_strides_check(p);
  if (wrong.empty()) wrong = conv_tile_check(p);
  if (!wrong.empty()) return wrong;
  s = {};
  s.gradient = int(p.op), s.batch = int(p.batch), s.groups = int(p.groups);
  s.channels = int(p.channels), s.rows = int(p.rows), s.filters = int(p.filters);
  s.activation = int(p.activation), s.warps = int(p.warps), s.resident = int(p.resident);
  s.pixels = int(p.pixels);
  if (!conv_halo(p, s)) return "the halo tile is too large";
  s.class_count = s.axis[0].classes * s.axis[1].classes * s.axis[2].classes;
  if (s.class_count > 64) return "the strides make too many classes of pixels";
  const int vector = p.dtype == 2 ? 4 : 8;
  const int64_t x[] = {p.xs_x, p.xs_y, p.xs_z}, y[] = {p.ys_x, p.ys_y, p.ys_z};
  for (int i = 0; i < 3; ++i) {
    s.from[i] = int((p.op ? y[i] : x[i]) / vector);
    s.to[i] = p.op ? x[i] : y[i];
  }
  s.from_image = int((p.op ? p.ys_n : p.xs_n) / vector), s.to_image = p.op ? p.xs_n : p.ys_n;
  s.from_group = int((p.op ? p.filters : p.channels) / vector);
  s.w_group = p.ws_group, s.w_row = p.ws_row, s.w_channel = p.ws_channel;
  s.w[0] = p.ws_x, s.w[1] = p.ws_y, s.w[2] = p.ws_z;
  wrong = conv_parts(p, s);
  if (wrong.empty()) wrong = conv_shared(p, s);
  if (!wrong.empty()) return wrong;
  const int64_t tiles = conv_bounded(s.image_tiles, s.axis[0].tiles, s.axis[1].tiles, s.axis[2].tiles,
                                     s.class_count, s.column_blocks);
  if (tiles > kConvMost) return "there are too many tiles";
  s.tiles = int(tiles);
  s.by_column_blocks = conv_divisor(s.column_blocks), s.by_class_count = conv_divisor(s.class_count);
  s.by_group_blocks = conv_divisor(s.group_blocks);
  return "";
}

}  // namespace
}  // namespace symconv
