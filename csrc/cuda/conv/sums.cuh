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

// Of a warp: 2^kOrder parities, kFragments of 16 pixels, kBlocks of 8 columns; of a fragment and block a lane
// 4g + t has (pixel g, columns 2t and 2t + 1), (pixel g + 8, the same).
template <class T, int kOrder, int kFragments, int kBlocks>
struct ConvSums {
  static constexpr int kMembers = 1 << kOrder;
  static_assert(kBlocks % 4 == 0, "a lane has 8 consecutive columns of every 32");
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

  // `column`: the warp's first, `pixel`: the address of its first pixel in the table of pixels, `class_line`:
  // that of the line of the tile's class.
  __device__ __forceinline__ void store(const ConvShape& s, const ConvTile& at, int column, uint32_t pixel,
                                        uint32_t class_line, const void* bias, void* y) {
    butterfly();
    const ConvTarget target(s, at, class_line);
    const ConvPart& p = s.part[at.part];
    const int lane_column = column + lane() % 4 * 8;
    const int columns = s.gradient ? s.channels : p.rows, channels = s.gradient ? s.channels : s.filters;
#pragma unroll
    for (int half = 0; half < 2 * kFragments; ++half) {
      const int64_t place = target.place(s, pixel + (half * 8 + lane() / 4) * 8);
      if (place < 0) continue;
#pragma unroll
      for (int run = 0; run < kBlocks / 4; ++run) {
        const int first = lane_column + run * 32, left = columns - first;
        if (left <= 0) continue;
#pragma unroll
        for (int member = 0; member < kMembers; ++member) {
          compiler_fence();  // else what all members need is computed at once, in registers that are not
                             // there
          const int copy = conv_copy_of<kOrder>(member);
          const int start = copy ? p.copy + (copy - 1) * p.rows : s.gradient ? 0 : p.row;
          const int channel = at.group * channels + start + first;
          float v[8];
#pragma unroll
          for (int n = 0; n < 8; ++n)
            v[n] = sums[member][half / 2][(run * 4 + n / 2) * 4 + half % 2 * 2 + n % 2];
          if (bias) {
#pragma unroll
            for (int n = 0; n < 8; ++n)
              if (n < left) v[n] += load_element<T>(bias, channel + n);
          }
          activate(v, s.activation);
          conv_store<T>(y, place + channel, v, left, p.aligned);
        }
      }
    }
  }
};

}  // namespace
}  // namespace symconv
