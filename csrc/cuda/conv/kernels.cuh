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

// What a table's entry says: the window of its tap, and the distance to the mirrored one along each folded
// axis.
struct ConvEntry {
  int offset, paired, delta[3];
};
__device__ __forceinline__ ConvEntry conv_load_entry(uint32_t table) {
  const uint128 v = shared_load16(table);
  return {static_cast<int>(v.x & 0xffffff),
          static_cast<int>(v.x >> 24),
          {static_cast<int>(v.y), static_cast<int>(v.z), static_cast<int>(v.w) >> 12}};
}

template <class T, int kOrder, int kFragments, int kBlocks>
struct ConvWarp : ConvSums<T, kOrder, kFragments, kBlocks> {
  using Sums = ConvSums<T, kOrder, kFragments, kBlocks>;
  uint32_t base[kFragments];  // bytes from the start of a halo tile to the lane's rows of each fragment

  __device__ __forceinline__ void locate(uint32_t pixel) {
    const int matrix = lane() / 8, row = lane() % 8;
#pragma unroll
    for (int f = 0; f < kFragments; ++f)
      base[f] = shared_load(pixel + (f * 16 + matrix % 2 * 8 + row) * 8 + 4) + matrix / 2 * 16;
  }

  __device__ __forceinline__ void load_weights(uint32_t (&b)[4], uint32_t weights, int pair, int step) {
    // Lane 8m + i gives orbit i of the pair's block m / 2, half m % 2 of the step.
    const int row = lane() / 16 * 8 + lane() % 8;
    const uint32_t inside = row * kConvChunk + ((lane() / 8 % 2 ^ (row >> 1 & 3)) * 16);
    load_matrices(b, weights + (inside ^ step * 32) + pair * 16 * kConvChunk);
  }

  // The windows of a tap and of its mirror images along the axes of kPaired, folded into parities.
  template <int kPaired, int kCount>
  __device__ __forceinline__ void load_parities(uint32_t (&a)[kCount][4], const ConvEntry& entry,
                                                uint32_t from) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      uint32_t window = from;
#pragma unroll
      for (int i = 0; i < 3; ++i)
        if (conv_spread(kPaired, k) >> i & 1) window += entry.delta[i];
      load_matrices(a[k], window);
    }
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

  __device__ __forceinline__ void product(int parity, int f, const uint32_t (&a)[4],
                                          const uint32_t (&b)[kBlocks / 2][4]) {
#pragma unroll
    for (int j = 0; j < kBlocks; ++j)
      multiply<T>(&this->sums[parity][f][j * 4], a, b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
  }

  // Forward: each parity has a product of its own. Of pixels and weights, what takes fewer registers is
  // loaded first.
  template <int kPaired>
  __device__ __forceinline__ void fold(const ConvEntry& entry, uint32_t window, uint32_t weights, int next,
                                       int step) {
    constexpr int kCount = 1 << conv_bits(kPaired);
    if constexpr (kFragments <= kBlocks / 2) {
      uint32_t a[kFragments][kCount][4];
#pragma unroll
      for (int f = 0; f < kFragments; ++f) load_parities<kPaired>(a[f], entry, window + base[f]);
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        uint32_t b[kBlocks / 2][4];
#pragma unroll
        for (int j = 0; j < kBlocks / 2; ++j) load_weights(b[j], weights + k * next, j, step);
#pragma unroll
        for (int f = 0; f < kFragments; ++f) product(conv_spread(kPaired, k), f, a[f][k], b);
      }
    } else {
      uint32_t b[kCount][kBlocks / 2][4];
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
#pragma unroll
        for (int j = 0; j < kBlocks / 2; ++j) load_weights(b[k][j], weights + k * next, j, step);
      }
#pragma unroll
      for (int f = 0; f < kFragments; ++f) {
        uint32_t a[kCount][4];
        load_parities<kPaired>(a, entry, window + base[f]);
#pragma unroll
        for (int k = 0; k < kCount; ++k) product(conv_spread(kPaired, k), f, a[k], b[k]);
      }
    }
  }

  template <int kPaired = 0>
  __device__ __forceinline__ void fold_paired(const ConvEntry& entry, uint32_t window, uint32_t weights,
                                              int next, int step) {
    if constexpr (kPaired + 1 < 1 << kOrder) {
      if (entry.paired != kPaired) {
        fold_paired<kPaired + 1>(entry, window, weights, next, step);
        return;
      }
    }
    fold<kPaired>(entry, window, weights, next, step);
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

  template <int kCount = 0>
  __device__ __forceinline__ void gather_all(uint32_t (&a)[kFragments][4], const ConvEntry& entry,
                                             uint32_t window) {
    if constexpr (kCount < 3) {
      if (entry.paired >> kCount) {
        gather_all<kCount + 1>(a, entry, window);
        return;
      }
    }
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
      gather<kCount>(a[f], window + base[f] + entry.offset, entry);
#pragma unroll
      for (int e = 0; e < 4; ++e) a[f][e] = operand<T>(a[f][e]);
    }
  }

  __device__ __forceinline__ void add(const ConvEntry& entry, uint32_t window, uint32_t weights, int step) {
    uint32_t a[kFragments][4];
    gather_all(a, entry, window);
#pragma unroll
    for (int j = 0; j < kBlocks / 2; ++j) {
      uint32_t b[4];
      load_weights(b, weights, j, step);
#pragma unroll
      for (int f = 0; f < kFragments; ++f) {
        multiply<T>(&this->sums[0][f][j * 8], a[f], b[0], b[1]);
        multiply<T>(&this->sums[0][f][j * 8 + 4], a[f], b[2], b[3]);
      }
    }
  }
};

