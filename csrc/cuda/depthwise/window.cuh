// Windows of the maps of depthwise layers in shared memory, as float32, and what else the three passes share.
#pragma once
#include "depthwise/layer.h"
#include "device.h"

namespace symconv {
namespace {

// The share of a CTA: `channels` and `images` may be fewer than a full block's at the end.
struct DepthwisePlace {
  int channel, channels, image, images;
  int origin[2];  // of its tile, by axis
};

__device__ __forceinline__ DepthwisePlace place_of(const DepthwiseDevice& p, int index, int channel_block) {
  DepthwisePlace at;
  at.channel = channel_block * p.block;
  at.channels = min(p.block, p.channels - at.channel);
  at.origin[0] = index % p.axis[0].tiles * p.axis[0].tile;
  index /= p.axis[0].tiles;
  at.origin[1] = index % p.axis[1].tiles * p.axis[1].tile;
  at.image = index / p.axis[1].tiles * p.images;
  at.images = min(p.images, p.batch - at.image);
  return at;
}

__device__ __forceinline__ int channel_blocks(const DepthwiseDevice& p) {
  return (p.channels + p.block - 1) / p.block;
}

// Member n of row i of a segment among the output channels of a group.
__device__ __forceinline__ int member_channel(const DepthwiseSegment& s, int i, int n) {
  return n == 0 ? s.row + i : s.copy + (n - 1) * s.rows + i;
}

// n / by, for n * by below 2^32.
__device__ __forceinline__ int quotient(int n, int by, uint32_t inverse) {
  return by == 1 ? n : static_cast<int>(uint64_t{inverse} * static_cast<uint32_t>(n) >> 32);
}

__device__ __forceinline__ int floor_divide(int a, int by) { return (a >= 0 ? a : a - by + 1) / by; }

__device__ __forceinline__ float shared_float(uint32_t address) {
  return __uint_as_float(shared_load(address));
}
__device__ __forceinline__ void shared_put(uint32_t address, float v) {
  shared_store(address, __float_as_uint(v));
}

// A map in global memory, from the first channel and image of a CTA on, and where the window begins in it.
struct DepthwiseMap {
  const void* data;
  int64_t at;  // index of its pixel (0, 0)
  DepthwisePixels stride;
  int height, width, channels, images;
  int y, x;
};

constexpr int kAtOnce = 4;  // loads of a thread in flight

template <class T, int N, bool TWO>
__device__ __forceinline__ void fill_by(const DepthwiseFill& f, const DepthwiseMap& m, bool last, int images,
                                        uint32_t to, int row_bytes, int step, int64_t other,
                                        uint32_t second) {
  const int first = (thread() & ((1 << f.lanes_log) - 1)) * N, apart = threads() >> f.lanes_log;
  const int runs = images * f.rows * f.runs_of_row;
  const int shift = last ? 0 : m.x, limit = last ? m.channels : m.width;
  const int64_t stride = last ? m.stride.c : m.stride.x;
  const char* const data = static_cast<const char*>(m.data);
  for (int i = first; i < f.run; i += N << f.lanes_log) {
    const bool inside = static_cast<unsigned>(shift + i) < static_cast<unsigned>(limit);
    const int64_t column = m.at + (shift + i) * stride;
    for (int q = thread() >> f.lanes_log; q < runs; q += kAtOnce * apart) {
      uint32_t a[kAtOnce], b[kAtOnce], target[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const int run = q + k * apart;
        const int row = quotient(run, f.runs_of_row, f.divide_runs), x = run - row * f.runs_of_row;
        const int image = quotient(row, f.rows, f.divide_rows), y = m.y + row - image * f.rows;
        target[k] = to + row * row_bytes + x * step + i * 4;
        bool read = inside && run < runs && image < m.images &&
                    static_cast<unsigned>(y) < static_cast<unsigned>(m.height);
        int64_t from = column + image * m.stride.n + y * m.stride.y;
        if (last) {
          read = read && static_cast<unsigned>(m.x + x) < static_cast<unsigned>(m.width);
          from += (m.x + x) * m.stride.x;
        }
        a[k] = b[k] = 0;
        if (read) {
          if constexpr (N == 2) {
            a[k] = global_load4(data + from * 2);
            if (TWO) b[k] = global_load4(data + (from + other) * 2);
          } else {
            a[k] = __float_as_uint(load_element<T>(data, from));
            if (TWO) b[k] = __float_as_uint(load_element<T>(data, from + other));
          }
        }
      }
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        if (q + k * apart >= runs) break;
#pragma unroll
        for (int e = 0; e < N; ++e) {
          if (i + e >= f.run) break;
          float u, v;
          if constexpr (N == 2) {
            u = e ? high_of<T>(a[k]) : low_of<T>(a[k]);
            v = e ? high_of<T>(b[k]) : low_of<T>(b[k]);
          } else {
            u = __uint_as_float(a[k]), v = __uint_as_float(b[k]);
          }
          shared_put(target[k] + 4 * e, TWO ? u + v : u);
          if (TWO) shared_put(target[k] + second + 4 * e, u - v);
        }
      }
    }
  }
}

// Copies a map to shared memory, zeros where it ends. TWO: the sum of it and of what lies `other` elements
// further, and `second` bytes behind that the difference.
template <class T, bool TWO>
__device__ __forceinline__ void fill(const DepthwiseFill& f, const DepthwiseMap& m, const DepthwiseDevice& p,
                                     uint32_t to, int row_bytes, int step, int64_t other, uint32_t second) {
  if constexpr (T::kBytes == 2)
    if (f.elements == 2)
      return fill_by<T, 2, TWO>(f, m, p.last, p.images, to, row_bytes, step, other, second);
  fill_by<T, 1, TWO>(f, m, p.last, p.images, to, row_bytes, step, other, second);
}

// Loads of two elements begin at an even column: by so many columns the window begins before what is asked
// for.
__device__ __forceinline__ int lead_of(const DepthwiseDevice& p, int x) {
  return p.last || p.window.elements == 1 ? 0 : x & 1;
}

// Bytes from one tap of the weights in shared memory to the next: lanes along channels or along taps, each
// has a bank.
__device__ __forceinline__ int weight_bytes(const DepthwiseDevice& p) { return 4 * (p.block | 1); }

}  // namespace
}  // namespace symconv
