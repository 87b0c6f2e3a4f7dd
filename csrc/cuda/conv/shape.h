// A call of the general matrix kernels as they take it: one struct of 32-bit numbers, and the geometry of
// taps.
//
// A CTA computes a tile of pixels times a block of columns: orbits of the forward pass, input channels of the
// gradient of the input. Under the tile lies a halo tile of what is read, pixel by pixel ("places") in shared
// memory, kPitch bytes each. Pixels of the gradient of the input are taken by class, that is by their
// position modulo the stride, so that either pass reads windows of consecutive places: positions of the halo
// tile are stored by phase, and the window of a tap is a shift of the window of another.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define CONV_BOTH __host__ __device__ __forceinline__
#else
#define CONV_BOTH inline
#endif

namespace symconv {

constexpr int kConvChunk = 64;        // bytes of a pixel in a stage: two steps of a product
constexpr int kConvPitch = 80;        // bytes of a place: windows of 8 places then meet no bank twice
constexpr int kConvParts = 16;        // segments, and parts of them that are contracted separately
constexpr int kConvMembers = 8;       // of the largest orbits
constexpr int kConvCursorBytes = 80;  // of a warp's place in the copies
constexpr int kConvEntryBytes = 16;   // of the table of taps

// Divides by a number that kernels are given, by multiplication: of dividends from 0 to 2^31 - 1.
struct ConvDivisor {
  uint32_t by, multiplier, shift;
};

// One axis: 0 is x, 1 is y, 2 is z, as the bits of a mask.
struct ConvAxis {
  int kernel, stride, dilation, padding;
  int source, target;     // sizes of the map that is read and of the map that is written
  int classes;            // of pixels: the stride for the gradient of the input, else 1
  int tile, tiles;        // pixels of a tile; tiles of a class
  int sample;             // positions of the map from one position of the halo tile to the next
  int step;               // positions of the halo tile from pixel to pixel: as many phases
  int extent, per_phase;  // positions of the halo tile, and places of each phase
  int pitch;              // places from one place of this axis to the next
  ConvDivisor by_tiles, by_per_phase, by_pitch;
};

// Rows of the weight that share a tie, or for the gradient of the input a part of their members.
struct ConvPart {
  int mask;                     // folded axes
  int fixed;                    // axes that are not folded along which this part is mirrored
  int order;                    // number of folded axes
  int row, rows, copy;          // of a group
  int pieces, chunks;           // contracted: pieces of 16 bytes, chunks of 64
  int slices;                   // halo tiles of a chunk: members that are added
  int slice[kConvMembers];      // pieces from the start of a pixel's group to each
  int entries;                  // of the table of taps in a stage, at most
  int range;                    // first of its ranges, one a class
  int products;                 // of a chunk and column, over all classes
  int columns, blocks;          // columns of a CTA; blocks of them that a group has
  int column_warps;             // warps side by side over the columns
  int fragments;                // of 16 pixels of a warp
  int fragment_bits, run_bits;  // logarithms of them, and of a warp's columns by 32
  int copy_of[kConvMembers];    // forward: the number of the copy for each set of folded axes
  int aligned;  // may 8 channels from any multiple of 8 of a member on be stored 16 bytes at a time?
  int weights;  // start in the workspace, in pieces
};

struct ConvShape {
  ConvAxis axis[3];
  ConvPart part[kConvParts];
  int parts, gradient, groups, batch;
  int tile_images, image_tiles, image_pitch;  // images of a tile, tiles of them, places from one to the next
  int pixels, places;                         // of a CTA; of a halo tile
  int class_count, column_blocks, tiles;      // column_blocks: of all groups and, forward, all segments
  int group_blocks;                           // column_blocks of one group
  int from_image, from[3], from_group;        // strides of what is read, in pieces
  int channels, rows, filters, activation;
  int64_t to_image, to[3];  // strides of what is written, in elements
  int64_t w_group, w_row, w_channel, w[3];
  int stages, slots, slice_bytes, input_bytes, weight_bytes;
  // The table: ranges (class by class, part by part), one line for each class (conv_class_line), entries.
  int ranges, head, entries;  // ranges; with the classes' lines; entries
  ConvDivisor by_column_blocks, by_class_count, by_group_blocks, by_image_pitch;
  int weights_at, table_at, pixels_at, sources_at, cursors_at, shared_bytes;
  int warps, resident;
};

// Entries of the table of taps for one part and class, and the products that they make.
struct ConvRange {
  int first, entries, first_product, products;
};

CONV_BOTH int conv_class(const ConvShape& s, int c, int axis) {
  const int x = s.axis[0].classes, y = s.axis[1].classes;
  return axis == 0 ? c % x : axis == 1 ? c / x % y : c / (x * y);
}

// Is the position that a tap of the gradient of the input would read on the grid of the output?
CONV_BOTH bool conv_in_phase(const ConvAxis& a, int c, int tap) {
  return (c + a.padding - a.dilation * tap) % a.stride == 0;
}

// What a part takes of a tap along one axis for pixels of a class: 1 as it is, 2 mirrored, 3 both, added.
// Forward, 3 is a tap whose mirror image is another one; the later of the two is part of the earlier's entry.
CONV_BOTH int conv_take(const ConvShape& s, const ConvPart& p, int axis, int c, int tap) {
  const ConvAxis& a = s.axis[axis];
  const bool folded = p.mask >> axis & 1;
  if (!s.gradient) return !folded || 2 * tap + 1 == a.kernel ? 1 : 2 * tap + 1 < a.kernel ? 3 : 0;
  const bool plain = conv_in_phase(a, c, tap), mirrored = conv_in_phase(a, c, a.kernel - 1 - tap);
  if (folded) return plain + 2 * mirrored;
  return p.fixed >> axis & 1 ? 2 * mirrored : plain;
}

CONV_BOTH int conv_count(const ConvShape& s, const ConvPart& p, int axis, int c) {
  int count = 0;
  for (int tap = 0; tap < s.axis[axis].kernel; ++tap) count += conv_take(s, p, axis, c, tap) != 0;
  return count;
}

// An entry: a tap and what is taken of it along each axis.
struct ConvTap {
  int tap[3], take[3];
};

// Entry `index` of a part and class; the last axis is innermost.
CONV_BOTH ConvTap conv_tap(const ConvShape& s, const ConvPart& p, int c, int index) {
  ConvTap t;
  for (int axis = 0; axis < 3; ++axis) {
    const int at = conv_class(s, c, axis), count = conv_count(s, p, axis, at);
    int left = index % count;
    index /= count;
    for (int tap = 0; tap < s.axis[axis].kernel; ++tap) {
      const int take = conv_take(s, p, axis, at, tap);
      if (take && left-- == 0) t.tap[axis] = tap, t.take[axis] = take;
    }
  }
  return t;
}

CONV_BOTH int conv_entries(const ConvShape& s, const ConvPart& p, int c) {
  int entries = 1;
  for (int axis = 0; axis < 3; ++axis) entries *= conv_count(s, p, axis, conv_class(s, c, axis));
  return entries;
}

// Products of an entry, and of all entries before one. Backward each entry makes one.
CONV_BOTH int conv_products(const ConvShape& s, const ConvTap& t) {
  return s.gradient ? 1 : 1 << ((t.take[0] == 3) + (t.take[1] == 3) + (t.take[2] == 3));
}
CONV_BOTH int conv_first_product(const ConvShape& s, const ConvPart& p, int index) {
  if (s.gradient) return index;
  const int x = conv_count(s, p, 0, 0), y = conv_count(s, p, 1, 0), z = conv_count(s, p, 2, 0);
  if (index >= x * y * z) return s.axis[0].kernel * s.axis[1].kernel * s.axis[2].kernel;
  // An axis makes two products of a pair of taps and one of any other tap, and all pairs come first.
  const ConvTap t = conv_tap(s, p, 0, index);
  const int twice[] = {1 + (p.mask & 1), 1 + (p.mask >> 1 & 1), 1 + (p.mask >> 2 & 1)};
  const int of_z = 1 + (t.take[2] == 3), of_y = 1 + (t.take[1] == 3);
  return t.tap[2] * twice[2] * s.axis[1].kernel * s.axis[0].kernel +
         of_z * (t.tap[1] * twice[1] * s.axis[0].kernel + of_y * t.tap[0] * twice[0]);
}

// The entry of the forward pass that a product belongs to, and its parity: bit i is set where it is odd along
// the i-th axis of those on which the entry pairs taps.
CONV_BOTH ConvTap conv_product(const ConvShape& s, const ConvPart& p, int product, int& parity) {
  ConvTap t;
  int pairs = 1;  // products of a tap of the axes so far
  for (int axis = 2; axis >= 0; --axis) {
    const int inner = axis == 2 ? s.axis[1].kernel * s.axis[0].kernel : axis == 1 ? s.axis[0].kernel : 1;
    const int twice = 1 + (p.mask >> axis & 1);
    t.tap[axis] = product / (pairs * inner) / twice;
    t.take[axis] = conv_take(s, p, axis, 0, t.tap[axis]);
    product -= t.tap[axis] * twice * pairs * inner;
    pairs *= t.take[axis] == 3 ? 2 : 1;
  }
  parity = product;
  return t;
}

// First position of the map under the halo tile of the first tile of a class.
CONV_BOTH int conv_origin(const ConvShape& s, int axis, int c) {
  const ConvAxis& a = s.axis[axis];
  if (!s.gradient) return -a.padding;
  for (int tap = a.kernel - 1; tap >= 0; --tap)
    if (conv_in_phase(a, c, tap)) return (c + a.padding - a.dilation * tap) / a.stride;
  return 0;
}

// Places from the place of a pixel to what a tap reads of it, along one axis.
CONV_BOTH int conv_offset(const ConvShape& s, int axis, int c, int tap) {
  const ConvAxis& a = s.axis[axis];
  if (s.gradient) return ((c + a.padding - a.dilation * tap) / a.stride - conv_origin(s, axis, c)) * a.pitch;
  const int position = tap * a.dilation / a.sample;
  return (position % a.step * a.per_phase + position / a.step) * a.pitch;
}

}  // namespace symconv
