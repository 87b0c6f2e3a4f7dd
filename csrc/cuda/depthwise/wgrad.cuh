// Gradient of the weight of depthwise layers: sums and differences of mirrored members, of mirrored
// positions.
//
// A thread has kRun taps of a column, or of a pair of mirrored columns, and a part of the positions of each
// tile. It goes along the axis that is not folded with a window of kRun rows of the input in registers. Parts
// are added in shared memory in a fixed order at the end, the shares of the CTAs by a kernel of its own.
#pragma once
#include "depthwise/window.cuh"

namespace symconv {
namespace {

// Of a thread: its channel, its columns and taps, and its part of the positions.
struct DepthwiseItem {
  bool active;
  int channel, item, part, parts;
  int column, tap;  // of the folded axis; first of its taps along, the others tap_step apart
};

// Blocks of kRun taps of a column: those of each phase of the stride.
__device__ __forceinline__ int tap_blocks(const DepthwiseAxis& s) {
  const int of_phase = (s.taps - 1) / s.tap_step + 1;
  return s.tap_step * ((of_phase + kRun - 1) / kRun);
}

__device__ __forceinline__ DepthwiseItem item_of(const DepthwiseDevice& p, int first_column, int columns) {
  const DepthwiseAxis& s = p.axis[1];
  const int blocks = tap_blocks(s), items = columns * blocks;
  DepthwiseItem t;
  t.parts = threads() / (p.block * items);
  t.channel = thread() % p.block;
  const int rest = thread() / p.block;
  t.part = rest % t.parts;
  t.item = rest / t.parts;
  t.active = t.item < items;
  const int b = t.item % blocks;
  t.column = first_column + t.item / blocks;
  t.tap = b % s.tap_step + b / s.tap_step * kRun * s.tap_step;
  return t;
}

// A thread's place in a column of positions: in the input left and right, and in the gradients, whose sets
// lie `plane` bytes apart. `roll` and `next` are the bytes from a row of the input, or a position, to the
// next one.
template <int SETS, bool FOLD>
struct DepthwiseSweep {
  uint32_t left, right, gradient;
  int roll, next, plane;
  float even_rows[kRun], odd_rows[kRun];

  __device__ __forceinline__ void read(int slot, int row) {
    const float a = shared_float(left + row * roll);
    if (FOLD) {
      const float b = shared_float(right + row * roll);
      even_rows[slot] = a + b;
      odd_rows[slot] = a - b;
    } else {
      even_rows[slot] = a;
    }
  }

  __device__ __forceinline__ void multiply(float (&sums)[SETS][kRun], int u) {
    read((u + kRun - 1) % kRun, u + kRun - 1);
#pragma unroll
    for (int k = 0; k < SETS; ++k) {
      const float v = shared_float(gradient + k * plane + u * next);
#pragma unroll
      for (int i = 0; i < kRun; ++i) sums[k][i] += (FOLD && k % 2 ? odd_rows : even_rows)[(u + i) % kRun] * v;
    }
  }

