// What the depthwise kernels are given: plain numbers, in 32 bits but for what may be large.
#pragma once
#include <cstdint>

namespace symconv {

constexpr int kRun =
    7;  // neighbouring outputs, or taps of wgrad, of a thread: divides the maps of most networks
constexpr int kFpropThreads = 224, kDgradThreads = 448, kWgradThreads = 256;  // most of a CTA
constexpr int kSumThreads = 128;
constexpr int kSegments = 8;

// One axis. With g the common divisor of stride and dilation, outputs that are dilation / g apart meet the
// same positions of the input with taps that are stride / g apart; those positions are stride * dilation / g
// apart.
struct DepthwiseAxis {
  int taps, stride, dilation, padding;
  int output_step, tap_step, row_step;  // dilation / g, stride / g, stride * dilation / g
  int x, y;                             // sizes of the layer's input and output
  int tile, tiles;      // of the map that is tiled, y or x of dgrad: size, and how many cover it
  int step, tile_step;  // bytes of a position in the window and in a tile, in shared memory
  int64_t x_stride, y_stride, w_stride;  // in global memory, in elements
};

// How a map is copied to shared memory: [image][channel][across][along], float32. With the channels innermost
// in global memory a thread copies `kAtOnce` pixels of a row at a time, else `kAtOnce` rows. Divisors are
// 2^32 / n, rounded up.
enum DepthwiseLoads {
  kSingle = 1,
  kNeighbours = 2,
  kMembers = 3
};  // kMembers: two members of an orbit at once
struct DepthwiseFill {
  int loads, lanes_log;
  int rows, columns, parts;  // parts of a row that a thread copies at once
  uint32_t divide_rows, divide_parts;
  int row, column, channel, image;  // bytes in shared memory
};

struct DepthwiseSegment {
  int mask, row, rows, copy;  // bit 0 of the mask: tied across, bit 1: tied along
};

struct DepthwiseDevice {
  DepthwiseAxis
      axis[2];  // across: that may be folded; along: neighbours in shared memory, kRun of them a thread's
  int columns;  // which of them is the width
  int64_t x_image, x_channel, y_image, y_channel, w_group, w_row;  // strides in global memory
  DepthwiseFill window, tile;
  int batch, channels, rows, filters, segments;
  int block, images;  // of a CTA: channels, images
  int last;  // channels are innermost in global memory, and neighbouring threads have neighbouring channels
  int adjacent;         // the members of an orbit are neighbours in memory: they are stored at once
  int weights;          // bytes from the start of shared memory to the weights
  int weights_channel;  // bytes of one channel of them
  int bias, activation;
  int pairs, chunks;  // of wgrad: columns of taps of a CTA, shares of the tiles
  DepthwiseSegment segment[kSegments];
};

}  // namespace symconv
