// A warp of the Hopper weight gradient: one column of taps, 16 rows x 64 channels x 3 tap rows of sums.
//
// The gradient of tap t is the sum over pixels p of x[p] D_t[p], where D_t[p] adds over the members m of
// their gradients at p + 1 - mirror_m(t). So x is never shifted and B is the strip of x as it lies
// (MN-major), by a descriptor; A is D_t, transposed by ldmatrix from windows of the halo and added in
// registers. A step pairs image rows q and q + H/2 as the halves of K = 16, so that the window of tap row kh
// of step q is halo row pair q + 2 - kh, and of a member that is mirrored along the rows q + kh: loaded once,
// used three times.
#pragma once
#include "hopper/device_hopper.h"
#include "hopperwgrad/strip.h"

namespace symconv {
namespace {

template <class T, class E>
struct TapColumn {
  using Pair = uint32_t[4];     // of windows: 16 rows x 16 pixels, A of a product
  float sums[3][32];            // by tap row
  uint32_t straight, mirrored;  // where the lane's windows lie in a member's halo, for the first pair

  __device__ __forceinline__ void locate(int kw, int warp) {
    const uint32_t matrix = lane() >> 3, i = lane() & 7;
    const uint32_t pixel = (matrix >> 1) * (T::kSteps * T::kPitch) + i, chunk = 2 * warp + (matrix & 1);
    straight = (pixel + 2 - kw) * T::kPixelBytes + chunk * 16;
    mirrored = (pixel + kw) * T::kPixelBytes + chunk * 16;
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int kh = 0; kh < 3; ++kh)
#pragma unroll
      for (int e = 0; e < 32; ++e) sums[kh][e] = 0.0f;
  }

  // Halo rows t and t + H/2 of a member and of its mirror image along the columns, added.
  __device__ __forceinline__ void load_pair(Pair& pair, uint32_t stage, int member, int t) {
    const uint32_t from = stage + member * T::kMemberBytes + t * (T::kPitch * T::kPixelBytes);
    const uint32_t left = from + straight, right = from + T::kMemberBytes + mirrored;
    Pair other;
    load_transposed(pair, left ^ (left >> 3 & 112));
    load_transposed(other, right ^ (right >> 3 & 112));
    add(pair, pair, other);
  }
  __device__ __forceinline__ static void add(Pair& sum, const Pair& a, const Pair& b) {
#pragma unroll
    for (int e = 0; e < 4; ++e) sum[e] = fold_add<E>(a[e], b[e]);
  }
  __device__ __forceinline__ void product(int kh, const Pair& a, uint32_t stage, int q) {
    product_transposed<E, T::kSteps * T::kRowBytes>(sums[kh], a,
                                                    stage + T::kMembers * T::kMemberBytes + q * T::kRowBytes);
  }

  // All products of a stage; none is under way afterwards.
  __device__ __forceinline__ void multiply(uint32_t stage) {
    if constexpr (T::kMembers == 2)
      multiply_two(stage);
    else
      multiply_four(stage);
    product_wait<0>();
  }

  // Tied along the columns: the pair of halo rows t is that of steps t, t - 1 and t - 2.
  __device__ __forceinline__ void multiply_two(uint32_t stage) {
    Pair pair[2];
#pragma unroll
    for (int t = 0; t < T::kSteps + 2; ++t) {
      load_pair(pair[t % 2], stage, 0, t);
      product_fence();
#pragma unroll
      for (int kh = 0; kh < 3; ++kh)
        if (t - 2 + kh >= 0 && t - 2 + kh < T::kSteps) product(kh, pair[t % 2], stage, t - 2 + kh);
      product_commit();
      product_wait<1>();
    }
  }

  // Tied along both: the pair of step q and tap row kh is upright pair q + 2 - kh plus flipped pair q + kh,
  // of which three each are kept. What a sum overwrites was used for the last time.
  __device__ __forceinline__ void multiply_four(uint32_t stage) {
    Pair upright[3], flipped[3], centre;
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      load_pair(upright[t], stage, 0, t);
      load_pair(flipped[t], stage, 2, t);
    }
#pragma unroll
    for (int q = 0; q < T::kSteps; ++q) {
      Pair &first = upright[q % 3], &last = upright[(q + 2) % 3];
      Pair &first_flipped = flipped[q % 3], &last_flipped = flipped[(q + 2) % 3];
      add(centre, upright[(q + 1) % 3], flipped[(q + 1) % 3]);
      product_fence();
      product(1, centre, stage, q);
      product_commit();
      product_wait<1>();  // those of the step before, whose registers are loaded next
      load_pair(last, stage, 0, q + 2);
      load_pair(last_flipped, stage, 2, q + 2);
      add(first_flipped, first_flipped, last);
      add(first, first, last_flipped);
      product_fence();
      product(0, first_flipped, stage, q);
      product(2, first, stage, q);
      product_commit();
      product_wait<1>();
    }
  }

  // [split][group][tap][row][channel]; halves of float16 are made whole.
  __device__ __forceinline__ void store(const HopperwgradWork& p, float* slab, int kw, int row, int channel) {
    constexpr float scale = T::kMembers == 4 ? kFold<E> * kFold<E> : kFold<E>;
    row += lane() / 4, channel += lane() % 4 * 2;
#pragma unroll
    for (int i = 0; i < 3 * 2; ++i) {
      const int kh = i / 2, u = row + i % 2 * 8;
      float* line = slab + (int64_t{kh * 3 + kw} * p.rows + u) * p.channels + channel;
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        const float* v = &sums[kh][n * 4 + i % 2 * 2];
        if (u < p.rows && channel + 8 * n < p.channels)
          global_store8(line + 8 * n,
                        make_uint2(__float_as_uint(scale * v[0]), __float_as_uint(scale * v[1])));
      }
    }
  }
};

}  // namespace
}  // namespace symconv
