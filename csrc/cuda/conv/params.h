// What a call of the general matrix kernels is given: sizes, strides, ties, the tile; checked before anything
// runs.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace symconv {

struct Pointers;
struct Queue;
struct Variant;

// Forward pass or gradient of the input of a convolution with filters tied by reflection.
//   op         0 forward, 1 gradient of the input
//   dtype      0 bfloat16, 1 float16, 2 float32 (multiplied as TF32)
//   groups
//   channels, rows, filters   of one group: of the input, of the reduced weight, of the output
//   x_*, y_*   sizes of the layer's input and output (depth z, height y, width x)
//   xs_*, ys_* strides in elements of its input (or the gradient) and its output (or the gradient); channels
//              have stride 1
//   ws_*       strides in elements of the reduced weight
//   segments   rows that share a tie, up to 8: rows `row` to `row + rows`, tied along the axes of `mask`
//              (1 x, 2 y, 4 z), mirrored copies among the output channels from `copy` on
//   activation 0 none, 1 ReLU, 2 SiLU, 3 GELU, of the forward pass
// The launch:
//   tile_*     pixels of a tile: images, planes, rows, columns
//   pixels     of a CTA, as many as the tile or some more; 16 divides it
//   warps      of a CTA
//   columns    that a warp multiplies, of the gradient of the input: 128 or 64. Of the forward pass: 0
//   stages     of the pipeline, 2 or 3
//   weight_bytes   of weights in a stage, at most
//   unfolded   axes along which the gradient of the input does not add members before it multiplies
//   shared_bytes   that a CTA may have
//   resident   CTAs of a multiprocessor
// Pointers: x is what is read (the input, or the gradient of the output), y what is written (the output, or
// the gradient of the input), w the reduced weight, bias one element an output channel in dtype, or null.
// clang-format off
#define CONV_SEGMENT_FIELDS(F, n) F(mask##n) F(row##n) F(rows##n) F(copy##n)
#define CONV_FIELDS(F)                                                              \
  F(op) F(dtype)                                                                    \
  F(batch) F(groups) F(channels) F(rows) F(filters)                                 \
  F(x_z) F(x_y) F(x_x) F(y_z) F(y_y) F(y_x)                                         \
  F(kernel_z) F(kernel_y) F(kernel_x)                                               \
  F(stride_z) F(stride_y) F(stride_x)                                               \
  F(dilation_z) F(dilation_y) F(dilation_x)                                         \
  F(padding_z) F(padding_y) F(padding_x)                                            \
  F(xs_n) F(xs_z) F(xs_y) F(xs_x) F(ys_n) F(ys_z) F(ys_y) F(ys_x)                   \
  F(ws_group) F(ws_row) F(ws_channel) F(ws_z) F(ws_y) F(ws_x)                       \
  F(segments)                                                                       \
  CONV_SEGMENT_FIELDS(F, 0) CONV_SEGMENT_FIELDS(F, 1) CONV_SEGMENT_FIELDS(F, 2)     \
  CONV_SEGMENT_FIELDS(F, 3) CONV_SEGMENT_FIELDS(F, 4) CONV_SEGMENT_FIELDS(F, 5)     \
  CONV_SEGMENT_FIELDS(F, 6) CONV_SEGMENT_FIELDS(F, 7)                               \
  F(activation)                                                                     \
  F(tile_n) F(tile_z) F(tile_y) F(tile_x) F(pixels) F(warps)                        \
  F(columns) F(stages) F(weight_bytes) F(unfolded) F(shared_bytes) F(resident)
// clang-format on

struct ConvParams {
#define SYMCONV_FIELD(name) int64_t name = 0;
  CONV_FIELDS(SYMCONV_FIELD)
#undef SYMCONV_FIELD
};

std::string conv_check(const ConvParams& p);  // nothing, or what is wrong
int64_t conv_workspace(const ConvParams& p);  // bytes: the table of taps and the packed weights
std::string conv_launch(const ConvParams& p, const Pointers& pointers, const Queue& queue);
std::vector<Variant> conv_variants();

}  // namespace symconv
