// The general matrix kernels, forward and gradient of the input, and what launches them.
//
// A persistent CTA walks over tiles. A stage is a chunk of 64 bytes of each pixel and a block of taps: a halo
// tile, copied once a chunk, and packed weights. While a stage is multiplied the copies of the next run. A
// tap is a shift of windows in the halo tile. Of m fragments and n blocks of 8 columns of a warp, a product
// of 32 bytes loads m matrices of x4 for the pixels and n / 2 for the weights, and makes m n instructions of
// the matrix unit.
#pragma once
#include "conv/layout.h"
#include "conv/loader.cuh"
#include "conv/prepare.cuh"
#include "conv/sums.cuh"
#include "launch.h"

namespace symconv {
namespace {

// Of a mask of some of three bits: its i-th bit, and the sum of those of its bits that `subset` counts.
CONV_BOTH constexpr int conv_bit(int mask, int i) {
  for (int bit = 0; bit < 3; ++bit)
    if (mask >> bit & 1 && i-- == 0) return bit;
  return 0;
}
CONV_BOTH constexpr int conv_spread(int mask, int subset) {
  int spread = 0;
  for (int i = 0; i < 3; ++i)
    if (subset >> i & 1) spread |= 1 << conv_bit(mask, i);
  return spread;
}
CONV_BOTH constexpr int conv_bits(int mask) { return (mask & 1) + (mask >> 1 & 1) + (mask >> 2 & 1); }

// What a table's entry says: the window of its tap, which of the products below it asks for, the logarithm of
// how many, and the distance to the mirrored window along each paired axis.
struct ConvEntry {
  int offset, number, more, delta[3];
};
__device__ __forceinline__ ConvEntry conv_load_entry(uint32_t table) {
  const uint128 v = shared_load16(table);
  return {static_cast<int>(v.x & 0xffffff),
          static_cast<int>(v.x >> 24 & 15),
          static_cast<int>(v.x >> 28),
          {static_cast<int>(v.y), static_cast<int>(v.z), static_cast<int>(v.w) >> 12}};
}

// What a warp multiplies: 128 accumulators a lane, 32 products of 16 pixels and 8 columns, split up as a
// tile's ties want it: by parity (forward), fragment of 16 pixels, block of 8 columns.
template <class T>
struct ConvWarp : ConvSums<T> {
  uint32_t base[4];  // bytes from the start of a halo tile to the lane's rows of each fragment

  __device__ __forceinline__ void locate(uint32_t pixel, int fragments) {
    const int matrix = lane() / 8, row = lane() % 8;
#pragma unroll
    for (int f = 0; f < 4; ++f)
      base[f] =
          shared_load(pixel + (min(f, fragments - 1) * 16 + matrix % 2 * 8 + row) * 8 + 4) + matrix / 2 * 16;
  }

  __device__ __forceinline__ void load_weights(uint32_t (&b)[4], uint32_t weights, int pair, int step) {
    // Lane 8m + i gives orbit i of the pair's block m / 2, half m % 2 of the step.
    const int row = lane() / 16 * 8 + lane() % 8;
    const uint32_t inside = row * kConvChunk + ((lane() / 8 % 2 ^ (row >> 1 & 3)) * 16);
    load_matrices(b, weights + (inside ^ step * 32) + pair * 16 * kConvChunk);
  }

  // The window of a tap, mirrored along some of the axes of kPaired.
  template <int kPaired>
  __device__ __forceinline__ void load_window(uint32_t (&a)[4], const ConvEntry& entry, uint32_t from,
                                              int mirrored) {
#pragma unroll
    for (int i = 0; i < 3; ++i)
      if (conv_spread(kPaired, mirrored) >> i & 1) from += entry.delta[i];
    load_matrices(a, from);
  }

