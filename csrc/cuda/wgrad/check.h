// What is wrong with the parameters of a weight gradient, in words; sizes by axis. Knows no CUDA.
#pragma once
#include <cstdint>
#include <string>

#include "params.h"
#include "work.h"

namespace symconv {

struct WgradSegment {
  int64_t mask, row, rows, copy;
};

inline WgradSegment wgrad_segment(const WgradParams& p, int i) {
  const WgradSegment all[] = {
      {p.mask_0, p.row_0, p.rows_0, p.copy_0}, {p.mask_1, p.row_1, p.rows_1, p.copy_1},
      {p.mask_2, p.row_2, p.rows_2, p.copy_2}, {p.mask_3, p.row_3, p.rows_3, p.copy_3},
      {p.mask_4, p.row_4, p.rows_4, p.copy_4}, {p.mask_5, p.row_5, p.rows_5, p.copy_5},
      {p.mask_6, p.row_6, p.rows_6, p.copy_6}, {p.mask_7, p.row_7, p.rows_7, p.copy_7}};
  return all[i];
}

inline int wgrad_order(int64_t mask) { return (mask & 1) + (mask >> 1 & 1) + (mask >> 2 & 1); }

// Depth, height, width.
struct WgradAxes {
  int64_t x[3], y[3], kernel[3], stride[3], dilation[3], padding[3], x_stride[4], y_stride[4];
};

inline WgradAxes wgrad_axes(const WgradParams& p) {
  return {{p.x_depth, p.x_height, p.x_width},
          {p.y_depth, p.y_height, p.y_width},
          {p.kernel_depth, p.kernel_height, p.kernel_width},
          {p.stride_depth, p.stride_height, p.stride_width},
          {p.dilation_depth, p.dilation_height, p.dilation_width},
          {p.padding_depth, p.padding_height, p.padding_width},
          {p.x_stride_n, p.x_stride_z, p.x_stride_y, p.x_stride_x},
          {p.y_stride_n, p.y_stride_z, p.y_stride_y, p.y_stride_x}};
}

inline int64_t wgrad_bytes(const WgradParams& p) { return p.dtype == 2 ? 4 : 2; }  // of an element

inline std::string wgrad_check_sizes(const WgradParams& p) {
  constexpr int64_t most = 1 << 30;
  if (p.dtype < 0 || p.dtype > 2) return "dtype must be 0, 1 or 2";
  for (const int64_t n : {p.batch, p.groups, p.channels, p.rows, p.filters})
    if (n < 1 || n > most) return "batch, groups, channels, rows and filters must be 1 to 2^30";
  if (p.segments < 1 || p.segments > 8) return "there must be 1 to 8 segments";
  if (p.multiprocessors < 1 || p.multiprocessors > 4096) return "multiprocessors must be 1 to 4096";
  if (p.shared_bytes < 0 || p.shared_bytes > 1 << 20) return "shared_bytes must be 0 to 2^20";
  const WgradAxes axes = wgrad_axes(p);
  int64_t pixels[2] = {p.batch, p.batch};
  for (int a = 0; a < 3; ++a) {
    if (axes.x[a] < 1 || axes.x[a] > most || axes.y[a] < 1 || axes.y[a] > most)
      return "sizes of maps must be 1 to 2^30";
    if (axes.kernel[a] < 1 || axes.kernel[a] > kWgradSlots) return "a filter has more than 384 taps, or none";
    if (axes.stride[a] < 1 || axes.stride[a] > 1023) return "strides must be 1 to 1023";
    if (axes.dilation[a] < 1 || axes.dilation[a] > 1023) return "dilations must be 1 to 1023";
    if (axes.padding[a] < 0 || axes.padding[a] > most) return "padding must be 0 to 2^30";
    if (axes.y[a] * axes.stride[a] > most) return "the map is too large";
    pixels[0] = pixels[0] > most ? pixels[0] : pixels[0] * axes.x[a];
    pixels[1] = pixels[1] > most ? pixels[1] : pixels[1] * axes.y[a];
  }
  if (pixels[0] > most || pixels[1] > most) return "there are more than 2^30 pixels";
  if (axes.kernel[0] * axes.kernel[1] * axes.kernel[2] > kWgradSlots)
    return "a filter has more than 384 taps, or none";
  if (p.groups * p.rows > int64_t{1} << 36 || p.groups * p.rows * p.channels > int64_t{1} << 36)
    return "the weight is too large";
  return "";
}

// Strides, such that offsets fit 64 bits.
inline std::string wgrad_check_strides(const WgradParams& p) {
  const WgradAxes axes = wgrad_axes(p);
  const auto wrong = [](int64_t size, int64_t stride) {
    return stride < 0 || stride > (int64_t{1} << 58) / size;
  };
  bool tensors = wrong(p.batch, axes.x_stride[0]) || wrong(p.batch, axes.y_stride[0]);
  // Tiles reach over the end of a map, where nothing is read.
  for (int a = 0; a < 3; ++a)
    tensors |= wrong(axes.x[a] + axes.padding[a] + 2048, axes.x_stride[a + 1]) ||
               wrong(axes.y[a] + 2048, axes.y_stride[a + 1]);
  if (tensors) return "strides of tensors must be 0 or more, and offsets below 2^58 elements";
  if (wrong(p.groups, p.w_stride_group) || wrong(p.rows, p.w_stride_row) ||
      wrong(p.channels, p.w_stride_channel) || wrong(p.kernel_depth, p.w_stride_z) ||
      wrong(p.kernel_height, p.w_stride_y) || wrong(p.kernel_width, p.w_stride_x))
    return "strides of the weight must be 0 or more, and offsets below 2^58 elements";
  return "";
}

inline std::string wgrad_check_segments(const WgradParams& p) {
  for (int i = 0; i < p.segments; ++i) {
    const WgradSegment s = wgrad_segment(p, i);
    const int64_t members = (int64_t{1} << wgrad_order(s.mask & 7)) - 1;
    if (s.mask < 0 || s.mask > 7) return "masks must be 0 to 7";
    if (s.rows < 1 || s.row < 0 || s.rows > p.rows || s.row > p.rows - s.rows)
      return "rows of a segment must lie in those of the weight";
    if (s.row > p.filters - s.rows) return "rows of a segment must lie in the filters";
    if (members && (s.copy < 0 || s.copy > p.filters || members * s.rows > p.filters - s.copy))
      return "members of a segment must lie in the filters";
  }
  return "";
}

// Copies are of 16 bytes: whole ones of the input, and every member of the gradient starts at one.
inline std::string wgrad_check_alignment(const WgradParams& p) {
  const int64_t vector = 16 / wgrad_bytes(p);
  const WgradAxes axes = wgrad_axes(p);
  const int64_t x_size[] = {p.batch, axes.x[0], axes.x[1], axes.x[2]};
  const int64_t y_size[] = {p.batch, axes.y[0], axes.y[1], axes.y[2]};
  if (p.channels % vector)
    return std::to_string(vector) + " does not divide the " + std::to_string(p.channels) +
           " input channels of a group";
  bool members = p.groups > 1 && p.filters % vector;
  for (int i = 0; i < p.segments; ++i) {
    const WgradSegment s = wgrad_segment(p, i);
    const int order = wgrad_order(s.mask);
    members |= s.row % vector || (order && s.copy % vector) || (order > 1 && s.rows % vector);
  }
  if (members) return std::to_string(vector) + " does not divide the rows of each tie in a group";
  for (int i = 0; i < 4; ++i)
    if ((x_size[i] > 1 && axes.x_stride[i] % vector) || (y_size[i] > 1 && axes.y_stride[i] % vector))
      return "pixels must lie at multiples of 16 bytes";
  return "";
}

}  // namespace symconv
