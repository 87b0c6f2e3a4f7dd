// The gradient of a reduced weight on matrix units: what a call is told, any geometry.
//
// Of `Pointers`, x is the layer's input, w the gradient of its output (both read), y the gradient of the
// reduced weight, which is written. The names of strides are those of the layer: y of the output's gradient,
// w of the weight's.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "../launch.h"

namespace symconv {

// Sizes are those of one group where channels are counted; strides are in elements, channels of x and y are
// adjacent. Segment i ties the rows from row_i on along the axes in mask_i (bit 0 width, 1 height, 2 depth);
// its mirrored members are output channels from copy_i on. Segments beyond `segments` are zeros.
// `shared_bytes` is the most shared memory of a CTA; `multiprocessors` of the device size the splits.
// clang-format off
#define WGRAD_SEGMENT(F, i) F(mask_##i) F(row_##i) F(rows_##i) F(copy_##i)
#define WGRAD_FIELDS(F)                                                                            \
  F(dtype)                                                                                         \
  F(batch) F(groups) F(channels) F(rows) F(filters)                                                \
  F(x_depth) F(x_height) F(x_width)                                                                \
  F(y_depth) F(y_height) F(y_width)                                                                \
  F(kernel_depth) F(kernel_height) F(kernel_width)                                                 \
  F(stride_depth) F(stride_height) F(stride_width)                                                 \
  F(dilation_depth) F(dilation_height) F(dilation_width)                                           \
  F(padding_depth) F(padding_height) F(padding_width)                                              \
  F(x_stride_n) F(x_stride_z) F(x_stride_y) F(x_stride_x)                                          \
  F(y_stride_n) F(y_stride_z) F(y_stride_y) F(y_stride_x)                                          \
  F(w_stride_group) F(w_stride_row) F(w_stride_channel) F(w_stride_z) F(w_stride_y) F(w_stride_x)  \
  F(shared_bytes) F(multiprocessors) F(segments)                                                   \
  WGRAD_SEGMENT(F, 0) WGRAD_SEGMENT(F, 1) WGRAD_SEGMENT(F, 2) WGRAD_SEGMENT(F, 3)                  \
  WGRAD_SEGMENT(F, 4) WGRAD_SEGMENT(F, 5) WGRAD_SEGMENT(F, 6) WGRAD_SEGMENT(F, 7)
// clang-format on

struct WgradParams {
#define SYMCONV_FIELD(name) int64_t name = 0;
  WGRAD_FIELDS(SYMCONV_FIELD)
#undef SYMCONV_FIELD
};

std::string wgrad_check(const WgradParams& params);
int64_t wgrad_workspace(const WgradParams& params);
std::string wgrad_launch(const WgradParams& params, const Pointers& pointers, const Queue& queue);
std::vector<Variant> wgrad_variants();
PlanFacts plan_facts(const WgradParams& params);

}  // namespace symconv
