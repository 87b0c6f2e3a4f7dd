// What one launch of the weight gradient's kernels is given, and the shapes of a warp's work. Knows no CUDA.
//
// Algebra. Of an orbit of taps, let S be the tied axes along which its taps differ, p = |S|. For each parity
// c over S, G_c is the signed sum of the members of the output's gradient, X_c the signed sum of the orbit's
// 2^p windows of the input, W_c = sum over pixels of G_c X_c. The gradients of the orbit's taps are signed
// sums of the W_c divided by 2^p: as many products as the reduced filter has taps. G is made once a tile, in
// shared memory; X in registers.
#pragma once
#include <cstdint>

namespace symconv {

// Taps of an orbit, or parities, that a warp has accumulators for: `PARTS` has four bits for each of its
// `ORBITS` orbits, the tied axes S as a subset of the first orbit's. Its block of the gradient is 16 M rows x
// 8 N channels.
template <int M, int N, int ORBITS, uint64_t PARTS>
struct WgradSet {
  static constexpr int kM = M, kN = N, kOrbits = ORBITS;
  static constexpr int kRows = 16 * M, kChannels = 8 * N;
  static constexpr int part(int orbit) { return PARTS >> 4 * orbit & 7; }
  static constexpr int windows(int orbit) { return 1 << ((0x32212110 >> 4 * part(orbit)) & 3); }
  static constexpr int first(int orbit) { return orbit ? first(orbit - 1) + windows(orbit - 1) : 0; }
  static constexpr int kSlots = first(ORBITS - 1) + windows(ORBITS - 1);  // products a pixel
  static constexpr int kSlices = windows(0);                              // parities of the gradient in use
  // Whether these are all parities, in order; else an item's `axes` say which.
  static constexpr bool kWhole = ORBITS > 1 || part(0) == 0 || part(0) == 7;
  // The parity j of an orbit among those of the first one: its bits go to the set bits of `part`.
  static constexpr int slice(int orbit, int j) {
    int found = 0;
    for (int bit = 0; bit < 3; ++bit)
      if (part(orbit) >> bit & 1) found |= (j & 1) << bit, j >>= 1;
    return found;
  }
  // All of them, four bits each.
  static constexpr uint32_t slices(int orbit) {
    uint32_t all = 0;
    for (int j = 0; j < windows(orbit); ++j) all |= slice(orbit, j) << 4 * j;
    return all;
  }
};
// Numbers of one orbit of a set.
template <class Set, int ORBIT>
struct WgradOrbitOf {
  static constexpr int kWindows = Set::windows(ORBIT), kFirst = Set::first(ORBIT);
  static constexpr uint32_t kParities = Set::slices(ORBIT);
};

// One orbit a warp, of p = 0 to 3 axes; nine products of a 3 x 3 kernel or a part of another one: free, tied
// along one axis (three pairs, three centres), along two (a quadruple, two pairs, a centre).
using WgradOne0 = WgradSet<4, 8, 1, 0x0>;
using WgradOne1 = WgradSet<2, 8, 1, 0x1>;
using WgradOne2 = WgradSet<2, 4, 1, 0x3>;
using WgradOne3 = WgradSet<1, 4, 1, 0x7>;
using WgradThin3 = WgradSet<1, 2, 1, 0x7>;  // the same of TF32, whose addresses take more registers
using WgradNine0 = WgradSet<2, 2, 9, 0x0>;
using WgradNine1 = WgradSet<2, 2, 6, 0x000111>;
using WgradNine2 = WgradSet<2, 2, 4, 0x0213>;
using WgradFlat2 = WgradSet<1, 4, 4, 0x0213>;  // the same of at most 16 rows

constexpr int kWgradThreads = 256;  // of a CTA, at most
constexpr int kWgradSlots = 384;    // of the items of a launch: taps, and what fills the last item up

// Axes are depth, height, width. A tile is `tile` output pixels, in `runs` of 8 along the width; the input's
// tile has a halo: `halo` pixels, stored by phase of the width's step, `columns` of a phase.
struct WgradWork {
  int batch, channels, filters, rows, groups;
  int x[3], y[3], kernel[3], stride[3], dilation[3], padding[3];
  int64_t x_stride[4], y_stride[4];  // batch, depth, height, width
  int tile[3], tiles[3], all_tiles;  // pixels of a tile; tiles along an axis, and of the batch
  int sample[3], step[3], reach[3];  // only every sample-th pixel is kept; stride and dilation in samples
  int halo[3], columns, pixels, runs, steps;
  int x_pitch, y_pitch, slice_bytes;              // bytes of a pixel, and of a member's part of a stage
  int table_bytes, x_bytes, stage_bytes, stages;  // shared memory: tables, then stages of input and gradient
  int order, members[8];                          // channel of the first row of each member, by tied axes
  int warps_m, warps_n, blocks_m, blocks_n;       // warps of a CTA side by side, and CTAs
  int m_shift, n_shift;                           // chunks of 16 bytes of a pixel: 1 << shift
  int items, warps_items, sets;                   // items of orbits; of a CTA; CTAs for all
  int splits;                                     // of the tiles
  int mask;                                       // tied axes
  int16_t taps[kWgradSlots];                      // of each slot of each item, -1 of one that fills up
  int16_t axes[kWgradSlots];                      // of an item: parity bits of the first orbit's axes, 3 each
};

// Sums over the splits, and from parities to taps.
struct WgradTotal {
  int groups, rows, channels, kernel[3], mask, splits;
  int parts;          // threads that share the splits of an element: 1, 2, 4 or 8
  int64_t first;      // of the weight: the segment's first row
  int64_t stride[6];  // of the weight: group, row, channel, depth, height, width
};

}  // namespace symconv
