// Windows of the maps of depthwise layers in shared memory, as float32, and what else the three passes share.
#pragma once
#include "depthwise/layer.h"
#include "device.h"

namespace symconv {
namespace {

// The share of a CTA: `channels` and `images` may be fewer than a full block's at the end.
struct DepthwisePlace {
  int channel, channels, image, images;
  int across, along;  // where its tile begins
};

__device__ __forceinline__ DepthwisePlace place_of(const DepthwiseDevice& p, int index, int channel_block) {
  DepthwisePlace at;
  at.channel = channel_block * p.block;
  at.channels = min(p.block, p.channels - at.channel);
  at.across = index % p.axis[0].tiles * p.axis[0].tile;
  index /= p.axis[0].tiles;
  at.along = index % p.axis[1].tiles * p.axis[1].tile;
  at.image = index / p.axis[1].tiles * p.images;
  at.images = min(p.images, p.batch - at.image);
  return at;
}

__device__ __forceinline__ int channel_blocks(const DepthwiseDevice& p) {
  return (p.channels + p.block - 1) / p.block;
}

// Member n of row i of a segment among the output channels of a group.
__device__ __forceinline__ int member_channel(const DepthwiseSegment& s, int i, int n) {
  return n == 0 ? s.row + i : s.copy + (n - 1) * s.rows + i;
}

// n / by, for n * by below 2^32.
__device__ __forceinline__ int quotient(int n, int by, uint32_t inverse) {
  return by == 1 ? n : static_cast<int>(uint64_t{inverse} * static_cast<uint32_t>(n) >> 32);
}

__device__ __forceinline__ int floor_divide(int a, int by) { return (a >= 0 ? a : a - by + 1) / by; }

__device__ __forceinline__ float shared_float(uint32_t address) {
  return __uint_as_float(shared_load(address));
}
__device__ __forceinline__ void shared_put(uint32_t address, float v) {
  shared_store(address, __float_as_uint(v));
}

// A map in global memory, from the first channel and image of a CTA on, and where the window begins in it.
struct DepthwiseMap {
  const void* data;
  int64_t at;  // index of its pixel (0, 0)
  int64_t image, channel;
  int row, column;  // the last four are strides
  int height, width, channels, images;
  int y, x;
};

constexpr int kAtOnce = 4;  // elements, or pairs of them, that a thread has in flight

// What is stored of two maps: the first alone, both, or their sum and difference.
enum DepthwiseStores { kFirst, kBoth, kParities };

// One load: two neighbours, or an element of each of one or two maps that are `other` elements apart.
template <class T, int LOADS, int STORES>
__device__ __forceinline__ void load_some(uint32_t (&v)[2], const char* from, int64_t other, bool exists) {
  v[0] = v[1] = 0;
  if (!exists) return;
  if constexpr (LOADS == kMembers && T::kBytes == 4) {
    const uint2 both = global_load8(from);
    v[0] = both.x, v[1] = both.y;
  } else if constexpr (LOADS == kSingle) {
    v[0] = __float_as_uint(load_element<T>(from, 0));
    if (STORES != kFirst) v[1] = __float_as_uint(load_element<T>(from, other));
  } else {
    v[0] = global_load4(from);
    if (LOADS == kNeighbours && STORES != kFirst) v[1] = global_load4(from + other * T::kBytes);
  }
}

template <class T, int LOADS, int STORES>
__device__ __forceinline__ void store_one(uint32_t to, uint32_t second, float a, float b) {
  shared_put(to, STORES == kParities ? a + b : a);
  if (STORES != kFirst) shared_put(to + second, STORES == kParities ? a - b : b);
}

// Stores what load_some has loaded; `next` bytes lie between neighbours, and the second of them may not be
// wanted.
template <class T, int LOADS, int STORES>
__device__ __forceinline__ void store_some(const uint32_t (&v)[2], uint32_t to, uint32_t second, int next,
                                           bool two) {
  if constexpr (LOADS == kNeighbours) {
    store_one<T, LOADS, STORES>(to, second, low_of<T>(v[0]), low_of<T>(v[1]));
    if (two) store_one<T, LOADS, STORES>(to + next, second, high_of<T>(v[0]), high_of<T>(v[1]));
  } else if constexpr (LOADS == kMembers && T::kBytes == 2) {
    store_one<T, LOADS, STORES>(to, second, low_of<T>(v[0]), high_of<T>(v[0]));
  } else {
    store_one<T, LOADS, STORES>(to, second, __uint_as_float(v[0]), __uint_as_float(v[1]));
  }
}

// Channels innermost: neighbouring threads have neighbouring channels, and kAtOnce pixels of a row each.
template <class T, int LOADS, int STORES>
__device__ __forceinline__ void fill_pixels(const DepthwiseFill& f, const DepthwiseMap& m, int images,
                                            int block, uint32_t to, int64_t other, uint32_t second) {
  constexpr int step = LOADS == kNeighbours ? 2 : 1, at_once = STORES == kFirst ? kAtOnce : kAtOnce / 2;
  const int apart = threads() >> f.lanes_log, units = images * f.rows * f.parts;
  const int c = (thread() & ((1 << f.lanes_log) - 1)) * step;
  const bool real = c < m.channels;
  if (c >= block) return;
  const char* const channel = static_cast<const char*>(m.data) + (m.at + c * m.channel) * T::kBytes;
  const int64_t pixel = static_cast<int64_t>(m.column) * T::kBytes;
  for (int unit = thread() >> f.lanes_log; unit < units; unit += apart) {
    const int line = quotient(unit, f.parts, f.divide_parts);
    int x = (unit - line * f.parts) * kAtOnce;
    const int image = quotient(line, f.rows, f.divide_rows), y = line - image * f.rows;
    const bool exists =
        real && image < m.images && static_cast<unsigned>(m.y + y) < static_cast<unsigned>(m.height);
    const char* from =
        channel + (image * m.image + static_cast<int64_t>(m.y + y) * m.row) * T::kBytes + (m.x + x) * pixel;
    uint32_t target = to + image * f.image + y * f.row + x * f.column + c * f.channel;
#pragma unroll 1
    for (int begin = 0; begin < kAtOnce; begin += at_once) {
      uint32_t v[at_once][2];
#pragma unroll
      for (int k = 0; k < at_once; ++k) {
        const bool wanted =
            x + k < f.columns && static_cast<unsigned>(m.x + x + k) < static_cast<unsigned>(m.width);
        load_some<T, LOADS, STORES>(v[k], from, other, exists && wanted);
        from += pixel;
      }
#pragma unroll
      for (int k = 0; k < at_once; ++k) {
        if (x + k < f.columns) store_some<T, LOADS, STORES>(v[k], target, second, f.channel, true);
        target += f.column;
      }
      x += at_once;
    }
  }
}

// Columns of one channel are neighbours, or nothing is: neighbouring threads have neighbouring columns.
template <class T, int LOADS, int STORES>
__device__ __forceinline__ void fill_rows(const DepthwiseFill& f, const DepthwiseMap& m, int images,
                                          uint32_t to, int64_t other, uint32_t second) {
  constexpr int step = LOADS == kNeighbours ? 2 : 1, at_once = STORES == kFirst ? kAtOnce : kAtOnce / 2;
  const int apart = threads() >> f.lanes_log, lines = images * f.rows;
  const int first = (thread() & ((1 << f.lanes_log) - 1)) * step;
  for (int x = first; x < f.columns; x += step << f.lanes_log) {
    const bool inside = static_cast<unsigned>(m.x + x) < static_cast<unsigned>(m.width);
    const char* const column =
        static_cast<const char*>(m.data) + (m.at + static_cast<int64_t>(m.x + x) * m.column) * T::kBytes;
    for (int line = thread() >> f.lanes_log; line < lines; line += at_once * apart) {
      uint32_t v[at_once][2], target[at_once];
#pragma unroll
      for (int k = 0; k < at_once; ++k) {
        const int row = line + k * apart, image = quotient(row, f.rows, f.divide_rows),
                  y = row - image * f.rows;
        const bool exists = inside && row < lines && image < m.images &&
                            static_cast<unsigned>(m.y + y) < static_cast<unsigned>(m.height);
        target[k] = to + image * f.image + y * f.row + x * f.column;
        const int64_t from = image * m.image + static_cast<int64_t>(m.y + y) * m.row;
        load_some<T, LOADS, STORES>(v[k], column + from * T::kBytes, other, exists);
      }
#pragma unroll
      for (int k = 0; k < at_once; ++k)
        if (line + k * apart < lines)
          store_some<T, LOADS, STORES>(v[k], target[k], second, f.column, x + 1 < f.columns);
    }
  }
}

template <class T, int LOADS, int STORES>
__device__ __forceinline__ void fill_by(const DepthwiseDevice& p, const DepthwiseFill& f,
                                        const DepthwiseMap& m, uint32_t to, int64_t other, uint32_t second) {
  if (p.last)
    fill_pixels<T, LOADS, STORES>(f, m, p.images, p.block, to, other, second);
  else
    fill_rows<T, LOADS, STORES>(f, m, p.images, to, other, second);
}

// Copies a map, and what lies `other` elements behind it `second` bytes further; zeros where it ends.
template <class T, int STORES>
__device__ __forceinline__ void fill(const DepthwiseDevice& p, const DepthwiseFill& f, const DepthwiseMap& m,
                                     uint32_t to, int64_t other = 0, uint32_t second = 0) {
  if constexpr (T::kBytes == 2)
    if (f.loads == kNeighbours) return fill_by<T, kNeighbours, STORES>(p, f, m, to, other, second);
  if constexpr (STORES != kFirst)
    if (f.loads == kMembers && other == 1) return fill_by<T, kMembers, STORES>(p, f, m, to, other, second);
  fill_by<T, kSingle, STORES>(p, f, m, to, other, second);
}

// Loads of two neighbouring columns begin at an even one: so many columns before what is asked for.
__device__ __forceinline__ int lead_of(const DepthwiseDevice& p, int x) {
  return p.last || p.window.loads != kNeighbours ? 0 : x & 1;
}

// The input of a tile of the output, in shared memory from `to` on; gives where the tile's window begins in
// it.
template <class T>
__device__ __forceinline__ uint32_t fill_input(const DepthwiseDevice& p, const DepthwisePlace& at,
                                               const void* x, uint32_t to) {
  const DepthwiseAxis &across = p.axis[0], &along = p.axis[1];
  const int i = at.across * across.stride - across.padding, j = at.along * along.stride - along.padding;
  const bool turned = p.columns == 1;
  const DepthwiseAxis &width = turned ? along : across, &height = turned ? across : along;
  const int left = turned ? j : i, top = turned ? i : j, lead = lead_of(p, left);
  const DepthwiseMap map{x,
                         at.image * p.x_image + at.channel * p.x_channel,
                         p.x_image,
                         p.x_channel,
                         static_cast<int>(height.x_stride),
                         static_cast<int>(width.x_stride),
                         height.x,
                         width.x,
                         at.channels,
                         at.images,
                         top,
                         left - lead};
  fill<T, kFirst>(p, p.window, map, to);
  return to + lead * p.window.column;
}

// The output's gradient of the first filter of the groups of a CTA, from a pixel on.
__device__ __forceinline__ DepthwiseMap gradient_map(const DepthwiseDevice& p, const DepthwisePlace& at,
                                                     const void* gy, int y, int x) {
  const DepthwiseAxis &width = p.axis[p.columns], &height = p.axis[p.columns ^ 1];
  return {gy,
          at.image * p.y_image + static_cast<int64_t>(at.channel) * p.filters * p.y_channel,
          p.y_image,
          p.y_channel * p.filters,
          static_cast<int>(height.y_stride),
          static_cast<int>(width.y_stride),
          height.y,
          width.y,
          at.channels,
          at.images,
          y,
          x};
}

}  // namespace
}  // namespace symconv
