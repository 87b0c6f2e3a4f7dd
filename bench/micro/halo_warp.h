// A warp of the mma.sync kernels: addresses of its windows and weights, and one step of 16 channels.
#pragma once
#include "halo_sums.h"

namespace halo {

// The lane's addresses inside a stage: for the left, middle and right column of the windows, and for the
// weights.
template <class M, class T>
struct Addresses {
  typename M::U column[3], weight;

  HALO_FN Addresses(const M& machine, int warp) {
    using U = typename M::U;
    const Patch at = warp_patch<T>(warp / T::kGroups);
    const U lane = machine.lane(), matrix = lane >> 3, i = lane & 7;
    HALO_UNROLL
    for (int kw = 0; kw < 3; ++kw) {
      const U row = (matrix & 1) * (T::kRows / 2) + at.row;
      column[kw] = halo_address<T, U>(row, i + (at.column + kw), matrix >> 1, at.image);
    }
    const U orbit = (matrix >> 1) * 8 + i + warp % T::kGroups * T::kWarpOrbits;
    weight = weight_address<T, U>(0, orbit, matrix & 1) + T::kHaloBytes;
  }
};

template <class M, class T>
struct Warp : Sums<M, T> {
  using U = typename M::U;
  HALO_FN void load_weights(const M& machine, U (&b)[T::kBlocks8 / 2][4], U address, int tap) {
    HALO_UNROLL
    for (int j = 0; j < T::kBlocks8 / 2; ++j)
      machine.load(b[j], address + (tap * T::kOrbits + j * 16) * (T::kChannels * 2));
  }

  HALO_FN void product(const M& machine, int parity, int q, const U (&a)[4],
                       const U (&b)[T::kBlocks8 / 2][4]) {
    HALO_UNROLL
    for (int j = 0; j < T::kBlocks8; ++j)
      machine.multiply(&this->sums[parity][q][j * 4], a, b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
  }

  HALO_FN void load_window(const M& machine, U (&a)[4], U column, int t) {
    machine.load(a, column + t * T::kPitch * (T::kChannels * 2));
  }

  // One step of 16 channels of a stage at byte `stage`.
  HALO_FN void multiply(const M& machine, const Addresses<M, T>& at, uint32_t stage, int step) {
    const U left = (at.column[0] ^ (step * 32)) + stage, middle = (at.column[1] ^ (step * 32)) + stage,
            right = (at.column[2] ^ (step * 32)) + stage, weight = (at.weight ^ (step * 32)) + stage;
    if constexpr (T::kTie == Tie::h)
      multiply_h(machine, left, middle, right, weight);
    else
      multiply_hv(machine, left, middle, right, weight);
  }

  HALO_FN void load_sides(const M& machine, U left, U right, U (&sum)[T::kWindows][4],
                          U (&difference)[T::kWindows][4]) {
    HALO_UNROLL
    for (int t = 0; t < T::kWindows; ++t) {
      U l[4], r[4];
      load_window(machine, l, left, t);
      load_window(machine, r, right, t);
      HALO_UNROLL
      for (int e = 0; e < 4; ++e) {
        sum[t][e] = machine.add(l[e], r[e]);
        difference[t][e] = machine.subtract(l[e], r[e]);
      }
    }
  }

  HALO_FN void multiply_h(const M& machine, U left, U middle, U right, U weight) {
    U b[T::kBlocks8 / 2][4];
    {
      U sum[T::kWindows][4], difference[T::kWindows][4];
      load_sides(machine, left, right, sum, difference);
      HALO_UNROLL
      for (int kh = 0; kh < 3; ++kh) {
        load_weights(machine, b, weight, kh * 2);
        HALO_UNROLL
        for (int q = 0; q < T::kFragments; ++q) product(machine, 0, q, sum[q + kh], b);
        load_weights(machine, b, weight, kh * 2 + 1);
        HALO_UNROLL
        for (int q = 0; q < T::kFragments; ++q) product(machine, 1, q, difference[q + kh], b);
      }
    }
    U centre[T::kWindows][4];
    HALO_UNROLL
    for (int t = 0; t < T::kWindows; ++t) load_window(machine, centre[t], middle, t);
    HALO_UNROLL
    for (int kh = 0; kh < 3; ++kh) {
      load_weights(machine, b, weight, 6 + kh);
      HALO_UNROLL
      for (int q = 0; q < T::kFragments; ++q) product(machine, 0, q, centre[q + kh], b);
    }
  }

  // Three taps of windows that are already folded along W: sum and difference of the outer rows, and the
  // inner row.
  HALO_FN void multiply_rows(const M& machine, U weight, int tap, int parity,
                             const U (&rows)[T::kWindows][4]) {
    U b[T::kBlocks8 / 2][4];
    load_weights(machine, b, weight, tap);
    HALO_UNROLL
    for (int q = 0; q < T::kFragments; ++q) {
      U a[4];
      HALO_UNROLL
      for (int e = 0; e < 4; ++e) a[e] = machine.add(rows[q][e], rows[q + 2][e]);
      product(machine, parity, q, a, b);
    }
    load_weights(machine, b, weight, tap + 1);
    HALO_UNROLL
    for (int q = 0; q < T::kFragments; ++q) {
      U a[4];
      HALO_UNROLL
      for (int e = 0; e < 4; ++e) a[e] = machine.subtract(rows[q][e], rows[q + 2][e]);
      product(machine, parity + 2, q, a, b);
    }
    load_weights(machine, b, weight, tap + 2);
    HALO_UNROLL
    for (int q = 0; q < T::kFragments; ++q) product(machine, parity, q, rows[q + 1], b);
  }

  HALO_FN void multiply_hv(const M& machine, U left, U middle, U right, U weight) {
    {
      U sum[T::kWindows][4], difference[T::kWindows][4];
      load_sides(machine, left, right, sum, difference);
      multiply_rows(machine, weight, 0, 0, sum);
      multiply_rows(machine, weight, 3, 1, difference);
    }
    U centre[T::kWindows][4];
    HALO_UNROLL
    for (int t = 0; t < T::kWindows; ++t) load_window(machine, centre[t], middle, t);
    multiply_rows(machine, weight, 6, 0, centre);
  }
};

}  // namespace halo