  // Windows to parities, in place.
  template <int kCount>
  __device__ __forceinline__ void butterfly(uint32_t (&a)[kCount][4]) {
#pragma unroll
    for (int axis = 1; axis < kCount; axis *= 2) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        if (k & axis) continue;
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const uint32_t first = a[k][e], second = a[k + axis][e];
          a[k][e] = fold_add<T>(first, second);
          a[k + axis][e] = fold_subtract<T>(first, second);
        }
      }
    }
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
#pragma unroll
      for (int e = 0; e < 4; ++e) a[k][e] = operand<T>(a[k][e]);
    }
  }

  // The windows of a tap and of its mirror images along the axes of kPaired, folded into parities: all of
  // them, or those that are even (kHalf 0) or odd (1) along the last axis.
  template <int kPaired, int kHalf, int kCount>
  __device__ __forceinline__ void load_parities(uint32_t (&a)[kCount][4], const ConvEntry& entry,
                                                uint32_t from) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      load_window<kPaired>(a[k], entry, from, k);
      if constexpr (kHalf >= 0) {
        uint32_t other[4];
        load_window<kPaired>(other, entry, from, k + kCount);
#pragma unroll
        for (int e = 0; e < 4; ++e)
          a[k][e] = kHalf ? fold_subtract<T>(a[k][e], other[e]) : fold_add<T>(a[k][e], other[e]);
      }
    }
    butterfly(a);
  }

  // Products of a fragment with kPairs pairs of blocks, into the sums from `tile` on.
  template <int kPairs>
  __device__ __forceinline__ void product(int tile, const uint32_t (&a)[4], const uint32_t (&b)[kPairs][4]) {
#pragma unroll
    for (int j = 0; j < kPairs * 2; ++j)
      multiply<T>(this->sums[tile + j], a, b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
  }

  // Forward: each parity has a product of its own. Of pixels and weights, what takes fewer registers is
  // loaded first.
  template <int kOrder, int kPaired>
  __device__ __forceinline__ void fold(const ConvEntry& entry, uint32_t window, uint32_t weights, int next,
                                       int step) {
    constexpr int kFragments = conv_fragments(0, kOrder, 0), kPairs = conv_warp_columns(0, kOrder, 0) / 16;
    if constexpr (kFragments > kPairs) {
      fold_weights_first<kPaired, kFragments, kPairs>(entry, window, weights, next, step);
    } else if constexpr (T::kBytes == 4 && kPaired == 7) {  // too many registers for all parities at once
      fold_pixels_first<kPaired, 0, kFragments, kPairs>(entry, window, weights, next, step);
      fold_pixels_first<kPaired, 1, kFragments, kPairs>(entry, window, weights + 4 * next, next, step);
    } else {
      fold_pixels_first<kPaired, -1, kFragments, kPairs>(entry, window, weights, next, step);
    }
  }

  template <int kPaired, int kHalf, int kFragments, int kPairs>
  __device__ __forceinline__ void fold_pixels_first(const ConvEntry& entry, uint32_t window, uint32_t weights,
                                                    int next, int step) {
    constexpr int kCount = 1 << (conv_bits(kPaired) - (kHalf >= 0));
    uint32_t a[kFragments][kCount][4];
#pragma unroll
    for (int f = 0; f < kFragments; ++f) load_parities<kPaired, kHalf>(a[f], entry, window + base[f]);
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const int parity = conv_spread(kPaired, kHalf > 0 ? k + kCount : k);
      uint32_t b[kPairs][4];
#pragma unroll
      for (int j = 0; j < kPairs; ++j) load_weights(b[j], weights + k * next, j, step);
#pragma unroll
      for (int f = 0; f < kFragments; ++f)
        product<kPairs>((parity * kFragments + f) * kPairs * 2, a[f][k], b);
    }
  }

  template <int kPaired, int kFragments, int kPairs>
  __device__ __forceinline__ void fold_weights_first(const ConvEntry& entry, uint32_t window,
                                                     uint32_t weights, int next, int step) {
    constexpr int kCount = 1 << conv_bits(kPaired);
    uint32_t b[kCount][kPairs][4];
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
#pragma unroll
      for (int j = 0; j < kPairs; ++j) load_weights(b[k][j], weights + k * next, j, step);
    }
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
      uint32_t a[kCount][4];
      load_parities<kPaired, -1>(a, entry, window + base[f]);
