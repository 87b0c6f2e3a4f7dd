// The accumulators of a warp, and what becomes of them: parities to members, bias, activation, stores.
#pragma once
#include "activation.h"
#include "conv/loader.cuh"
#include "conv/shape.h"
#include "device.h"

namespace symconv {
namespace {

// Number of the copy that is mirrored along the axes in `member`, counted over the folded axes alone.
template <int kOrder>
CONV_BOTH constexpr int conv_copy_of(int member) {
  constexpr int kAll[] = {0, 1, 2, 6, 3, 5, 4, 7};
  return kOrder == 3 ? kAll[member] : member;
}

// Pixels of a CTA, 8 bytes each: where a pixel lies in the tile (x and y 10 bits, z and image 6, all bits set
// where the tile has no such pixel), and the bytes from the start of the halo tile to its place. What is not a
// pixel of the tile reads that of one that no other lane of its window reads.
__device__ __forceinline__ void conv_write_pixels(const ConvShape& s, uint32_t table) {
  const int x = s.axis[0].tile, y = s.axis[1].tile, own = x * y * s.axis[2].tile * s.tile_images;
  for (int pixel = thread(); pixel < s.pixels; pixel += threads()) {
    const int like = pixel < own ? pixel : pixel % min(own, 8);
    const int px = like % x, py = like / x % y, pz = like / (x * y) % s.axis[2].tile;
    const int image = like / (x * y * s.axis[2].tile);
    const int place = px * s.axis[0].pitch + py * s.axis[1].pitch + pz * s.axis[2].pitch + image * s.image_pitch;
    shared_store(table + pixel * 8, pixel < own ? px | py << 10 | pz << 20 | static_cast<uint32_t>(image) << 26 : ~0u);
    shared_store(table + pixel * 8 + 4, place * kConvPitch);
  }
}

// Elements from the start of what is written to the first channel of a pixel, or -1 outside of it.
__device__ __forceinline__ int64_t conv_target(const ConvShape& s, const ConvTile& at, uint32_t pixel) {
  const uint32_t packed = shared_load(pixel);
  const int image = at.image + static_cast<int>(packed >> 26);
  bool inside = packed != ~0u && image < s.batch;
  int64_t place = image * s.to_image;
  const uint32_t in_tile[] = {packed & 1023, packed >> 10 & 1023, packed >> 20 & 63};
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    const ConvAxis& a = s.axis[axis];
    const int to =
        (at.origin[axis] + static_cast<int>(in_tile[axis])) * a.classes + conv_class(s, at.c, axis);
    inside = inside && to < a.target;
    place += to * s.to[axis];
  }
  return inside ? place : -1;
}

// N consecutive channels of a pixel, of which the first `left` are there.
template <class T, int N>
__device__ __forceinline__ void conv_store(void* y, int64_t place, const float (&v)[N], int left,
                                           int vector) {
  constexpr int kWidest = kVector<T> < N ? kVector<T> : N;
  if (left >= N && vector >= kWidest) {
    uint8_t* to = static_cast<uint8_t*>(y) + place * T::kBytes;
    if constexpr (T::kBytes == 4) {
#pragma unroll
      for (int n = 0; n < N; n += 4)
        global_store16(to + n * 4, {__float_as_uint(v[n]), __float_as_uint(v[n + 1]),
                                    __float_as_uint(v[n + 2]), __float_as_uint(v[n + 3])});
    } else if constexpr (N == 8) {
      global_store16(
          to, {pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3]), pack2<T>(v[4], v[5]), pack2<T>(v[6], v[7])});
    } else {
      global_store8(to, {pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3])});
    }
  } else {
#pragma unroll
    for (int n = 0; n < N; ++n)
      if (n < left) store_element<T>(y, place + n, v[n]);
  }
}

// Of a warp: 2^kOrder parities, kFragments of 16 pixels, kBlocks of 8 columns; of a fragment and block a lane
// 4g + t has (pixel g, columns 2t and 2t + 1), (pixel g + 8, the same).
template <class T, int kOrder, int kFragments, int kBlocks>
struct ConvSums {
  static constexpr int kMembers = 1 << kOrder;
  static constexpr int kTogether = kBlocks >= 4 ? 8 : 4;  // consecutive columns of a lane
  float sums[kMembers][kFragments][kBlocks * 4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int c = 0; c < kMembers; ++c) {
#pragma unroll
      for (int f = 0; f < kFragments; ++f) {
#pragma unroll
        for (int e = 0; e < kBlocks * 4; ++e) sums[c][f][e] = 0.0f;
      }
    }
  }

  // Parities to members, in place: member g is the sum of all parities c with the signs (-1)^|c & g|.
  __device__ __forceinline__ void butterfly() {
#pragma unroll
    for (int axis = 1; axis < kMembers; axis *= 2) {
#pragma unroll
      for (int c = 0; c < kMembers; ++c) {
        if (c & axis) continue;
#pragma unroll
        for (int f = 0; f < kFragments; ++f) {
#pragma unroll
          for (int e = 0; e < kBlocks * 4; ++e) {
            const float even = sums[c][f][e], odd = sums[c + axis][f][e];
            sums[c][f][e] = even + odd;
            sums[c + axis][f][e] = even - odd;
          }
        }
      }
    }
  }

  // `column`: the warp's first, `pixel`: the address of its first pixel in the table of pixels.
  __device__ __forceinline__ void store(const ConvShape& s, const ConvTile& at, int column, uint32_t pixel,
                                        const void* bias, void* y) {
    butterfly();
    const ConvPart& p = s.part[at.part];
    const int lane_column = column + lane() % 4 * kTogether;
    const int columns = s.gradient ? s.channels : p.rows, channels = s.gradient ? s.channels : s.filters;
#pragma unroll
    for (int half = 0; half < 2 * kFragments; ++half) {
      const int64_t place = conv_target(s, at, pixel + (half * 8 + lane() / 4) * 8);
      if (place < 0) continue;
#pragma unroll
      for (int run = 0; run < kBlocks * 2 / kTogether; ++run) {
        const int first = lane_column + run * 4 * kTogether, left = columns - first;
        if (left <= 0) continue;
#pragma unroll
        for (int member = 0; member < kMembers; ++member) {
          const int copy = conv_copy_of<kOrder>(member);
          const int start = copy ? p.copy + (copy - 1) * p.rows : s.gradient ? 0 : p.row;
          const int channel = at.group * channels + start + first;
          float v[kTogether];
#pragma unroll
          for (int n = 0; n < kTogether; ++n)
            v[n] = sums[member][half / 2][(run * (kTogether / 2) + n / 2) * 4 + half % 2 * 2 + n % 2];
          if (bias) {
#pragma unroll
            for (int n = 0; n < kTogether; ++n)
              if (n < left) v[n] += load_element<T>(bias, channel + n);
          }
          activate(v, s.activation);
          conv_store<T>(y, place + channel, v, left, p.vector);
        }
      }
    }
  }
};

}  // namespace
}  // namespace symconv
