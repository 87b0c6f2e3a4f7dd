// Before the kernels: the table of taps, and the weights folded and packed as the images of their blocks.
#pragma once
#include "conv/shape.h"
#include "device.h"

namespace symconv {
namespace {

// Part, class and entry of line `index` of the table.
struct ConvPlace {
  int part, c, entry, first, first_product;
};

__device__ __forceinline__ ConvPlace conv_place(const ConvShape& s, int index) {
  ConvPlace at{0, 0, index - s.head, 0, 0};
  int first = 0;
  for (int r = 0; r < s.ranges; ++r) {
    const int part = r / s.class_count, c = r % s.class_count;
    const int entries = conv_entries(s, s.part[part], c);
    if (c == 0) at.first_product = 0;
    at.part = part, at.c = c, at.first = first;
    if (index < s.ranges ? r == index : at.entry < entries) return at;
    at.entry -= entries;
    first += entries;
    at.first_product += conv_first_product(s, s.part[part], entries);
  }
  return at;
}

// An entry: the bytes from a pixel's place to the window of its tap (24 bits), what is done with it (4 bits,
// as ConvWarp::enter numbers it), the logarithm of its products (4 bits); then for each paired axis the bytes
// to the window of the mirrored tap. The low 12 bits of the last word are the products before it. Forward,
// axis i of the paired ones is the i-th folded axis; backward paired axes come first.
__device__ __forceinline__ uint128 conv_entry(const ConvShape& s, const ConvPlace& at) {
  const ConvPart& p = s.part[at.part];
  const ConvTap t = conv_tap(s, p, at.c, at.entry);
  int offset = 0, paired = 0, bit = 0, pairs = 0, delta[3] = {0, 0, 0};
  for (int axis = 0; axis < 3; ++axis) {
    const int c = conv_class(s, at.c, axis), last = s.axis[axis].kernel - 1;
    const bool folded = p.mask >> axis & 1;
    const int slice = s.gradient && folded ? s.slice_bytes << bit : 0;
    const int plain = t.take[axis] & 1 ? conv_offset(s, axis, c, t.tap[axis]) * kConvPitch : 0;
    const int mirrored =
        t.take[axis] & 2 ? conv_offset(s, axis, c, last - t.tap[axis]) * kConvPitch + slice : 0;
    offset += t.take[axis] & 1 ? plain : mirrored;
    if (t.take[axis] == 3) {
      const int to = s.gradient ? pairs++ : bit;
      paired |= 1 << to, delta[to] = mirrored - plain;
    }
    bit += folded;
  }
  const int first = conv_first_product(s, p, at.entry);
  const int number =
      !s.gradient ? (1 << p.order) - 1 + paired : pairs + (p.columns == 64 * p.column_warps ? 4 : 0);
  const int more = s.gradient ? 0 : (paired & 1) + (paired >> 1 & 1) + (paired >> 2);
  return {static_cast<uint32_t>(offset | number << 24) | static_cast<uint32_t>(more) << 28,
          static_cast<uint32_t>(delta[0]), static_cast<uint32_t>(delta[1]),
          static_cast<uint32_t>(delta[2]) << 12 | static_cast<uint32_t>(first)};
}

// A class of pixels: where its first tile's halo tile begins, and its position modulo the strides, 10 bits
// each.
__device__ __forceinline__ uint128 conv_class_line(const ConvShape& s, int c) {
  const int x = conv_class(s, c, 0), y = conv_class(s, c, 1), z = conv_class(s, c, 2);
  return {static_cast<uint32_t>(conv_origin(s, 0, x)), static_cast<uint32_t>(conv_origin(s, 1, y)),
          static_cast<uint32_t>(conv_origin(s, 2, z)), static_cast<uint32_t>(x | y << 10 | z << 20)};
}

__device__ __forceinline__ void conv_write_table(const ConvShape& s, int index, uint8_t* workspace) {
  const ConvPlace at = conv_place(s, index);
  uint128 value;
  if (index < s.ranges) {
    const int entries = conv_entries(s, s.part[at.part], at.c);
    value = {static_cast<uint32_t>(at.first), static_cast<uint32_t>(entries),
             static_cast<uint32_t>(at.first_product),
             static_cast<uint32_t>(conv_first_product(s, s.part[at.part], entries))};
  } else if (index < s.head) {
    value = conv_class_line(s, index - s.ranges);
  } else {
    value = conv_entry(s, at);
  }
  global_store16(workspace + int64_t{index} * 16, value);
}

// What a product multiplies: a tap of a filter, for the forward pass its even or odd part along paired axes.
// In float16 the operand is the mean of what was folded, so the weight is their number times the part.
template <class T>
__device__ __forceinline__ float conv_weight(const ConvShape& s, const ConvTap& t, int parity, const void* w,
                                             int64_t start) {
  float sum = 0.0f;
  int pairs = 0;
  for (int axis = 0; axis < 3; ++axis) pairs += t.take[axis] == 3;
  const int members = s.gradient ? 1 : 1 << pairs;
  for (int member = 0; member < members; ++member) {
    int64_t place = start;
    int bit = 0, odd = 0;
    for (int axis = 0; axis < 3; ++axis) {
      const bool pair = t.take[axis] == 3 && !s.gradient;
      const bool mirrored = pair && (member >> bit & 1);
      odd ^= mirrored && (parity >> bit & 1);
      place += s.w[axis] * (mirrored ? s.axis[axis].kernel - 1 - t.tap[axis] : t.tap[axis]);
      bit += pair;
    }
    const float v = load_element<T>(w, place);
    sum += odd ? -v : v;
  }
  const float folded = kFold<T> == 2.0f ? static_cast<float>(1 << pairs) : 1.0f;
  return sum * (folded / static_cast<float>(members));
}

template <class T>
__device__ __forceinline__ uint128 conv_pack(const float (&v)[kVector<T>]) {
  if constexpr (T::kBytes == 4) {
    return {operand<T>(__float_as_uint(v[0])), operand<T>(__float_as_uint(v[1])),
            operand<T>(__float_as_uint(v[2])), operand<T>(__float_as_uint(v[3]))};
  } else {
    return {pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3]), pack2<T>(v[4], v[5]), pack2<T>(v[6], v[7])};
  }
}

