// Where a tile lies, and the copies of its stages: they run ahead of the products, over the edges of tiles.
#pragma once
#include "conv/shape.h"
#include "device.h"

namespace symconv {
namespace {

// Forward, a tile has the columns of one part; backward, all parts go into the same sums.
struct ConvTile {
  int image, origin[3];  // first image; first pixel of each axis, counted in its class
  int c, group, part, parts_end, block;
};

__device__ __forceinline__ int conv_divide(int n, const ConvDivisor& d) {
  return d.by == 1 ? n : static_cast<int>(__umulhi(static_cast<uint32_t>(n), d.multiplier) >> d.shift);
}
// The quotient is left in n, the remainder comes back.
__device__ __forceinline__ int conv_split(int& n, const ConvDivisor& d) {
  const int all = n;
  n = conv_divide(n, d);
  return all - n * static_cast<int>(d.by);
}

__device__ __forceinline__ ConvTile conv_locate(const ConvShape& s, int tile) {
  ConvTile at;
  at.block = conv_split(tile, s.by_column_blocks);
  at.c = conv_split(tile, s.by_class_count);
#pragma unroll
  for (int axis = 0; axis < 3; ++axis)
    at.origin[axis] = conv_split(tile, s.axis[axis].by_tiles) * s.axis[axis].tile;
  at.image = tile * s.tile_images;
  at.group = at.block;
  at.block = conv_split(at.group, s.by_group_blocks);
  at.part = 0;
  if (!s.gradient)
    while (at.block >= s.part[at.part].blocks) at.block -= s.part[at.part++].blocks;
  at.parts_end = s.gradient ? s.parts : at.part + 1;
  return at;
}

__device__ __forceinline__ ConvRange conv_range(const ConvShape& s, uint32_t table, const ConvPart& p,
                                                int c) {
  const uint128 v = shared_load16(table + (p.range + c) * kConvEntryBytes);
  return {static_cast<int>(v.x), static_cast<int>(v.y), static_cast<int>(v.z), static_cast<int>(v.w)};
}

// How far the copies are: the next stage of a tile, the places of its slots, and how many stages are still to
// be copied before the first is multiplied.
struct ConvCursor {
  ConvTile at;
  ConvRange range;
  int tile, chunk, chunks, entry, input, weights, missing;
};

// The copies of one stage after the other, over all tiles of this CTA. Each warp keeps its cursor in shared
// memory: between two stages all registers are the products'.
struct ConvLoader {
  const ConvShape& s;
  const uint8_t *x, *packed;
  uint32_t shared;

  __device__ __forceinline__ ConvCursor load() const {
    const uint32_t from = shared + s.cursors_at + thread() / 32 * kConvCursorBytes;
    int v[20];
#pragma unroll
    for (int i = 0; i < 20; i += 4) {
      const uint128 four = shared_load16(from + i * 4);
      v[i] = four.x, v[i + 1] = four.y, v[i + 2] = four.z, v[i + 3] = four.w;
    }
    return {{v[0], {v[1], v[2], v[3]}, v[4], v[5], v[6], v[7], v[8]},
            {v[9], v[10], v[11], v[12]},
            v[13],
            v[14],
            v[15],
            v[16],
            v[17],
            v[18],
            v[19]};
  }
  __device__ __forceinline__ void store(const ConvCursor& c) const {
    const int v[20] = {c.at.image,       c.at.origin[0], c.at.origin[1],  c.at.origin[2],
                       c.at.c,           c.at.group,     c.at.part,       c.at.parts_end,
                       c.at.block,       c.range.first,  c.range.entries, c.range.first_product,
                       c.range.products, c.tile,         c.chunk,         c.chunks,
                       c.entry,          c.input,        c.weights,       c.missing};
    const uint32_t to = shared + s.cursors_at + thread() / 32 * kConvCursorBytes;
    warp_barrier();
    if (lane() == 0) {
#pragma unroll
      for (int i = 0; i < 20; i += 4)
        shared_store16(to + i * 4, {static_cast<uint32_t>(v[i]), static_cast<uint32_t>(v[i + 1]),
                                    static_cast<uint32_t>(v[i + 2]), static_cast<uint32_t>(v[i + 3])});
    }
    warp_barrier();
  }

  // Before the first tile.
  __device__ __forceinline__ void start() const {
    ConvCursor c = {};
    c.tile = block() - blocks();
    c.at.part = -1;
    c.missing = s.stages - 1;
    store(c);
  }

  // The first part from here on that has taps, of this tile or a later one; some classes have none.
  __device__ __forceinline__ bool find_part(ConvCursor& c) const {
    bool moved = false;
    while (true) {
      for (; c.at.part < c.at.parts_end; ++c.at.part) {
        const ConvPart& p = s.part[c.at.part];
        c.range = conv_range(s, shared + s.table_at, p, c.at.c);
        if (c.range.entries == 0) continue;
        if (moved) find_sources(c.at);
        c.chunk = 0, c.chunks = p.chunks;
        return true;
      }
      c.tile += blocks(), moved = true;
      if (c.tile >= s.tiles) return false;
      c.at = conv_locate(s, c.tile);
    }
  }

