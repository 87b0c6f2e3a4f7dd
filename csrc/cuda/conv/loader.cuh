// Where a tile lies, and the copies of its stages: they run ahead of the products, over the edges of tiles.
#pragma once
#include "conv/shape.h"
#include "device.h"

namespace symconv {
namespace {

// Forward, a tile has the columns of one part; backward, all parts go into the same sums.
struct ConvTile {
  int image, origin[3];  // first image; first pixel of each axis, counted in its class
  int c, group, part, parts_end, column;
};

__device__ __forceinline__ ConvTile conv_locate(const ConvShape& s, int tile) {
  ConvTile at;
  int block = tile % s.column_blocks;
  tile /= s.column_blocks;
  at.c = tile % s.class_count;
  tile /= s.class_count;
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    at.origin[axis] = tile % s.axis[axis].tiles * s.axis[axis].tile;
    tile /= s.axis[axis].tiles;
  }
  at.image = tile * s.tile_images;
  at.group = block / s.group_blocks;
  block %= s.group_blocks;
  at.part = 0;
  if (!s.gradient)
    while (block >= s.part[at.part].blocks) block -= s.part[at.part++].blocks;
  at.parts_end = s.gradient ? s.parts : at.part + 1;
  at.column = block * s.part[at.part].columns;
  return at;
}

__device__ __forceinline__ ConvRange conv_range(const ConvShape& s, uint32_t table, const ConvPart& p,
                                                int c) {
  const uint128 v = shared_load16(table + (p.range + c) * kConvEntryBytes);
  return {static_cast<int>(v.x), static_cast<int>(v.y), static_cast<int>(v.z), static_cast<int>(v.w)};
}

// The copies of one stage after the other, over all tiles of this CTA.
struct ConvLoader {
  const ConvShape& s;
  const uint8_t *x, *packed;
  uint32_t shared;
  int tile;
  ConvTile at;
  ConvRange range;
  int chunk = -1, entry = 0, input = 0, weights = 0;  // chunk: -1 of a tile whose sources are not yet known

  __device__ __forceinline__ void start() {
    if (tile < s.tiles) {
      at = conv_locate(s, tile);
      find_part();
    }
  }

  // The first part of a tile from here on that has taps; classes without taps have none.
  __device__ __forceinline__ void find_part() {
    while (tile < s.tiles) {
      for (; at.part < at.parts_end; ++at.part) {
        range = conv_range(s, shared + s.table_at, s.part[at.part], at.c);
        if (range.entries) {
          if (chunk < 0) find_sources();
          chunk = 0;
          return;
        }
      }
      next_tile();
    }
  }
  __device__ __forceinline__ void next_tile() {
    tile += blocks();
    chunk = -1;
    if (tile < s.tiles) at = conv_locate(s, tile);
  }

  // For each place of the halo tile where it lies in what is read, in pieces: -1 outside of the map, where
  // zeros belong, -2 where nobody reads. Four lanes share the places of their pieces, and a place's own four
  // use it.
  __device__ __forceinline__ void find_sources() {
    warp_barrier();
    const int stride = threads();
    int origin[3];
#pragma unroll
    for (int axis = 0; axis < 3; ++axis)
      origin[axis] = conv_origin(s, axis, conv_class(s, at.c, axis)) +
                     at.origin[axis] * s.axis[axis].step * s.axis[axis].sample;
    for (int place = thread() / 4 + thread() % 4 * (stride / 4); place < s.places; place += stride) {
      int left = place % s.image_pitch;
      uint32_t source = static_cast<uint32_t>((place / s.image_pitch + at.image) * s.from_image);
      bool inside = place / s.image_pitch + at.image < s.batch, used = true;
#pragma unroll
      for (int axis = 2; axis >= 0; --axis) {
        const ConvAxis& a = s.axis[axis];
        const int along = left / a.pitch;
        left %= a.pitch;
        const int position = along % a.per_phase * a.step + along / a.per_phase;
        used = used && position < a.extent && along < a.per_phase * a.step;
        const int to = origin[axis] + position * a.sample;
        inside = inside && to >= 0 && to < a.source;
        source += static_cast<uint32_t>(to) * s.from[axis];
      }
      shared_store(shared + s.sources_at + place * 4, !used ? ~1u : inside ? source : ~0u);
    }
    warp_barrier();
  }

  __device__ __forceinline__ void copy_input(const ConvPart& p) {
    const int left = p.pieces - chunk * 4, piece = thread() % 4;
    if (piece < (left > 2 ? 4 : 2)) {
      for (int slice = 0; slice < p.slices; ++slice) {
        const uint8_t* from = x + int64_t{at.group * s.from_group + p.slice[slice] + chunk * 4 + piece} * 16;
        const uint32_t to = shared + input + slice * s.slice_bytes + piece * 16;
#pragma unroll 4
        for (int place = thread() / 4; place < s.places; place += threads() / 4) {
          const int source = static_cast<int>(shared_load(shared + s.sources_at + place * 4));
          const bool read = source >= 0 && piece < left;
          if (source != -2)
            copy16(to + place * kConvPitch, read ? from + int64_t{source} * 16 : x, read ? 16 : 0);
        }
      }
    }
    input = input + s.input_bytes == s.slots * s.input_bytes ? 0 : input + s.input_bytes;
  }

  __device__ __forceinline__ int products_before(int index) {
    if (index >= range.entries) return range.products;
    const uint32_t table = shared + s.table_at + (s.ranges + range.first + index) * kConvEntryBytes;
    return static_cast<int>(shared_load(table + 12) & 4095);
  }

  __device__ __forceinline__ void copy_weights(const ConvPart& p) {
    const int first = products_before(entry),
              many = (products_before(entry + p.entries) - first) * p.columns * 4;
    const int64_t block = int64_t{at.group} * p.blocks + at.column / p.columns;
    const int64_t start =
        p.weights + ((block * p.chunks + chunk) * p.products + range.first_product + first) * p.columns * 4;
    const uint8_t* from = packed + start * 16;
    const uint32_t to = shared + s.weights_at + weights;
#pragma unroll 4
    for (int i = thread(); i < many; i += threads()) copy16(to + i * 16, from + int64_t{i} * 16, 16);
    weights = weights + s.weight_bytes == s.stages * s.weight_bytes ? 0 : weights + s.weight_bytes;
  }

  // One stage; nothing behind the last.
  __device__ __forceinline__ void issue() {
    if (tile >= s.tiles) return;
    const ConvPart& p = s.part[at.part];
    if (entry == 0) copy_input(p);
    copy_weights(p);
    entry += p.entries;
    if (entry < range.entries) return;
    entry = 0;
    if (++chunk < p.chunks) return;
    ++at.part;
    chunk = 0;
    find_part();
  }
};

}  // namespace
}  // namespace symconv