// Column of a block that lies in a row of its image: a lane ends up with 8 consecutive ones of every 32.
__device__ __forceinline__ int conv_column(int row) {
  return row / 32 * 32 + row % 8 / 2 * 8 + row % 32 / 8 * 2 + row % 2;
}

// Tap of a product counted over all classes of the gradient of the input.
__device__ __forceinline__ ConvTap conv_class_tap(const ConvShape& s, const ConvPart& p, int product) {
  int c = 0;
  for (; c < s.class_count - 1; ++c) {
    const int entries = conv_entries(s, p, c);
    if (product < entries) break;
    product -= entries;
  }
  return conv_tap(s, p, c, product);
}

// One piece of 16 bytes of a part's packed weights: group, block, chunk, product, row, piece.
template <class T>
__device__ __forceinline__ void conv_pack_piece(const ConvShape& s, const ConvPart& p, int index,
                                                const void* w, uint8_t* workspace) {
  const int piece = index % 4, product = index / 4 % p.products;
  index = index / 4 / p.products;
  const int row = index % p.columns, chunk = index / p.columns % p.chunks;
  const int block = index / p.columns / p.chunks;  // of all groups
  const int column = block % p.blocks * p.columns + conv_column(row);
  const int first = chunk * (kConvChunk / T::kBytes) + piece * kVector<T>;
  int parity = 0;
  const ConvTap t = s.gradient ? conv_class_tap(s, p, product) : conv_product(s, p, product, parity);
  const int columns = s.gradient ? s.channels : p.rows, depth = s.gradient ? p.rows : s.channels;
  const int64_t along = s.gradient ? s.w_row : s.w_channel;
  const int64_t start = block / p.blocks * s.w_group + (s.gradient ? p.row : p.row + column) * s.w_row +
                        (s.gradient ? column * s.w_channel : 0);
  float v[kVector<T>];
  for (int i = 0; i < kVector<T>; ++i)
    v[i] = column < columns && first + i < depth
               ? conv_weight<T>(s, t, parity, w, start + (first + i) * along)
               : 0.0f;
  const int64_t to = ((int64_t{block} * p.chunks + chunk) * p.products + product) * p.columns + row;
  global_store16(workspace + (p.weights + to * 4 + (piece ^ (row >> 1 & 3))) * 16, conv_pack<T>(v));
}

// Threads of a part, and of the table.
CONV_BOTH int64_t conv_part_pieces(const ConvShape& s, const ConvPart& p) {
  return int64_t{s.groups} * p.blocks * p.chunks * p.products * p.columns * 4;
}

template <class T>
__global__ void __launch_bounds__(256)
    conv_prepare(const void* w, uint8_t* workspace, const __grid_constant__ ConvShape s) {
  int index = block() * 256 + thread();
  const int table = s.head + s.entries;
  if (index < table) {
    conv_write_table(s, index, workspace);
    return;
  }
  index -= table;
  for (int i = 0; i < s.parts; ++i) {
    const int pieces = static_cast<int>(conv_part_pieces(s, s.part[i]));
    if (index < pieces) {
      conv_pack_piece<T>(s, s.part[i], index, w, workspace);
      return;
    }
    index -= pieces;
  }
}

}  // namespace
}  // namespace symconv
