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

__device__ __forceinline__ DepthwiseItem item_of(const DepthwiseDevice& p, const DepthwiseAxis& s,
                                                 int first_column, int columns) {
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

// What a thread adds of one column of positions. `left` and `right` are where its taps meet the input at the
// first position, `limit` is the last row of the window: beyond it are taps that do not exist.
template <int SETS, bool FOLD>
__device__ __forceinline__ void add_positions(float (&sums)[SETS][kRun], const DepthwiseAxis& s,
                                              uint32_t left, uint32_t right, int start, int limit,
                                              uint32_t tile, int plane, int phase) {
  const int roll = s.row_step * s.step, next = s.output_step * s.tile_step;
  const int count = (s.tile - phase + s.output_step - 1) / s.output_step;
  int offset = start + phase * s.stride * s.step;
  uint32_t g = tile + phase * s.tile_step;
  float even[kRun], odd[kRun];
  const auto read = [&](int slot) {
    const int to = min(offset, limit);
    even[slot] = shared_float(left + to);
    if (FOLD) {
      const float b = shared_float(right + to);
      odd[slot] = even[slot] - b;
      even[slot] += b;
    }
    offset += roll;
  };
#pragma unroll
  for (int i = 0; i < kRun - 1; ++i) read(i);
  for (int first = 0; first < count; first += kRun) {
#pragma unroll
    for (int u = 0; u < kRun; ++u) {
      if (first + u >= count) break;
      read((u + kRun - 1) % kRun);
#pragma unroll
      for (int k = 0; k < SETS; ++k) {
        const float v = shared_float(g + k * plane);
#pragma unroll
        for (int i = 0; i < kRun; ++i) sums[k][i] += (FOLD && k % 2 ? odd : even)[(u + i) % kRun] * v;
      }
      g += next;
    }
  }
}

// Fills the window of the input and the tile of the members, sums and differences of those mirrored along the
// fold.
template <class T, bool FOLD, bool TWO>
__device__ __forceinline__ int fill_operands(const DepthwiseDevice& p, const DepthwisePlace& at,
                                             const DepthwiseSegment& segment, int row, const void* x,
                                             const void* gy, uint32_t window, uint32_t tile) {
  const DepthwiseAxis &width = p.axis[0], &height = p.axis[1];
  const int left = at.origin[0] * width.stride - width.padding, lead = lead_of(p, left);
  const int64_t from = at.image * p.x.n + at.channel * p.x.c;
  const DepthwiseMap map{x,          from,        p.x,       height.x,
                         width.x,    at.channels, at.images, at.origin[1] * height.stride - height.padding,
                         left - lead};
  fill<T, false>(p.window, map, p, window, height.step, width.step, 0, 0);
  DepthwisePixels stride = p.y;
  stride.c *= p.filters;
  const int64_t group = at.image * p.y.n + static_cast<int64_t>(at.channel) * p.filters * p.y.c;
  const int plane = p.images * p.tile_image;
#pragma unroll
  for (int two = 0; two < (TWO ? 2 : 1); ++two) {
    const int n = two * (FOLD ? 2 : 1);
    const int64_t a = member_channel(segment, row, n) * p.y.c;
    const int64_t b = FOLD ? member_channel(segment, row, n + 1) * p.y.c : 0;
    const DepthwiseMap members{gy,          group + a, stride,       height.y,    width.y,
                               at.channels, at.images, at.origin[1], at.origin[0]};
    fill<T, FOLD>(p.tile, members, p, tile + n * plane, height.tile_step, width.tile_step, b - a, plane);
  }
  return lead * width.step;
}

// Adds the parts of a CTA: in shared memory, [set][item][tap of it][channel] from `to` on.
template <int SETS>
__device__ __forceinline__ void add_parts(const float (&sums)[SETS][kRun], const DepthwiseDevice& p,
                                          const DepthwiseItem& t, int items, uint32_t to) {
  const uint32_t parts = shared_memory();
#pragma unroll
  for (int k = 0; k < SETS; ++k) {
    barrier();
#pragma unroll
    for (int i = 0; i < kRun; ++i) shared_put(parts + (i * threads() + thread()) * 4, sums[k][i]);
    barrier();
    for (int i = thread(); i < items * kRun * p.block; i += threads()) {
      const int c = i % p.block, tap = i / p.block % kRun, item = i / (p.block * kRun);
      float total = 0.0f;
      for (int part = 0; part < t.parts; ++part)
        total += shared_float(parts + (tap * threads() + (item * t.parts + part) * p.block + c) * 4);
      shared_put(to + (k * items * kRun * p.block + i) * 4, total);
    }
  }
  barrier();
}

// The taps of a CTA from the sums of parities, into its share of the workspace.
template <bool FOLD, bool TWO>
__device__ __forceinline__ void store_taps(const DepthwiseDevice& p, int folded, const DepthwisePlace& at,
                                           int row, int chunk, int first_column, int columns, uint32_t sums,
                                           float* work) {
  const DepthwiseAxis &f = p.axis[folded], &s = p.axis[folded ^ 1];
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
    const int at_tap = folded ? across * s.taps + k : k * f.taps + across;
    const int64_t filter = static_cast<int64_t>(chunk) * p.rows + row;
    work_store(work + (filter * f.taps * s.taps + at_tap) * p.channels + at.channel + c, total);
  }
}

}  // namespace

