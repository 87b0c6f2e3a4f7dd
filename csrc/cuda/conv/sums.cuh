// The accumulators of a warp, and what becomes of them: parities to members, bias, activation, stores.
#pragma once
#include "activation.h"
#include "conv/loader.cuh"
#include "conv/shape.h"
#include "device.h"

namespace symconv {
namespace {

// Pixels of a CTA, 8 bytes each: where a pixel lies in the tile (x and y 10 bits, z and image 6, all bits set
// where the tile has no such pixel), and the bytes from the start of the halo tile to its place. What is not
// a pixel of the tile reads that of one that no other lane of its window reads.
__device__ __forceinline__ void conv_write_pixels(const ConvShape& s, uint32_t table) {
  const int x = s.axis[0].tile, y = s.axis[1].tile, own = x * y * s.axis[2].tile * s.tile_images;
  for (int pixel = thread(); pixel < s.pixels; pixel += threads()) {
    const int like = pixel < own ? pixel : pixel % min(own, 8);
    const int px = like % x, py = like / x % y, pz = like / (x * y) % s.axis[2].tile;
    const int image = like / (x * y * s.axis[2].tile);
    const int place =
        px * s.axis[0].pitch + py * s.axis[1].pitch + pz * s.axis[2].pitch + image * s.image_pitch;
    shared_store(table + pixel * 8,
                 pixel < own ? px | py << 10 | pz << 20 | static_cast<uint32_t>(image) << 26 : ~0u);
    shared_store(table + pixel * 8 + 4, place * kConvPitch);
  }
}

// Where the pixels of a tile go: position of its first pixel, elements to its first channel.
struct ConvTarget {
  int first[3], image;

  __device__ __forceinline__ ConvTarget(const ConvShape& s, const ConvTile& at, uint32_t class_line) {
    const uint32_t phases = shared_load(class_line + 12);
    image = at.image;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis)
      first[axis] = at.origin[axis] * s.axis[axis].classes + static_cast<int>(phases >> 10 * axis & 1023);
  }

  // Elements to the first channel of a pixel of the table, or -1 outside of what is written.
  __device__ __forceinline__ int64_t place(const ConvShape& s, uint32_t pixel) const {
    const uint32_t packed = shared_load(pixel);
    const int in_image = image + static_cast<int>(packed >> 26);
    bool inside = packed != ~0u && in_image < s.batch;
    int64_t to = in_image * s.to_image;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      const int in_tile = static_cast<int>(packed >> 10 * axis & (axis == 2 ? 63 : 1023));
      const int at = first[axis] + in_tile * s.axis[axis].classes;
      inside = inside && at < s.axis[axis].target;
      to += at * s.to[axis];
    }
    return inside ? to : -1;
  }
};

// 8 consecutive channels of a pixel, of which the first `left` are there; all at once where they lie for
// that.
template <class T>
__device__ __forceinline__ void conv_store(void* y, int64_t place, const float (&v)[8], int left,
                                           bool aligned) {
  if (left >= 8 && aligned) {
    uint8_t* to = static_cast<uint8_t*>(y) + place * T::kBytes;
    if constexpr (T::kBytes == 4) {
#pragma unroll
      for (int n = 0; n < 8; n += 4)
        global_store16(to + n * 4, {__float_as_uint(v[n]), __float_as_uint(v[n + 1]),
                                    __float_as_uint(v[n + 2]), __float_as_uint(v[n + 3])});
    } else {
      global_store16(
          to, {pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3]), pack2<T>(v[4], v[5]), pack2<T>(v[6], v[7])});
    }
  } else {
#pragma unroll
    for (int n = 0; n < 8; ++n)
      if (n < left) store_element<T>(y, place + n, v[n]);
  }
}

// 32 products of 16 pixels and 8 columns; of one a lane 4g + t has (pixel g, columns 2t and 2t + 1), (pixel g
// + 8, the same). From outermost to innermost they are 2^order parities, fragments of 16 pixels, blocks of
// columns: always a multiple of four blocks, of which a lane has 8 consecutive columns.
template <class T>
struct ConvSums {
  float sums[32][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 32; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[i][e] = 0.0f;
    }
  }

  // One axis of parities to members, in place: even + odd and even - odd.
  template <int kDistance>
  __device__ __forceinline__ void butterfly() {
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      if (i & kDistance) continue;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float even = sums[i][e], odd = sums[i + kDistance][e];
        sums[i][e] = even + odd;
        sums[i + kDistance][e] = even - odd;
      }
    }
  }

  // `column`: the warp's first, `pixel`: the address of its first pixel in the table of pixels, `class_line`:
  // that of the line of the tile's class.
  template <bool kGradient>
  __device__ __forceinline__ void store(const ConvShape& s, const ConvTile& at, int column, uint32_t pixel,
                                        uint32_t class_line, const void* bias, void* y) {
    const ConvPart& p = s.part[at.part];
    if (!kGradient && p.order >= 1) butterfly<16>();
    if (!kGradient && p.order >= 2) butterfly<8>();
    if (!kGradient && p.order >= 3) butterfly<4>();
    const ConvTarget target(s, at, class_line);
    const int channels = kGradient ? s.channels : s.filters;
    const int lane_column = column + lane() % 4 * 8;
#pragma unroll
    for (int quad = 0; quad < 8; ++quad) {
      const int run = quad & ((1 << p.run_bits) - 1), f = quad >> p.run_bits & (p.fragments - 1);
      const int member = quad >> (p.run_bits + p.fragment_bits);
      const int first = lane_column + run * 32, left = (kGradient ? s.channels : p.rows) - first;
      const int copy = kGradient ? 0 : p.copy_of[member];
      const int start = kGradient ? 0 : copy ? p.copy + (copy - 1) * p.rows : p.row;
      const int channel = at.group * channels + start + first;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        compiler_fence();  // else what all of them need is computed at once, in registers that are not there
        const int64_t place = target.place(s, pixel + (f * 16 + half * 8 + lane() / 4) * 8);
        if (place < 0 || left <= 0) continue;
        float v[8];
#pragma unroll
        for (int n = 0; n < 8; ++n) v[n] = sums[quad * 4 + n / 2][half * 2 + n % 2];
        if (!kGradient) {
          if (bias) {
#pragma unroll
            for (int n = 0; n < 8; ++n)
              if (n < left) v[n] += load_element<T>(bias, channel + n);
          }
          activate(v, s.activation);
        }
        conv_store<T>(y, place + channel, v, left, p.aligned);
      }
    }
  }
};

}  // namespace
}  // namespace symconv
