// A warp of the Hopper kernels: windows of boxes that the copy engine wrote, weights read by descriptors.
//
// A product of a warp group is separable by warp: each of its four brings 16 rows of A from registers and
// keeps their sums, in the fragments of mma.sync, and all multiply by the same weights in shared memory. So a
// warp owns rows x 8 pixels as in patch/warp.h.
#pragma once
#include "hopper/device_hopper.h"
#include "patch/sums.h"

namespace symconv {

// The stage as the copy engine writes it: a patch is one box of the map, swizzled by the bits of its address.
template <class Base>
struct Boxes : Base {
  static constexpr int kSlices = 1;                        // of channels that a stage has boxes of
  static constexpr int kPixelBytes = Base::kChannels * 2;  // also the span of the swizzle: 64 or 128 bytes
  static constexpr int kPatchBytes = (Base::kPatchPixels * kPixelBytes + 1023) / 1024 * 1024;
  static constexpr int kHaloBytes = Base::kPatches * kPatchBytes;
  static constexpr int kStageBytes = kHaloBytes + Base::kWeightBytes;
  static constexpr int kCopiedBytes = Base::kPatches * Base::kPatchPixels * kPixelBytes + Base::kWeightBytes;
  static constexpr int kSharedBytes = Base::kStages * kStageBytes + 1024 + 16 * Base::kStages;
  static constexpr int kThreads =
      128 + Base::kPixelWarps * 32;  // a warp group that copies, and those that multiply
  static_assert(Base::kGroups == 1 && Base::kPixelWarps % 4 == 0,
                "a warp group computes all orbits of its pixels");
  static_assert(Base::kChunks >= 4 && Base::kWeightBytes % 1024 == 0, "alignment of the swizzle");
  static_assert(Base::kWindows <= 6 && Base::kPatches <= 32,
                "addresses of the windows; a lane copies a patch");
};

namespace {

// The copy engine's swizzle: 16-byte chunks of 32, 64 or 128 bytes exchanged by the bits above them.
template <class T>
__device__ __forceinline__ uint32_t swizzled(uint32_t address) {
  if constexpr (T::kPixelBytes == 32) return address ^ ((address >> 3) & 16);
  return address ^ (T::kPixelBytes == 64 ? (address >> 3) & 48 : (address >> 3) & 112);
}

template <class T, class E>
struct GroupWarp : Sums<T, E> {
  using Window = uint32_t[4];
  // Addresses inside a stage of the windows, by tap column. The keys of rows 4 apart are equal (64 bytes a
  // pixel and an even number of pixels a row), so that such windows differ by a constant.
  static constexpr int kDistinct = T::kPixelBytes == 64 && T::kWindows > 4 ? 4 : T::kWindows;
  static_assert(T::kPixelBytes != 64 || T::kPitch * 4 % 8 == 0, "keys of rows 4 apart");
  uint32_t column[3][kDistinct];

  __device__ __forceinline__ void locate(int warp) {
    const Patch at = warp_patch<T>(warp);
    const uint32_t matrix = lane() >> 3, i = lane() & 7;
#pragma unroll
    for (int kw = 0; kw < 3; ++kw) {
#pragma unroll
      for (int t = 0; t < kDistinct; ++t) {
        const uint32_t row = (matrix & 1) * (T::kRows / 2) + (at.row + t);
        const uint32_t pixel = row * T::kPitch + i + (at.column + kw);
        column[kw][t] = swizzled<T>(pixel * T::kPixelBytes + (matrix >> 1) * 16) + at.image * T::kPatchBytes;
      }
    }
  }

  __device__ __forceinline__ void load_window(Window& a, uint32_t stage, int step, int kw, int t) {
    const int beyond = t / kDistinct * kDistinct;
    load_matrices(a, (column[kw][t - beyond] ^ (step * 32)) + (stage + beyond * T::kPitch * T::kPixelBytes));
  }

  __device__ __forceinline__ void load_sides(Window (&sum)[T::kWindows], Window (&difference)[T::kWindows],
                                             uint32_t stage, int step) {
#pragma unroll
    for (int t = 0; t < T::kWindows; ++t) {
      Window l, r;
      load_window(l, stage, step, 0, t);
      load_window(r, stage, step, 2, t);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        sum[t][e] = fold_add<E>(l[e], r[e]);
        difference[t][e] = fold_subtract<E>(l[e], r[e]);
      }
    }
  }