// The rows of one segment. `members` are sets of sums: parities of the folded axis, times the members along
// the other.
template <class T, bool FOLD, bool TWO>
__global__ void __launch_bounds__(kWgradThreads, 3)
    depthwise_wgrad(const __grid_constant__ DepthwiseDevice p, int number, int folded, const void* x,
                    const void* gy, float* work) {
  constexpr int sets = (FOLD ? 2 : 1) * (TWO ? 2 : 1);
  const DepthwiseSegment segment = p.segment[number];
  const DepthwiseAxis &f = p.axis[folded], &s = p.axis[folded ^ 1];
  const int all = FOLD ? (f.taps + 1) / 2 : f.taps, shares = (all + p.pairs - 1) / p.pairs;
  int index = block();
  const int channel_block = index % channel_blocks(p);
  index /= channel_blocks(p);
  const int first_column = index % shares * p.pairs, columns = min(p.pairs, all - first_column);
  index /= shares;
  const int row = index % segment.rows, chunk = index / segment.rows;
  const int tiles = (p.batch + p.images - 1) / p.images * p.axis[0].tiles * p.axis[1].tiles;
  const int each = (tiles + p.chunks - 1) / p.chunks;
  const DepthwiseItem t = item_of(p, s, first_column, columns);
  const uint32_t window = shared_memory(), tile = window + p.images * p.window_image;
  float sums[sets][kRun] = {};
  for (int i = chunk * each; i < min(tiles, chunk * each + each); ++i) {
    const DepthwisePlace at = place_of(p, i, channel_block);
    barrier();  // all have done with the tile from before
    const int lead = fill_operands<T, FOLD, TWO>(p, at, segment, row, x, gy, window, tile);
    barrier();
    if (!t.active || t.channel >= at.channels) continue;
    const int start = (s.dilation * t.tap) * s.step;
    for (int column = t.part; column < at.images * f.tile; column += t.parts) {
      const int image = column / f.tile, across = column % f.tile;
      const uint32_t here =
          window + lead + image * p.window_image + 4 * t.channel + across * f.stride * f.step;
      const uint32_t left = here + t.column * f.dilation * f.step;
      const uint32_t right = here + (f.taps - 1 - t.column) * f.dilation * f.step;
      const uint32_t there = tile + image * p.tile_image + 4 * t.channel + across * f.tile_step;
      for (int phase = 0; phase < s.output_step; ++phase)
        add_positions<sets, FOLD>(sums, s, left, right, start, (s.extent - 1) * s.step, there,
                                  p.images * p.tile_image, phase);
    }
  }
  const int items = columns * tap_blocks(s);
  const uint32_t totals = shared_memory() + kRun * kWgradThreads * 4;
  add_parts(sums, p, t, items, totals);
  const DepthwisePlace at = place_of(p, 0, channel_block);
  store_taps<FOLD, TWO>(p, folded, at, segment.row + row, chunk, first_column, columns, totals, work);
}

// The shares of the CTAs, added in their order.
template <class T>
__global__ void __launch_bounds__(kSumThreads)
    depthwise_sum(const __grid_constant__ DepthwiseDevice p, const float* work, void* gw) {
  const int taps = p.axis[0].taps * p.axis[1].taps;
  const int64_t all = static_cast<int64_t>(p.rows) * taps * p.channels;
  const int64_t i = static_cast<int64_t>(block()) * kSumThreads + thread();
  if (i >= all) return;
  float total = 0.0f;
  for (int chunk = 0; chunk < p.chunks; ++chunk) total += work_load(work + chunk * all + i);
  const int c = static_cast<int>(i % p.channels), filter = static_cast<int>(i / p.channels);
  const int tap = filter % taps, row = filter / taps;
  const int y = tap / p.axis[0].taps, x = tap % p.axis[0].taps;
  store_element<T>(gw, c * p.w_group + row * p.w_row + y * p.w_tap[1] + x * p.w_tap[0], total);
}

}  // namespace symconv
