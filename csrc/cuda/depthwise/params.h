// Depthwise layers, all three passes: what a call is told.
//
// Of `Pointers`: fprop reads x, w and bias and writes y; dgrad reads the gradient of the output as x, the
// weight as w and writes the gradient of the input as y; wgrad reads the layer's input as x, the gradient of
// its output as w and writes the gradient of the weight as y.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "launch.h"

namespace symconv {

// Each of `channels` groups has one channel of input, `rows` rows of weight, `filters` channels of output.
// Strides are in elements, by the layer's tensors: x and y stand for their gradients too. Segment i ties rows
// from row_i on along the axes of mask_i (bit 0 width, 1 height); its mirrored members are channels from
// copy_i on. `swap` folds ties of the height alone along the height, else their two members are multiplied
// one by one.
//
// A CTA does `block` channels (more than one where channels are innermost), `images` images and a tile of the
// written map (fprop and wgrad: of y, dgrad: of x). wgrad gives `pairs` columns of taps to a CTA and each of
// `chunks` CTAs its share of the tiles.
// clang-format off
#define DEPTHWISE_SEGMENT(F, i) F(mask_##i) F(row_##i) F(rows_##i) F(copy_##i)
#define DEPTHWISE_FIELDS(F)                                                             \
  F(op) /* 0 fprop, 1 dgrad, 2 wgrad */ F(dtype)                                        \
  F(batch) F(channels) F(rows) F(filters)                                               \
  F(x_height) F(x_width) F(y_height) F(y_width)                                         \
  F(kernel_height) F(kernel_width) F(stride_height) F(stride_width)                     \
  F(dilation_height) F(dilation_width) F(padding_height) F(padding_width)               \
  F(x_stride_n) F(x_stride_c) F(x_stride_y) F(x_stride_x)                               \
  F(y_stride_n) F(y_stride_c) F(y_stride_y) F(y_stride_x)                               \
  F(w_stride_group) F(w_stride_row) F(w_stride_y) F(w_stride_x)                         \
  F(bias) F(activation) F(swap)                                                         \
  F(block) F(images) F(tile_height) F(tile_width) F(pairs) F(chunks) F(shared_bytes)    \
  F(segments)                                                                           \
  DEPTHWISE_SEGMENT(F, 0) DEPTHWISE_SEGMENT(F, 1) DEPTHWISE_SEGMENT(F, 2)               \
  DEPTHWISE_SEGMENT(F, 3) DEPTHWISE_SEGMENT(F, 4) DEPTHWISE_SEGMENT(F, 5)               \
  DEPTHWISE_SEGMENT(F, 6) DEPTHWISE_SEGMENT(F, 7)
// clang-format on

struct DepthwiseParams {
#define SYMCONV_FIELD(name) int64_t name = 0;
  DEPTHWISE_FIELDS(SYMCONV_FIELD)
#undef SYMCONV_FIELD
};

std::string depthwise_check(const DepthwiseParams& params);
int64_t depthwise_workspace(const DepthwiseParams& params);
std::string depthwise_launch(const DepthwiseParams& params, const Pointers& pointers, const Queue& queue);
std::vector<Variant> depthwise_variants();

}  // namespace symconv
