// A warp of the patch kernels: addresses of its windows and weights, and one step of 16 channels.
//
// A fragment of A pairs image rows q and q + kRows / 2, so that the window of tap row kh of fragment q is the
// window of fragment q + kh: each is loaded and folded once.
#pragma once
#include "patch/sums.h"

namespace symconv {
namespace {

// The lane's addresses inside a stage: for the left, middle and right column of the windows, and for the
// weights.
template <class T>
struct Addresses {
  uint32_t column[3], weight;

  __device__ __forceinline__ Addresses(uint32_t start, int warp) {
    const Patch at = warp_patch<T>(warp / T::kGroups);
    const uint32_t matrix = lane() >> 3, i = lane() & 7;
#pragma unroll
    for (int kw = 0; kw < 3; ++kw) {
      const uint32_t row = (matrix & 1) * (T::kRows / 2) + at.row;
      column[kw] = start + halo_address<T>(row, i + (at.column + kw), matrix >> 1, at.image);
    }
    const uint32_t orbit = (matrix >> 1) * 8 + i + warp % T::kGroups * T::kWarpOrbits;
    weight = start + weight_address<T>(0, orbit, matrix & 1) + T::kHaloBytes;
  }
};

template <class T, class E>
struct Warp : Sums<T, E> {
  using Window = uint32_t[4];

  __device__ __forceinline__ void load_weights(Window (&b)[T::kBlocks8 / 2], uint32_t address, int tap) {
#pragma unroll
    for (int j = 0; j < T::kBlocks8 / 2; ++j)
      load_matrices(b[j], address + (tap * T::kOrbits + j * 16) * (T::kChannels * 2));
  }

  __device__ __forceinline__ void product(int parity, int q, const Window& a,
                                          const Window (&b)[T::kBlocks8 / 2]) {
#pragma unroll
    for (int j = 0; j < T::kBlocks8; ++j)
      symconv::multiply<E>(&this->sums[parity][q][j * 4], a, b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
  }

  __device__ __forceinline__ void load_window(Window& a, uint32_t column, int t) {
    load_matrices(a, column + t * T::kPitch * (T::kChannels * 2));
  }

  // One step of 16 channels of a stage at byte `stage`.
  __device__ __forceinline__ void multiply(const Addresses<T>& at, uint32_t stage, int step) {
    const uint32_t left = (at.column[0] ^ (step * 32)) + stage, middle = (at.column[1] ^ (step * 32)) + stage,
                   right = (at.column[2] ^ (step * 32)) + stage, weight = (at.weight ^ (step * 32)) + stage;
    if constexpr (T::kMembers == 2)
      multiply_pairs(left, middle, right, weight);
    else
      multiply_quadruples(left, middle, right, weight);
  }

  __device__ __forceinline__ void load_sides(uint32_t left, uint32_t right, Window (&sum)[T::kWindows],
                                             Window (&difference)[T::kWindows]) {
#pragma unroll
    for (int t = 0; t < T::kWindows; ++t) {
      Window l, r;
      load_window(l, left, t);
      load_window(r, right, t);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        sum[t][e] = fold_add<E>(l[e], r[e]);
        difference[t][e] = fold_subtract<E>(l[e], r[e]);
      }
    }
  }

  __device__ __forceinline__ void multiply_pairs(uint32_t left, uint32_t middle, uint32_t right,
                                                 uint32_t weight) {
    Window b[T::kBlocks8 / 2];
    {
      Window sum[T::kWindows], difference[T::kWindows];
      load_sides(left, right, sum, difference);
#pragma unroll
      for (int kh = 0; kh < 3; ++kh) {
        load_weights(b, weight, kh * 2);
#pragma unroll
        for (int q = 0; q < T::kFragments; ++q) product(0, q, sum[q + kh], b);
        load_weights(b, weight, kh * 2 + 1);
#pragma unroll
        for (int q = 0; q < T::kFragments; ++q) product(1, q, difference[q + kh], b);
      }
    }
    Window centre[T::kWindows];
#pragma unroll
    for (int t = 0; t < T::kWindows; ++t) load_window(centre[t], middle, t);
#pragma unroll
    for (int kh = 0; kh < 3; ++kh) {
      load_weights(b, weight, 6 + kh);
#pragma unroll
      for (int q = 0; q < T::kFragments; ++q) product(0, q, centre[q + kh], b);
    }
  }

  // Three taps of windows that are already folded along columns: sum and difference of the outer rows, and
  // the inner row.
  __device__ __forceinline__ void multiply_rows(uint32_t weight, int tap, int parity,
                                                const Window (&rows)[T::kWindows]) {
    Window b[T::kBlocks8 / 2];
    load_weights(b, weight, tap);
#pragma unroll
    for (int q = 0; q < T::kFragments; ++q) {
      Window a;
#pragma unroll
      for (int e = 0; e < 4; ++e) a[e] = fold_add<E>(rows[q][e], rows[q + 2][e]);
      product(parity, q, a, b);
    }
    load_weights(b, weight, tap + 1);
#pragma unroll
    for (int q = 0; q < T::kFragments; ++q) {
      Window a;
#pragma unroll
      for (int e = 0; e < 4; ++e) a[e] = fold_subtract<E>(rows[q][e], rows[q + 2][e]);
      product(parity + 2, q, a, b);
    }
    load_weights(b, weight, tap + 2);
#pragma unroll
    for (int q = 0; q < T::kFragments; ++q) product(parity, q, rows[q + 1], b);
  }

  __device__ __forceinline__ void multiply_quadruples(uint32_t left, uint32_t middle, uint32_t right,
                                                      uint32_t weight) {
    {
      Window sum[T::kWindows], difference[T::kWindows];
      load_sides(left, right, sum, difference);
      multiply_rows(weight, 0, 0, sum);
      multiply_rows(weight, 3, 1, difference);
    }
    Window centre[T::kWindows];
#pragma unroll
    for (int t = 0; t < T::kWindows; ++t) load_window(centre[t], middle, t);
    multiply_rows(weight, 6, 0, centre);
  }
};

}  // namespace
}  // namespace symconv
