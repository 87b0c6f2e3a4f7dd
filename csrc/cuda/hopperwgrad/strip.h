// Shapes of the Hopper weight gradient: a strip of pixels with the halo of the output's gradient.
//
// A CTA sums 64 rows x 64 channels x 9 taps over strips of 8 columns. In shared memory a strip of the input
// is one atom of 1024 bytes (8 pixels x 64 channels) an image row, and every member of the output's gradient
// lies pixel by pixel, 64 rows each, with a halo of one pixel on all sides.
#pragma once
#include <cstdint>

namespace symconv {

constexpr int kStripWidth = 8, kStripBlock = 64;  // pixels; rows and channels of a CTA

template <int MEMBERS, int HEIGHT, int STAGES>
struct Strip {
  static constexpr int kMembers = MEMBERS, kHeight = HEIGHT, kStages = STAGES;
  static constexpr int kSteps = HEIGHT / 2;  // of 16 pixels: image rows q and q + HEIGHT / 2
  static constexpr int kPitch = kStripWidth + 2, kPixelBytes = 2 * kStripBlock;
  static constexpr int kHaloBytes = (HEIGHT + 2) * kPitch * kPixelBytes;  // as the copy engine brings it
  static constexpr int kMemberBytes = (kHaloBytes + 1023) / 1024 * 1024;
  static constexpr int kRowBytes = kStripWidth * kPixelBytes, kInputBytes = HEIGHT * kRowBytes;
  static constexpr int kStageBytes = MEMBERS * kMemberBytes + kInputBytes;
  static constexpr int kCopiedBytes = MEMBERS * kHaloBytes + kInputBytes;
  static constexpr int kSharedBytes = STAGES * (kStageBytes + 16) + 1024;
  static constexpr int kThreads = 4 * 128;  // a warp group that copies, and one for each column of taps
  static_assert(kRowBytes == 1024, "an image row is an atom of the swizzle");
  static_assert(kSharedBytes <= 227 << 10, "shared memory of a CTA");
};

using h16 = Strip<2, 16, 3>;
using h8 = Strip<2, 8, 6>;
using hv16 = Strip<4, 16, 2>;
using hv8 = Strip<4, 8, 3>;

// In the order of hopperwgrad_variants(): tall and low, of two members and of four.
#define HOPPERWGRAD_STRIPS(F) F(h16) F(h8) F(hv16) F(hv8)

// What the kernel is given besides the maps. Blocks of rows and channels of all groups come first, splits
// after them.
struct HopperwgradWork {
  int down, across, strips;  // strips of an image, and of the batch
  int rows, channels, blocks_u, blocks_c, blocks;
  int splits;
};

}  // namespace symconv