  __device__ __forceinline__ void product(int parity, int q, const Window& a, uint32_t weights, int tap) {
    symconv::product<E, T::kOrbits, T::kPixelBytes>(this->sums[parity][q], a,
                                                    weights + tap * (T::kOrbits * T::kPixelBytes));
  }

  // All channels of a stage. At most two groups of products are in flight, and none when it returns: with one
  // in flight over the edge of the loop, ptxas is apt to serialise all of them.
  __device__ __forceinline__ void multiply(uint32_t stage) {
#pragma unroll
    for (int step = 0; step < T::kChannels / 16; ++step) {
      const uint32_t weights = stage + T::kHaloBytes + step * 32;
      if constexpr (T::kMembers == 2)
        multiply_pairs(stage, step, weights);
      else
        multiply_quadruples(stage, step, weights);
    }
    product_wait<0>();
  }

  __device__ __forceinline__ void multiply_pairs(uint32_t stage, int step, uint32_t weights) {
    Window sum[T::kWindows], difference[T::kWindows], centre[T::kWindows];
    load_sides(sum, difference, stage, step);
    product_fence();
#pragma unroll
    for (int kh = 0; kh < 3; ++kh) {
#pragma unroll
      for (int q = 0; q < T::kFragments; ++q) product(0, q, sum[q + kh], weights, kh * 2);
#pragma unroll
      for (int q = 0; q < T::kFragments; ++q) product(1, q, difference[q + kh], weights, kh * 2 + 1);
    }
    product_commit();
    if (step > 0) product_wait<1>();
#pragma unroll
    for (int t = 0; t < T::kWindows; ++t) load_window(centre[t], stage, step, 1, t);
    product_fence();
#pragma unroll
    for (int kh = 0; kh < 3; ++kh) {
#pragma unroll
      for (int q = 0; q < T::kFragments; ++q) product(0, q, centre[q + kh], weights, 6 + kh);
    }
    product_commit();
    product_wait<1>();
  }

  // Sum and difference of the rows above and below, for each fragment.
  __device__ __forceinline__ void fold_rows(const Window (&rows)[T::kWindows], Window (&sum)[T::kFragments],
                                            Window (&difference)[T::kFragments]) {
#pragma unroll
    for (int q = 0; q < T::kFragments; ++q) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        sum[q][e] = fold_add<E>(rows[q][e], rows[q + 2][e]);
        difference[q][e] = fold_subtract<E>(rows[q][e], rows[q + 2][e]);
      }
    }
  }

  // Three taps of rows that are folded along columns: with the sums, the differences, and the rows between.
  __device__ __forceinline__ void multiply_rows(uint32_t weights, int tap, int parity,
                                                const Window (&sum)[T::kFragments],
                                                const Window (&difference)[T::kFragments],
                                                const Window (&rows)[T::kWindows]) {
#pragma unroll
    for (int q = 0; q < T::kFragments; ++q) product(parity, q, sum[q], weights, tap);
#pragma unroll
    for (int q = 0; q < T::kFragments; ++q) product(parity + 2, q, difference[q], weights, tap + 1);
#pragma unroll
    for (int q = 0; q < T::kFragments; ++q) product(parity, q, rows[q + 1], weights, tap + 2);
  }

  __device__ __forceinline__ void multiply_quadruples(uint32_t stage, int step, uint32_t weights) {
    Window even[T::kWindows], odd[T::kWindows], centre[T::kWindows];
    Window sum[3][T::kFragments], difference[3][T::kFragments];
    load_sides(even, odd, stage, step);
    fold_rows(even, sum[0], difference[0]);
    fold_rows(odd, sum[1], difference[1]);
    product_fence();
    multiply_rows(weights, 0, 0, sum[0], difference[0], even);
    multiply_rows(weights, 3, 1, sum[1], difference[1], odd);
    product_commit();
    if (step > 0) product_wait<1>();
#pragma unroll
    for (int t = 0; t < T::kWindows; ++t) load_window(centre[t], stage, step, 1, t);
    fold_rows(centre, sum[2], difference[2]);
    product_fence();
    multiply_rows(weights, 6, 0, sum[2], difference[2], centre);
    product_commit();
    product_wait<1>();
  }
};

}  // namespace
}  // namespace symconv