// Copies ahead of products: the loader, and where the stage that is multiplied lies.
struct ConvPipeline {
  const ConvShape& s;
  ConvLoader loader;
  uint32_t shared;
  int input = 0, weights = 0, missing;  // stages that are still to be copied before the first is multiplied

  __device__ __forceinline__ ConvPipeline(const ConvShape& shape, const void* x, const void* packed)
      : s(shape),
        loader{shape, static_cast<const uint8_t*>(x), static_cast<const uint8_t*>(packed), shared_memory()},
        shared(shared_memory()),
        missing(shape.stages - 1) {
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
      full = missing == 0;
      if (full) {
        if (s.stages == 2)
          copy_wait<0>();
        else
          copy_wait<1>();
        barrier();
      } else {
        --missing;
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
template <class T, bool kGradient, int kOrder, int kFragments, int kBlocks>
__device__ __forceinline__ void conv_tile(ConvPipeline& pipeline, int tile, const void* bias, void* y) {
  const ConvShape& s = pipeline.s;
  ConvWarp<T, kOrder, kFragments, kBlocks> warp;
  const ConvTile start = conv_locate(s, tile);
  const int column_warps = s.part[start.part].column_warps, number = thread() / 32;
  const int column = number % column_warps * (kBlocks * 8);  // inside the block
  const uint32_t pixel = pipeline.shared + s.pixels_at + number / column_warps * (kFragments * 16 * 8);
  const bool active =
      start.block * s.part[start.part].columns + column < (kGradient ? s.channels : s.part[start.part].rows);
  warp.clear();
  warp.locate(pixel);
  for (int part = start.part; part < start.parts_end; ++part) {
    const ConvPart& p = s.part[part];
    const ConvRange range = conv_range(s, pipeline.shared + s.table_at, p, start.c);
    if (range.entries == 0) continue;
    const uint32_t table = pipeline.shared + s.table_at + (s.head + range.first) * kConvEntryBytes;
    const int product = p.columns * kConvChunk;
#pragma unroll 1
    for (int chunk = 0; chunk < p.chunks; ++chunk) {
      const int steps = p.pieces - chunk * 4 > 2 ? 2 : 1;
#pragma unroll 1
      for (int first = 0; first < range.entries; first += p.entries) {
        pipeline.await();
        const int end = min(first + p.entries, range.entries);
        const uint32_t window = pipeline.shared + pipeline.input;
        uint32_t weights = pipeline.shared + s.weights_at + pipeline.weights + column * kConvChunk;
#pragma unroll 1
        for (int i = active ? first : end; i < end; ++i) {
          const ConvEntry entry = conv_load_entry(table + i * kConvEntryBytes);
#pragma unroll 1
          for (int step = 0; step < steps; ++step) {
            if constexpr (kGradient)
              warp.add(entry, window + step * 32, weights, step);
            else
              warp.fold_paired(entry, window + step * 32 + entry.offset, weights, product, step);
          }
          weights += kGradient ? product : product << __popc(entry.paired);
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
  if (active) warp.store(s, at, at.block * s.part[at.part].columns + column, pixel, line, bias, y);
}

// kOrder tied axes; -1: any number, that of the tile's part.
template <class T, int kOrder>
__global__ void __launch_bounds__(256, 1) conv_forward(const void* x, const void* packed, const void* bias,
                                                       void* y, const __grid_constant__ ConvShape s) {
  ConvPipeline pipeline(s, x, packed);
#pragma unroll 1
  for (int tile = block(); tile < s.tiles; tile += blocks()) {
    const int order = kOrder >= 0 ? kOrder : s.part[conv_locate(s, tile).part].order;
    if ((kOrder < 0 || kOrder == 0) && order == 0) conv_tile<T, false, 0, 4, 8>(pipeline, tile, bias, y);
    if ((kOrder < 0 || kOrder == 1) && order == 1) conv_tile<T, false, 1, 4, 4>(pipeline, tile, bias, y);
    if ((kOrder < 0 || kOrder == 2) && order == 2) conv_tile<T, false, 2, 2, 4>(pipeline, tile, bias, y);
    if ((kOrder < 0 || kOrder == 3) && order == 3) conv_tile<T, false, 3, 1, 4>(pipeline, tile, bias, y);
  }
}

template <class T, int kFragments, int kBlocks>
__global__ void __launch_bounds__(256, 1)
    conv_gradient(const void* gy, const void* packed, void* gx, const __grid_constant__ ConvShape s) {
  ConvPipeline pipeline(s, gy, packed);
#pragma unroll 1
  for (int tile = block(); tile < s.tiles; tile += blocks())
    conv_tile<T, true, 0, kFragments, kBlocks>(pipeline, tile, nullptr, gx);
}

}  // namespace

// Queues a kernel for a shape. The instances are compiled one by one.
template <class T>
std::string conv_run_prepare(const ConvShape& s, const Pointers& pointers, const Queue& queue) {
  int64_t threads = s.head + s.entries;
  for (int i = 0; i < s.parts; ++i) threads += conv_part_pieces(s, s.part[i]);
  return launch(conv_prepare<T>, static_cast<int>((threads + 255) / 256), 256, 0, queue, pointers.w,
                static_cast<uint8_t*>(pointers.workspace), s);
}
template <class T, int kOrder>
std::string conv_run_forward(const ConvShape& s, const Pointers& p, const Queue& queue) {
  const int grid = std::min(s.tiles, multiprocessors(queue.device) * s.resident);
  return launch(conv_forward<T, kOrder>, grid, s.warps * 32, s.shared_bytes, queue, p.x,
                static_cast<const void*>(p.workspace), p.bias, p.y, s);
}
template <class T, int kFragments, int kBlocks>
std::string conv_run_gradient(const ConvShape& s, const Pointers& p, const Queue& queue) {
  const int grid = std::min(s.tiles, multiprocessors(queue.device) * s.resident);
  return launch(conv_gradient<T, kFragments, kBlocks>, grid, s.warps * 32, s.shared_bytes, queue, p.x,
                static_cast<const void*>(p.workspace), p.y, s);
}

}  // namespace symconv