  __device__ __forceinline__ void add(float (&sums)[SETS][kRun], int count) {
#pragma unroll
    for (int i = 0; i < kRun - 1; ++i) read(i, i);
    for (; count >= kRun; count -= kRun) {
#pragma unroll
      for (int u = 0; u < kRun; ++u) multiply(sums, u);
      left += kRun * roll, right += kRun * roll, gradient += kRun * next;
    }
#pragma unroll
    for (int u = 0; u < kRun - 1; ++u) {
      if (u >= count) break;
      multiply(sums, u);
    }
  }
};

// Fills the window of the input and the tile of the members, sums and differences of those mirrored across;
// gives where the window begins.
template <class T, bool FOLD, bool TWO>
__device__ __forceinline__ uint32_t fill_operands(const DepthwiseDevice& p, const DepthwisePlace& at,
                                                  const DepthwiseSegment& segment, int row, const void* x,
                                                  const void* gy, uint32_t window, uint32_t tile) {
  const uint32_t begin = fill_input<T>(p, at, x, window);
  const bool turned = p.columns == 1;
  DepthwiseMap map = gradient_map(p, at, gy, turned ? at.across : at.along, turned ? at.along : at.across);
  const int64_t group = map.at;
  const int plane = p.images * p.tile.image;
#pragma unroll
  for (int two = 0; two < (TWO ? 2 : 1); ++two) {
    const int n = two * (FOLD ? 2 : 1);
    const int64_t first = member_channel(segment, row, n) * p.y_channel;
    map.at = group + first;
    if (FOLD)
      fill<T, kParities>(p, p.tile, map, tile + n * plane,
                         member_channel(segment, row, n + 1) * p.y_channel - first, plane);
    else
      fill<T, kFirst>(p, p.tile, map, tile + n * plane);
  }
  return begin;
}

// Adds the parts of a CTA: in shared memory, [set][item][tap of it][channel] from `to` on.
template <int SETS>
__device__ __forceinline__ void add_parts(const float (&sums)[SETS][kRun], const DepthwiseDevice& p,
                                          const DepthwiseItem& t, int items, uint32_t to) {
  const uint32_t parts = shared_memory();
  const int apart = threads() + 1;  // taps of a thread: in different banks
#pragma unroll
  for (int k = 0; k < SETS; ++k) {
    barrier();
#pragma unroll
    for (int i = 0; i < kRun; ++i) shared_put(parts + (i * apart + thread()) * 4, sums[k][i]);
    barrier();
    for (int i = thread(); i < items * kRun * p.block; i += threads()) {
      const int c = i % p.block, tap = i / p.block % kRun, item = i / (p.block * kRun);
      float total = 0.0f;
#pragma unroll 4
      for (int part = 0; part < t.parts; ++part)
        total += shared_float(parts + (tap * apart + (item * t.parts + part) * p.block + c) * 4);
      shared_put(to + (k * items * kRun * p.block + i) * 4, total);
    }
  }
  barrier();
}

// The taps of a CTA from the sums of parities, into its share of the workspace: [chunk][row][tap][channel].
template <bool FOLD, bool TWO>
__device__ __forceinline__ void store_taps(const DepthwiseDevice& p, const DepthwisePlace& at, int row,
                                           int chunk, int first_column, int columns, uint32_t sums,
                                           float* work) {
  const DepthwiseAxis &f = p.axis[0], &s = p.axis[1];
  const int blocks = tap_blocks(s), set = columns * blocks * kRun * p.block * 4;
  const int sides = FOLD ? 2 : 1;
  const auto value = [&](int parity, int two, int j, int k, int c) {
    const int m = k / s.tap_step, item = j * blocks + k % s.tap_step + m / kRun * s.tap_step;
    return shared_float(sums + (two * sides + parity) * set + ((item * kRun + m % kRun) * p.block + c) * 4);
  };
  for (int i = thread(); i < sides * columns * s.taps * p.block; i += threads()) {
    const int c = i % p.block, k = i / p.block % s.taps, rest = i / (p.block * s.taps);
    const int j = rest % columns, side = rest / columns, column = first_column + j;
    if (c >= at.channels || (side && 2 * column + 1 == f.taps)) continue;
    float total = 0.0f;
    for (int two = 0; two < (TWO ? 2 : 1); ++two) {
      const int tap = two ? s.taps - 1 - k : k;
      const float even = value(0, two, j, tap, c), odd = FOLD ? value(1, two, j, tap, c) : 0.0f;
      total += FOLD ? 0.5f * (side ? even - odd : even + odd) : even;
    }
    const int across = side ? f.taps - 1 - column : column;
    const int at_tap = p.columns ? across * s.taps + k : k * f.taps + across;
    const int64_t filter = static_cast<int64_t>(chunk) * p.rows + row;
    work_store(work + (filter * f.taps * s.taps + at_tap) * p.channels + at.channel + c, total);
  }
}

}  // namespace

// The rows of one segment. PLAIN: stride and dilation along are 1.
template <class T, bool FOLD, bool TWO, bool PLAIN>
__global__ void __launch_bounds__(kWgradThreads, FOLD&& TWO ? 2 : 3)
    depthwise_wgrad(const __grid_constant__ DepthwiseDevice p, int number, const void* x, const void* gy,
                    float* work) {
  constexpr int sets = (FOLD ? 2 : 1) * (TWO ? 2 : 1);
  const DepthwiseSegment segment = p.segment[number];
  const DepthwiseAxis &f = p.axis[0], &s = p.axis[1];
  const int all = FOLD ? (f.taps + 1) / 2 : f.taps, shares = (all + p.pairs - 1) / p.pairs;
  int index = block();
  const int channel_block = index % channel_blocks(p);
  index /= channel_blocks(p);
  const int first_column = index % shares * p.pairs, columns = min(p.pairs, all - first_column);
  index /= shares;
  const int row = index % segment.rows, chunk = index / segment.rows;
  const int tiles = (p.batch + p.images - 1) / p.images * p.axis[0].tiles * p.axis[1].tiles;
  const int each = (tiles + p.chunks - 1) / p.chunks;
  const DepthwiseItem t = item_of(p, first_column, columns);
  const uint32_t window = shared_memory(), tile = window + p.images * p.window.image;
  DepthwiseSweep<sets, FOLD> sweep;
  sweep.plane = p.images * p.tile.image;
  sweep.roll = PLAIN ? 4 : s.row_step * 4;
  sweep.next = PLAIN ? 4 : s.output_step * 4;
  float sums[sets][kRun] = {};
  for (int i = chunk * each; i < min(tiles, chunk * each + each); ++i) {
    const DepthwisePlace at = place_of(p, i, channel_block);
    barrier();  // all have done with the tile from before
    const uint32_t begin = fill_operands<T, FOLD, TWO>(p, at, segment, row, x, gy, window, tile);
    barrier();
    if (!t.active || t.channel >= at.channels) continue;
    for (int column = t.part; column < at.images * f.tile; column += t.parts) {
      const int image = column / f.tile, across = column % f.tile;
      const uint32_t here = begin + image * p.window.image + t.channel * p.window.channel +
                            across * f.stride * f.step + s.dilation * t.tap * 4;
      const uint32_t there = tile + image * p.tile.image + t.channel * p.tile.channel + across * f.tile_step;
      for (int phase = 0; phase < (PLAIN ? 1 : s.output_step); ++phase) {
        const uint32_t start = here + phase * s.stride * 4;
        sweep.left = start + t.column * f.dilation * f.step;
        sweep.right = start + (f.taps - 1 - t.column) * f.dilation * f.step;
        sweep.gradient = there + phase * 4;
        sweep.add(sums, PLAIN ? s.tile : (s.tile - phase + s.output_step - 1) / s.output_step);
      }
    }
  }
  const int items = columns * tap_blocks(s);
  const uint32_t totals = shared_memory() + kRun * (kWgradThreads + 1) * 4;
  add_parts(sums, p, t, items, totals);
  const DepthwisePlace at = place_of(p, 0, channel_block);
  store_taps<FOLD, TWO>(p, at, segment.row + row, chunk, first_column, columns, totals, work);
}

// The shares of the CTAs, added in their order.
template <class T>
__global__ void __launch_bounds__(kSumThreads)
    depthwise_sum(const __grid_constant__ DepthwiseDevice p, const float* work, void* gw) {
  const DepthwiseAxis &width = p.axis[p.columns], &height = p.axis[p.columns ^ 1];
  const int taps = width.taps * height.taps;
  const int64_t all = static_cast<int64_t>(p.rows) * taps * p.channels;
  const int64_t i = static_cast<int64_t>(block()) * kSumThreads + thread();
  if (i >= all) return;
  float total = 0.0f;
  for (int chunk = 0; chunk < p.chunks; ++chunk) total += work_load(work + chunk * all + i);
  const int c = static_cast<int>(i % p.channels), filter = static_cast<int>(i / p.channels);
  const int tap = filter % taps, row = filter / taps;
  const int y = tap / width.taps, x = tap % width.taps;
  store_element<T>(gw, c * p.w_group + row * p.w_row + y * height.w_stride + x * width.w_stride, total);
}

}  // namespace symconv
