// From what a call is told to what the depthwise kernels are given: sizes, and where things lie in shared
// memory.
#pragma once
#include <algorithm>
#include <numeric>
#include <string>

#include "depthwise/layer.h"
#include "depthwise/params.h"

namespace symconv {

struct DepthwisePlan {
  DepthwiseDevice device;
  int64_t grid;  // of wgrad: for each row and share of the columns
  int64_t shared;
  int threads;
  bool plain;  // stride and dilation along are 1
};

inline int64_t ceil_divide(int64_t a, int64_t by) { return (a + by - 1) / by; }

inline DepthwiseAxis axis_of(int64_t op, int64_t taps, int64_t stride, int64_t dilation, int64_t padding,
                             int64_t x, int64_t y, int64_t tile) {
  const int64_t common = std::gcd(stride, dilation);
  DepthwiseAxis a{};
  a.taps = static_cast<int>(taps), a.stride = static_cast<int>(stride);
  a.dilation = static_cast<int>(dilation), a.padding = static_cast<int>(padding);
  a.output_step = static_cast<int>(dilation / common), a.tap_step = static_cast<int>(stride / common);
  a.row_step = static_cast<int>(stride * dilation / common);
  a.x = static_cast<int>(x), a.y = static_cast<int>(y), a.tile = static_cast<int>(tile);
  a.tiles = static_cast<int>(ceil_divide(op == 1 ? x : y, tile));
  return a;
}

// Blocks of kRun taps of an axis, by phases of the stride.
inline int64_t blocks_of_taps(const DepthwiseAxis& a) {
  return a.tap_step * ceil_divide(ceil_divide(a.taps, a.tap_step), kRun);
}

// Positions of the map that is read that a tile needs; along they are those of whole blocks of taps, for
// wgrad.
inline int64_t extent_of(int64_t op, const DepthwiseAxis& a, bool along) {
  const int64_t taps = op == 2 && along ? kRun * blocks_of_taps(a) : a.taps, reach = a.dilation * (taps - 1);
  if (op == 1) return (a.tile - 1 + reach) / a.stride + 1 + (a.stride > 1);
  return static_cast<int64_t>(a.tile - 1) * a.stride + reach + 1;
}

inline uint32_t inverse(int64_t by) {
  return by <= 1 ? 0 : static_cast<uint32_t>(ceil_divide(int64_t{1} << 32, by));
}

// How a map lies in memory, in elements, and where it is.
struct DepthwiseStrides {
  const void* data;
  int64_t n, c, y, x;
};

// May two neighbours be loaded at once? Then their number and the strides are even, and so is where a window
// begins.
inline bool neighbours(const DepthwiseParams& p, const DepthwiseStrides& s, int64_t width, bool even_start) {
  const bool last = p.block > 1;
  const int64_t inner = last ? s.c : s.x, outer = last ? s.x : s.c;
  if (p.dtype == 2 || inner != 1 || outer % 2 || s.n % 2 || s.y % 2 ||
      reinterpret_cast<uintptr_t>(s.data) % 4)
    return false;
  return last ? p.channels % 2 == 0 && p.block % 2 == 0 : width % 2 == 0 && even_start;
}

// May two members of an orbit that are neighbours in memory be loaded at once?
inline bool members(const DepthwiseParams& p, const DepthwiseStrides& s) {
  const int64_t bytes = p.dtype == 2 ? 8 : 4;
  return p.rows == 1 && p.filters % 2 == 0 && (s.n | s.y | s.x) % 2 == 0 &&
         reinterpret_cast<uintptr_t>(s.data) % bytes == 0;
}

// `extra` column of a window for loads that begin before it.
inline DepthwiseFill fill_of(const DepthwiseDevice& d, int loads, int64_t across, int64_t along, bool extra) {
  DepthwiseFill f{};
  f.loads = loads;
  (d.columns ? along : across) += extra;
  const int64_t columns = d.columns ? along : across, rows = d.columns ? across : along;
  // Channels a step apart that 32 / block threads across fill, images one that the threads of a tile across
  // do: all threads of a warp meet different banks.
  const int64_t pitch = along | 1, lanes = d.block > 1 ? 32 / d.block : d.axis[0].tile;
  const int64_t tight = across * pitch, channel = tight + ((lanes * pitch - tight) % 32 + 32) % 32;
  f.rows = static_cast<int>(rows), f.columns = static_cast<int>(columns);
  f.row = static_cast<int>(4 * (d.columns ? pitch : 1)),
  f.column = static_cast<int>(4 * (d.columns ? 1 : pitch));
  f.channel = static_cast<int>(4 * channel), f.image = static_cast<int>(4 * channel * d.block);
  const int64_t run = d.last ? d.block : columns, step = loads == kNeighbours ? 2 : 1;
  while (f.lanes_log < 5 && (step << f.lanes_log) < run) ++f.lanes_log;
  f.parts = static_cast<int>(ceil_divide(columns, 4));
  f.divide_rows = inverse(rows), f.divide_parts = inverse(f.parts);
  return f;
}

inline void set_segments(const DepthwiseParams& p, DepthwiseDevice& d) {
  const int64_t segments[][4] = {
#define SYMCONV_SEGMENT(i) {p.mask_##i, p.row_##i, p.rows_##i, p.copy_##i}
      SYMCONV_SEGMENT(0), SYMCONV_SEGMENT(1), SYMCONV_SEGMENT(2), SYMCONV_SEGMENT(3),
      SYMCONV_SEGMENT(4), SYMCONV_SEGMENT(5), SYMCONV_SEGMENT(6), SYMCONV_SEGMENT(7)};
#undef SYMCONV_SEGMENT
  // What does not fit 32 bits is no number of a row, and refused as -1 is.
  const auto narrow = [](int64_t v) { return v == static_cast<int>(v) ? static_cast<int>(v) : -1; };
  for (int i = 0; i < kSegments; ++i) {
    const int mask = narrow(segments[i][0]);
    d.segment[i] = {p.swap && (mask == 1 || mask == 2) ? 3 - mask : mask, narrow(segments[i][1]),
                    narrow(segments[i][2]), narrow(segments[i][3])};
  }
}

// All but the layout of shared memory.
inline DepthwiseDevice device_of(const DepthwiseParams& p) {
  DepthwiseDevice d{};
  DepthwiseAxis width = axis_of(p.op, p.kernel_width, p.stride_width, p.dilation_width, p.padding_width,
                                p.x_width, p.y_width, p.tile_width);
  DepthwiseAxis height = axis_of(p.op, p.kernel_height, p.stride_height, p.dilation_height, p.padding_height,
                                 p.x_height, p.y_height, p.tile_height);
  width.x_stride = p.x_stride_x, width.y_stride = p.y_stride_x, width.w_stride = p.w_stride_x;
  height.x_stride = p.x_stride_y, height.y_stride = p.y_stride_y, height.w_stride = p.w_stride_y;
  d.columns = static_cast<int>(p.swap);
  d.axis[0] = p.swap ? height : width, d.axis[1] = p.swap ? width : height;
  d.x_image = p.x_stride_n, d.x_channel = p.x_stride_c, d.y_image = p.y_stride_n, d.y_channel = p.y_stride_c;
  d.w_group = p.w_stride_group, d.w_row = p.w_stride_row;
  d.batch = static_cast<int>(p.batch), d.channels = static_cast<int>(p.channels);
  d.rows = static_cast<int>(p.rows), d.filters = static_cast<int>(p.filters);
  d.segments = static_cast<int>(p.segments), d.block = static_cast<int>(p.block);
  d.images = static_cast<int>(p.images), d.last = p.block > 1;
  d.bias = static_cast<int>(p.bias), d.activation = static_cast<int>(p.activation);
  d.pairs = static_cast<int>(p.pairs), d.chunks = static_cast<int>(p.chunks);
  set_segments(p, d);
  return d;
}

inline int members_of(int mask) { return mask == 3 ? 4 : mask ? 2 : 1; }

// The members of an orbit are neighbours in memory, and their address can be that of one store.
inline bool adjacent(const DepthwiseParams& p, const DepthwiseDevice& d, const void* y) {
  const int64_t members = members_of(d.segment[0].mask), size = p.dtype == 2 ? 4 : 2;
  return p.segments == 1 && p.rows == 1 && p.filters == members && p.y_stride_c == 1 &&
         (p.y_stride_n | p.y_stride_y | p.y_stride_x) % members == 0 &&
         reinterpret_cast<uintptr_t>(y) % (members * size) == 0;
}

// The taps of a pass in shared memory at once: floats for each channel.
inline int64_t staged_taps(const DepthwiseParams& p, const DepthwiseDevice& d) {
  bool fold = false;
  for (int i = 0; i < d.segments; ++i) fold = fold || (p.op == 0 && d.segment[i].mask & 1);
  return static_cast<int64_t>(d.axis[0].taps + (fold ? d.axis[0].taps % 2 : 0)) * d.axis[1].taps;
}

inline DepthwisePlan plan_of(const DepthwiseParams& p, const void* x, const void* gy, const void* y) {
  DepthwisePlan plan{device_of(p), 0, 0, 0, false};
  DepthwiseDevice& d = plan.device;
  DepthwiseAxis &across = d.axis[0], &along = d.axis[1];
  plan.plain = along.stride == 1 && along.dilation == 1;
  const DepthwiseStrides input{x, p.x_stride_n, p.x_stride_c, p.x_stride_y, p.x_stride_x};
  const DepthwiseStrides gradient{p.op == 1 ? x : gy, p.y_stride_n, p.y_stride_c * p.filters, p.y_stride_y,
                                  p.y_stride_x};
  // Of pairs of columns: those of an odd member of an orbit, which the strides of whole orbits do not show.
  const bool even_members = p.y_stride_c % 2 == 0;
  const bool even_tiles = even_members && (p.tile_width % 2 == 0 || p.tile_width >= p.y_width);
  const auto loads_of = [&](const DepthwiseStrides& s, int64_t width, bool even_start, bool orbits) {
    return neighbours(p, s, width, even_start) ? kNeighbours : orbits && members(p, s) ? kMembers : kSingle;
  };
  const int loads = p.op == 1 ? loads_of(gradient, p.y_width, even_members, p.y_stride_c == 1)
                              : loads_of(input, p.x_width, true, false);
  d.window = fill_of(d, loads, extent_of(p.op, across, false), extent_of(p.op, along, true),
                     loads == kNeighbours && !d.last);
  d.tile = fill_of(d, loads_of(gradient, p.y_width, even_tiles, p.y_stride_c == 1), across.tile, along.tile,
                   false);
  across.step = d.columns ? d.window.row : d.window.column, along.step = 4;
  across.tile_step = d.columns ? d.tile.row : d.tile.column, along.tile_step = 4;
  d.adjacent = p.op == 0 && adjacent(p, d, y);
  const int64_t images = p.images, windows = images * d.window.image;
  const int64_t channels = ceil_divide(p.channels, p.block);
  if (p.op == 2) {
    int members = 1;
    for (int i = 0; i < d.segments; ++i) members = std::max(members, members_of(d.segment[i].mask));
    const int64_t items = p.pairs * blocks_of_taps(along) * p.block;
    plan.shared =
        std::max(windows + members * images * d.tile.image, 4 * kRun * (kWgradThreads + 1 + members * items));
    plan.threads = kWgradThreads;
    plan.grid = channels * p.chunks;
    return plan;
  }
  d.weights = static_cast<int>((p.op == 1 ? 2 : 1) * windows);
  d.weights_channel = static_cast<int>(4 * (staged_taps(p, d) | 1));
  plan.shared = d.weights + d.weights_channel * p.block;
  const int64_t units = images * p.block * p.tile_height * p.tile_width / kRun;
  plan.threads = static_cast<int>(
      std::min<int64_t>(p.op == 1 ? kDgradThreads : kFpropThreads, ceil_divide(units, 32) * 32));
  plan.grid = channels * ceil_divide(p.batch, images) * across.tiles * along.tiles;
  return plan;
}

}  // namespace symconv