  // For each place of the halo tile where it lies in what is read, in pieces: -1 outside of the map, where
  // zeros belong, -2 where nobody reads. Four lanes share the places of their pieces, and a place's own four
  // use it.
  __device__ __forceinline__ void find_sources(const ConvTile& at) const {
    warp_barrier();
    const int stride = threads();
    const uint128 line = shared_load16(shared + s.table_at + (s.ranges + at.c) * kConvEntryBytes);
    const int first[] = {static_cast<int>(line.x), static_cast<int>(line.y), static_cast<int>(line.z)};
    int origin[3];
#pragma unroll
    for (int axis = 0; axis < 3; ++axis)
      origin[axis] = first[axis] + at.origin[axis] * s.axis[axis].step * s.axis[axis].sample;
#pragma unroll 1
    for (int place = thread() / 4 + thread() % 4 * (stride / 4); place < s.places; place += stride) {
      int image = place, along[3];
      along[0] = conv_split(image, s.by_image_pitch);
      along[2] = along[0];
      along[1] = conv_split(along[2], s.axis[2].by_pitch);
      along[0] = conv_split(along[1], s.axis[1].by_pitch);
      image += at.image;
      uint32_t source = static_cast<uint32_t>(image * s.from_image);
      bool inside = image < s.batch, used = true;
#pragma unroll
      for (int axis = 2; axis >= 0; --axis) {
        const ConvAxis& a = s.axis[axis];
        int phase = along[axis];
        const int position = conv_split(phase, a.by_per_phase) * a.step + phase;
        used = used && position < a.extent && phase < a.step;
        const int to = origin[axis] + position * a.sample;
        inside = inside && to >= 0 && to < a.source;
        source += static_cast<uint32_t>(to) * s.from[axis];
      }
      shared_store(shared + s.sources_at + place * 4, !used ? ~1u : inside ? source : ~0u);
    }
    warp_barrier();
  }

  __device__ __forceinline__ void copy_input(const ConvPart& p, ConvCursor& c) const {
    const int left = p.pieces - c.chunk * 4, piece = thread() % 4;
    if (piece < (left > 2 ? 4 : 2)) {
      for (int slice = 0; slice < p.slices; ++slice) {
        const uint8_t* from =
            x + int64_t{c.at.group * s.from_group + p.slice[slice] + c.chunk * 4 + piece} * 16;
        const uint32_t to = shared + c.input + slice * s.slice_bytes + piece * 16;
#pragma unroll 4
        for (int place = thread() / 4; place < s.places; place += threads() / 4) {
          const int source = static_cast<int>(shared_load(shared + s.sources_at + place * 4));
          const bool read = source >= 0 && piece < left;
          if (source != -2)
            copy16(to + place * kConvPitch, read ? from + int64_t{source} * 16 : x, read ? 16 : 0);
        }
      }
    }
    c.input = c.input + s.input_bytes == s.slots * s.input_bytes ? 0 : c.input + s.input_bytes;
  }

  __device__ __forceinline__ int products_before(const ConvRange& range, int index) const {
    if (index >= range.entries) return range.products;
    const uint32_t table = shared + s.table_at + (s.head + range.first + index) * kConvEntryBytes;
    return static_cast<int>(shared_load(table + 12) & 4095);
  }

  __device__ __forceinline__ void copy_weights(const ConvPart& p, ConvCursor& c) const {
    const int first = products_before(c.range, c.entry);
    const int many = (products_before(c.range, c.entry + p.entries) - first) * p.columns * 4;
    const int64_t block = int64_t{c.at.group} * p.blocks + c.at.block;
    const int64_t product = (block * p.chunks + c.chunk) * p.products + c.range.first_product + first;
    const uint8_t* from = packed + (p.weights + product * p.columns * 4) * 16;
    const uint32_t to = shared + s.weights_at + c.weights;
#pragma unroll 4
    for (int i = thread(); i < many; i += threads()) copy16(to + i * 16, from + int64_t{i} * 16, 16);
    c.weights = c.weights + s.weight_bytes == s.stages * s.weight_bytes ? 0 : c.weights + s.weight_bytes;
  }

  __device__ __forceinline__ int missing() const {
    return static_cast<int>(shared_load(shared + s.cursors_at + thread() / 32 * kConvCursorBytes + 76));
  }

  // One stage; nothing behind the last.
  __device__ __forceinline__ void issue() const {
    ConvCursor c = load();
    c.missing = max(c.missing - 1, 0);
    if (c.tile >= s.tiles) {
      store(c);
      return;
    }
    if (c.chunk == c.chunks) {
      ++c.at.part;
      if (!find_part(c)) {
        store(c);
        return;
      }
    }
    const ConvPart& p = s.part[c.at.part];
    if (c.entry == 0) copy_input(p, c);
    copy_weights(p, c);
    c.entry += p.entries;
    if (c.entry >= c.range.entries) c.entry = 0, ++c.chunk;
    store(c);
  }
};

}  // namespace
}  // namespace symconv
