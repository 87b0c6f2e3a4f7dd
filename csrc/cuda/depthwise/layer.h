// What the depthwise kernels are given: plain numbers, in 32 bits but for what may be large.
#pragma once
#include <cstdint>

namespace symconv {

constexpr int kRun =
    7;  // neighbouring outputs, or taps of wgrad, of a thread: divides the maps of most networks
constexpr int kFpropThreads = 256, kDgradThreads = 512, kWgradThreads = 256;  // most of a CTA
constexpr int kSumThreads = 128;
constexpr int kSegments = 8;

// One axis. With g the common divisor of stride and dilation, outputs that are dilation / g apart meet the
// same positions of the input with taps that are stride / g apart; those positions are stride * dilation / g
// apart.
struct DepthwiseAxis {
  int taps, stride, dilation, padding;
  int output_step, tap_step, row_step;  // dilation / g, stride / g, stride * dilation / g
  int x, y;                             // sizes of the layer's input and output
  int tile, tiles;  // of the map that is tiled, y or x of dgrad: size, and how many cover it
  int extent;       // of the window of the other map that a tile needs
  int step;         // bytes from one position of the window to the next
  int tile_step;    // the same inside of a tile, the second operand of wgrad
};

// Strides of a tensor in global memory, in elements.
struct DepthwisePixels {
  int64_t n, c, y, x;
};

// How the threads of a CTA fill a window, or a tile: a run is what lies side by side in shared memory, the
// channels of a pixel if those are innermost, else a row. Divisors are 2^32 / n, rounded up.
struct DepthwiseFill {
  int elements;   // of one load: 2 of 16 bits, or 1
  int lanes_log;  // of the threads of a run
  int run, runs_of_row, rows;
  uint32_t divide_runs, divide_rows;
};

struct DepthwiseSegment {
  int mask, row, rows, copy;
};

struct DepthwiseDevice {
  DepthwiseAxis axis[2];  // width, height
  DepthwisePixels x, y;
  int64_t w_group, w_row, w_tap[2];  // strides of the weight, the last by axis
  DepthwiseFill window, tile;
  int batch, channels, rows, filters, segments;
  int block, images;             // of a CTA: channels, images
  int last;                      // channels are innermost in shared memory
  int adjacent;                  // the members of an orbit are neighbours in memory: they are stored at once
  int window_image, tile_image;  // bytes of one image in the window, and in a plane of tiles
  int weights;                   // bytes from the start of shared memory to the weights
  int swap, bias, activation;
  int pairs, chunks;  // of wgrad: columns of taps of a CTA, shares of the tiles
  DepthwiseSegment segment[kSegments];
};

}  // namespace symconv