#pragma unroll
      for (int k = 0; k < kCount; ++k)
        product<kPairs>((conv_spread(kPaired, k) * kFragments + f) * kPairs * 2, a[k], b[k]);
    }
  }

  // Backward: the sum of the windows of 2^kCount members.
  template <int kCount>
  __device__ __forceinline__ void gather(uint32_t (&a)[4], uint32_t from, const ConvEntry& entry) {
    if constexpr (kCount == 0) {
      load_matrices(a, from);
    } else {
      uint32_t other[4];
      gather<kCount - 1>(a, from, entry);
      gather<kCount - 1>(other, from + entry.delta[kCount - 1], entry);
#pragma unroll
      for (int e = 0; e < 4; ++e) a[e] = fold_add<T>(a[e], other[e]);
    }
  }

  template <int kColumns, int kCount>
  __device__ __forceinline__ void add(const ConvEntry& entry, uint32_t window, uint32_t weights, int step) {
    constexpr int kFragments = conv_fragments(1, 0, kColumns), kPairs = kColumns / 16;
    uint32_t a[kFragments][4];
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
      gather<kCount>(a[f], window + base[f], entry);
#pragma unroll
      for (int e = 0; e < 4; ++e) a[f][e] = operand<T>(a[f][e]);
    }
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      uint32_t b[1][4];
      load_weights(b[0], weights, j, step);
#pragma unroll
      for (int f = 0; f < kFragments; ++f) product<1>((f * kPairs + j) * 2, a[f], b);
    }
  }

  // What an entry asks for, by its number: forward 2^order - 1 + paired axes, backward the number of them
  // and, for 64 columns of a warp, 4.
  template <bool kGradient, int kFirst = 0, int kLast = kGradient ? 7 : 14>
  __device__ __forceinline__ void enter(int number, const ConvEntry& entry, uint32_t window, uint32_t weights,
                                        int next, int step) {
    if constexpr (kFirst < kLast) {
      constexpr int kMiddle = (kFirst + kLast) / 2;
      if (number <= kMiddle)
        enter<kGradient, kFirst, kMiddle>(number, entry, window, weights, next, step);
      else
        enter<kGradient, kMiddle + 1, kLast>(number, entry, window, weights, next, step);
    } else if constexpr (kGradient) {
      add < kFirst<4 ? 128 : 64, kFirst % 4>(entry, window, weights, step);
    } else {
      constexpr int kOrder = kFirst >= 7 ? 3 : kFirst >= 3 ? 2 : kFirst >= 1 ? 1 : 0;
      fold<kOrder, kFirst + 1 - (1 << kOrder)>(entry, window, weights, next, step);
    }
  }
};

// Copies ahead of products: the loader, and where the stage that is multiplied lies.
struct ConvPipeline {
  const ConvShape& s;
  ConvLoader loader;
  uint32_t shared;
  int input = 0, weights = 0;

  __device__ __forceinline__ ConvPipeline(const ConvShape& shape, const void* x, const void* packed)
      : s(shape),
        loader{shape, static_cast<const uint8_t*>(x), static_cast<const uint8_t*>(packed), shared_memory()},
        shared(shared_memory()) {
    const uint32_t table = shared + s.table_at;
    for (int i = thread(); i < s.head + s.entries; i += threads())
      shared_store16(table + i * kConvEntryBytes,
                     global_load16(loader.packed + int64_t{i} * kConvEntryBytes));
    conv_write_pixels(s, shared + s.pixels_at);
    loader.start();
    barrier();
  }

  // Until the next stage has arrived and nobody reads the one before; then more copies may go there.
  __device__ __forceinline__ void await() {
    bool full;
    do {
      full = loader.missing() == 0;
      if (full) {
        if (s.stages == 2)
          copy_wait<0>();
        else
          copy_wait<1>();
        barrier();
      }
      loader.issue();
      copy_commit();
    } while (!full);
  }
  __device__ __forceinline__ void next_weights() {
    weights = weights + s.weight_bytes == s.stages * s.weight_bytes ? 0 : weights + s.weight_bytes;
  }
  __device__ __forceinline__ void next_input() {
    input = input + s.input_bytes == s.slots * s.input_bytes ? 0 : input + s.input_bytes;
  }
};

