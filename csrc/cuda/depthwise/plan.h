// From what a call is told to what the depthwise kernels are given: checked, with the shared memory laid out.
#pragma once
#include <algorithm>
#include <numeric>
#include <string>

#include "depthwise/layer.h"
#include "depthwise/params.h"

namespace symconv {

// The grid of a pass and all that its kernels are told. `folded` of each segment is the axis along which it
// is folded.
struct DepthwisePlan {
  DepthwiseDevice device;
  int64_t grid;  // of wgrad: for each row of a segment
  int64_t shared;
  int threads;
};

inline int64_t ceil_divide(int64_t a, int64_t by) { return (a + by - 1) / by; }

// The axis along which a segment is folded, or would be if it were tied along it.
inline int folded_axis(const DepthwiseParams& p, const DepthwiseSegment& s) {
  return s.mask == 2 && p.swap ? 1 : 0;
}

inline DepthwiseAxis axis_of(int op, int64_t taps, int64_t stride, int64_t dilation, int64_t padding,
                             int64_t x, int64_t y, int64_t tile) {
  const int64_t common = std::gcd(stride, dilation), reach = dilation * (taps - 1);
  DepthwiseAxis a{};
  a.taps = static_cast<int>(taps), a.stride = static_cast<int>(stride);
  a.dilation = static_cast<int>(dilation), a.padding = static_cast<int>(padding);
  a.output_step = static_cast<int>(dilation / common), a.tap_step = static_cast<int>(stride / common);
  a.row_step = static_cast<int>(stride * dilation / common);
  a.x = static_cast<int>(x), a.y = static_cast<int>(y), a.tile = static_cast<int>(tile);
  a.tiles = static_cast<int>(ceil_divide(op == 1 ? x : y, tile));
  a.extent = static_cast<int>(op == 1 ? (tile - 1 + reach) / stride + 1 + (stride > 1)
                                      : (tile - 1) * stride + reach + 1);
  return a;
}

// How a map is filled: whether pairs of elements can be read at once depends on its strides and address.
inline DepthwiseFill fill_of(const DepthwiseParams& p, const void* data, const DepthwisePixels& s,
                             int64_t width, bool even_start) {
  DepthwiseFill f{};
  const bool last = p.block > 1;
  const int64_t inner = last ? s.c : s.x, outer = last ? s.x : s.c;
  const bool even = p.dtype < 2 && inner == 1 && outer % 2 == 0 && s.n % 2 == 0 && s.y % 2 == 0 &&
                    reinterpret_cast<uintptr_t>(data) % 4 == 0;
  f.elements =
      even && (last ? p.channels % 2 == 0 && p.block % 2 == 0 : width % 2 == 0 && even_start) ? 2 : 1;
  return f;
}

inline uint32_t inverse(int64_t by) {
  return by <= 1 ? 0 : static_cast<uint32_t>(ceil_divide(int64_t{1} << 32, by));
}

inline void finish_fill(DepthwiseFill& f, bool last, int64_t block, int64_t rows, int64_t columns) {
  f.run = static_cast<int>(last ? block : columns);
  f.runs_of_row = static_cast<int>(last ? columns : 1);
  f.rows = static_cast<int>(rows);
  while (f.lanes_log < 5 && (f.elements << f.lanes_log) < f.run) ++f.lanes_log;
  f.divide_runs = inverse(f.runs_of_row);
  f.divide_rows = inverse(rows);
}

inline DepthwiseDevice device_of(const DepthwiseParams& p, const void* x, const void* gy, const void* y) {
  DepthwiseDevice d{};
  const int op = static_cast<int>(p.op);
  d.axis[0] = axis_of(op, p.kernel_width, p.stride_width, p.dilation_width, p.padding_width, p.x_width,
                      p.y_width, p.tile_width);
  d.axis[1] = axis_of(op, p.kernel_height, p.stride_height, p.dilation_height, p.padding_height, p.x_height,
                      p.y_height, p.tile_height);
  d.x = {p.x_stride_n, p.x_stride_c, p.x_stride_y, p.x_stride_x};
  d.y = {p.y_stride_n, p.y_stride_c, p.y_stride_y, p.y_stride_x};
  d.w_group = p.w_stride_group, d.w_row = p.w_stride_row, d.w_tap[0] = p.w_stride_x,
  d.w_tap[1] = p.w_stride_y;
  d.batch = static_cast<int>(p.batch), d.channels = static_cast<int>(p.channels);
  d.rows = static_cast<int>(p.rows), d.filters = static_cast<int>(p.filters);
  d.segments = static_cast<int>(p.segments), d.block = static_cast<int>(p.block);
  d.images = static_cast<int>(p.images), d.last = p.block > 1;
  d.swap = static_cast<int>(p.swap), d.bias = static_cast<int>(p.bias),
  d.activation = static_cast<int>(p.activation);
  d.pairs = static_cast<int>(p.pairs), d.chunks = static_cast<int>(p.chunks);
  const int64_t segments[][4] = {
#define SYMCONV_SEGMENT(i) {p.mask_##i, p.row_##i, p.rows_##i, p.copy_##i}
      SYMCONV_SEGMENT(0), SYMCONV_SEGMENT(1), SYMCONV_SEGMENT(2), SYMCONV_SEGMENT(3),
      SYMCONV_SEGMENT(4), SYMCONV_SEGMENT(5), SYMCONV_SEGMENT(6), SYMCONV_SEGMENT(7)};
#undef SYMCONV_SEGMENT
  for (int i = 0; i < kSegments; ++i)
    d.segment[i] = {static_cast<int>(segments[i][0]), static_cast<int>(segments[i][1]),
                    static_cast<int>(segments[i][2]), static_cast<int>(segments[i][3])};
  DepthwisePixels gradient = d.y;
  gradient.c *= p.filters;
  // Of neighbouring members channels are not adjacent where a group has more than one.
  d.window = op == 1 ? fill_of(p, x, gradient, p.y_width, true) : fill_of(p, x, d.x, p.x_width, true);
  d.tile = fill_of(p, gy, gradient, p.y_width, p.tile_width % 2 == 0 || d.axis[0].tiles == 1);
  const int members = d.segment[0].mask == 3 ? 4 : 2, size = p.dtype == 2 ? 4 : 2;
  d.adjacent = op == 0 && p.segments == 1 && p.rows == 1 && p.filters == members && d.y.c == 1 &&
               (d.y.n | d.y.y | d.y.x) % members == 0 &&
               reinterpret_cast<uintptr_t>(y) % (members * size) == 0;
  return d;
}

// The taps of a pass in shared memory at once: floats for each channel.
inline int64_t staged_taps(const DepthwiseParams& p, const DepthwiseDevice& d) {
  int64_t most = 0;
  for (int i = 0; i < d.segments; ++i) {
    const int folded = folded_axis(p, d.segment[i]);
    const bool fold = p.op == 0 && (d.segment[i].mask >> folded & 1);
    const int64_t across = d.axis[folded].taps, along = d.axis[folded ^ 1].taps;
    most = std::max(most, (fold ? (across + 1) / 2 * 2 : across) * along);
  }
  return most;
}

inline int64_t blocks_of_taps(const DepthwiseAxis& a) {
  return a.tap_step * ceil_divide(ceil_divide(a.taps, a.tap_step), kRun);
}

// The most sums that a CTA of wgrad has of one kind: columns, blocks of taps, channels.
inline int64_t items_of(const DepthwiseParams& p, const DepthwiseDevice& d) {
  int64_t most = 0;
  for (int i = 0; i < d.segments; ++i)
    most = std::max(most, p.pairs * blocks_of_taps(d.axis[folded_axis(p, d.segment[i]) ^ 1]) * p.block);
  return most;
}

inline DepthwisePlan plan_of(const DepthwiseParams& p, const void* x, const void* gy, const void* y) {
  DepthwisePlan plan{device_of(p, x, gy, y), 0, 0, 0};
  DepthwiseDevice& d = plan.device;
  DepthwiseAxis &width = d.axis[0], &height = d.axis[1];
  const int64_t columns = width.extent + (!d.last && d.window.elements == 2), pixel = 4 * p.block;
  const int64_t pitch = columns | 1, tile_pitch = width.tile | 1;
  width.step = width.tile_step = static_cast<int>(pixel);
  height.step = static_cast<int>(pitch * pixel), height.tile_step = static_cast<int>(tile_pitch * pixel);
  d.window_image = height.extent * height.step, d.tile_image = height.tile * height.tile_step;
  finish_fill(d.window, d.last, p.block, height.extent, columns);
  finish_fill(d.tile, d.last, p.block, height.tile, width.tile);
  const int64_t images = p.images, windows = images * d.window_image;
  const int64_t units = images * p.block * p.tile_height * p.tile_width / kRun;
  const int64_t channels = ceil_divide(p.channels, p.block);
  const int64_t tiles = ceil_divide(p.batch, images) * width.tiles * height.tiles;
  if (p.op == 2) {
    int members = 1;
    for (int i = 0; i < d.segments; ++i)
      members = std::max(members, d.segment[i].mask == 3 ? 4 : d.segment[i].mask ? 2 : 1);
    const int64_t sums = int64_t{4} * kRun * (kWgradThreads + members * items_of(p, d));
    plan.shared = std::max(windows + members * images * d.tile_image, sums);
    plan.threads = kWgradThreads;
    plan.grid = channels * p.chunks;
    return plan;
  }
  const int64_t planes = p.op == 1 ? 2 : 1;
  d.weights = static_cast<int>(planes * windows);
  plan.shared = planes * windows + 4 * (p.block | 1) * staged_taps(p, d);
  plan.threads = static_cast<int>(
      std::min<int64_t>(p.op == 1 ? kDgradThreads : kFpropThreads, ceil_divide(units, 32) * 32));
  plan.grid = channels * tiles;
  return plan;
}

}  // namespace symconv