// A tile: every stage of its parts, then its results.
template <class T, bool kGradient>
__device__ __forceinline__ void conv_tile(ConvPipeline& pipeline, int tile, const void* bias, void* y) {
  const ConvShape& s = pipeline.s;
  ConvWarp<T> warp;
  const ConvTile start = conv_locate(s, tile);
  const ConvPart& one = s.part[start.part];
  const int number = thread() / 32, columns = one.columns / one.column_warps;
  const int column = number % one.column_warps * columns;  // inside the block
  const uint32_t pixel = pipeline.shared + s.pixels_at + number / one.column_warps * (one.fragments * 16 * 8);
  const bool active = start.block * one.columns + column < (kGradient ? s.channels : one.rows);
  warp.clear();
  warp.locate(pixel, one.fragments);
  for (int part = start.part; part < start.parts_end; ++part) {
    const ConvPart& p = s.part[part];
    const ConvRange range = conv_range(s, pipeline.shared + s.table_at, p, start.c);
    if (range.entries == 0) continue;
    const uint32_t table = pipeline.shared + s.table_at + (s.head + range.first) * kConvEntryBytes;
    const uint32_t table_end = table + range.entries * kConvEntryBytes;
#pragma unroll 1
    for (int pieces = p.pieces; pieces > 0; pieces -= 4) {
      uint32_t line = table;
#pragma unroll 1
      while (line < table_end) {
        pipeline.await();
        const uint32_t end = min(line + p.entries * kConvEntryBytes, table_end);
        uint32_t weights = pipeline.shared + s.weights_at + pipeline.weights + column * kConvChunk;
#pragma unroll 1
        for (line = active ? line : end; line < end; line += kConvEntryBytes) {
          const ConvEntry entry = conv_load_entry(line);
          const uint32_t window = pipeline.shared + pipeline.input + entry.offset;
          const int next = p.columns * kConvChunk;
#pragma unroll 1
          for (int step = 0; step < (pieces > 2 ? 2 : 1); ++step)
            warp.template enter<kGradient>(entry.number, entry, window + step * 32, weights, next, step);
          weights += next << entry.more;
        }
        pipeline.next_weights();
      }
      pipeline.next_input();
    }
  }
  // Where the tile lies is found again: it would take registers all the while.
  compiler_fence();
  const ConvTile at = conv_locate(s, tile);
  const uint32_t line = pipeline.shared + s.table_at + (s.ranges + at.c) * kConvEntryBytes;
  if (active)
    warp.template store<kGradient>(s, at, at.block * s.part[at.part].columns + column, pixel, line, bias, y);
}

template <class T, bool kGradient>
__global__ void __launch_bounds__(256, 1) conv_multiply(const void* x, const void* packed, const void* bias,
                                                        void* y, const __grid_constant__ ConvShape s) {
  ConvPipeline pipeline(s, x, packed);
#pragma unroll 1
  for (int tile = block(); tile < s.tiles; tile += blocks()) conv_tile<T, kGradient>(pipeline, tile, bias, y);
}

}  // namespace

// Queues a kernel for a shape. The instances are compiled one by one.
template <class T>
std::string conv_run_prepare(const ConvShape& s, const Pointers& p, const Queue& queue) {
  int64_t threads = s.head + s.entries;
  for (int i = 0; i < s.parts; ++i) threads += conv_part_pieces(s, s.part[i]);
  return launch(conv_prepare<T>, static_cast<int>((threads + 255) / 256), 256, 0, queue, p.w,
                static_cast<uint8_t*>(p.workspace), s);
}
template <class T, bool kGradient>
std::string conv_run_multiply(const ConvShape& s, const Pointers& p, const Queue& queue) {
  const int grid = std::min(s.tiles, multiprocessors(queue.device) * s.resident);
  return launch(conv_multiply<T, kGradient>, grid, s.warps * 32, s.shared_bytes, queue, p.x,
                static_cast<const void*>(p.workspace), p.bias, p.y, s);
}

}  // namespace symconv
