// The accumulators of a warp: one for each parity, and what becomes of them: butterfly, bias, stores.
#pragma once
#include "halo_tile.h"

namespace halo {

template <class M, class T>
struct Sums {
  using U = typename M::U;
  using F = typename M::F;
  // By parity (bit 0 odd along W, bit 1 odd along H), fragment and, four a block of 8 orbits, place in the
  // fragment: (row g, columns 2t, 2t + 1), (row g + 8, the same), for lane 4g + t.
  F sums[T::kMembers][T::kFragments][T::kBlocks8 * 4];

  HALO_FN void clear() {
    HALO_UNROLL
    for (int c = 0; c < T::kMembers; ++c) {
      HALO_UNROLL
      for (int q = 0; q < T::kFragments; ++q) {
        HALO_UNROLL
        for (int e = 0; e < T::kBlocks8 * 4; ++e) sums[c][q][e] = 0.0f;
      }
    }
  }

  // Parities to members, in place: member g is the sum of all parities c with the signs (-1)^|c & g|.
  HALO_FN void butterfly() {
    HALO_UNROLL
    for (int axis = 1; axis < T::kMembers; axis *= 2) {
      HALO_UNROLL
      for (int c = 0; c < T::kMembers; ++c) {
        if (c & axis) continue;
        HALO_UNROLL
        for (int q = 0; q < T::kFragments; ++q) {
          HALO_UNROLL
          for (int e = 0; e < T::kBlocks8 * 4; ++e) {
            const F even = sums[c][q][e], odd = sums[c + axis][q][e];
            sums[c][q][e] = even + odd;
            sums[c + axis][q][e] = even - odd;
          }
        }
      }
    }
  }

  // Butterfly, bias (or null) and stores: lane 4g + t holds, for pixel column g, kTogether consecutive orbits
  // of every run. Members are in the order identity, W, H, WH; the channel is member * orbits + orbit.
  HALO_FN void store(const M& machine, const Problem& p, int tile, int warp, const float* bias, void* y) {
    butterfly();
    constexpr int run = 4 * T::kTogether;
    const Patch in = warp_patch<T>(warp / T::kGroups);
    const Patch at = patch_at<T>(p, tile, in.image);
    const int rows =
        at.image < 0 ? 0 : p.height - at.row - in.row;  // that lie in the map, from the warp's first on
    const int pitch = p.width * (T::kMembers * p.orbits);
    const U lane = machine.lane(), column = (lane >> 2) + (at.column + in.column);
    const U first =
        (lane & 3) * T::kTogether + (tile % p.orbit_blocks * T::kOrbits + warp % T::kGroups * T::kWarpOrbits);
    const auto place = machine.place(column, T::kMembers * p.orbits, first,
                                     int64_t(at.image * p.height + at.row + in.row) * pitch);
    HALO_UNROLL
    for (int r = 0; r < T::kWarpOrbits / run; ++r) {
      const U inside = (column < U(p.width)) & (first + r * run < U(p.orbits));
      HALO_UNROLL
      for (int g = 0; g < T::kMembers; ++g) {
        F added[T::kTogether];
        machine.bias(added, bias, g * p.orbits, first + r * run, inside);
        HALO_UNROLL
        for (int half = 0; half < 2 * T::kFragments; ++half) {
          const int q = half / 2, row = q + half % 2 * (T::kRows / 2);
          U packed[T::kTogether / 2];
          HALO_UNROLL
          for (int j = 0; j < T::kTogether / 2; ++j) {
            const int e = (r * (run / 8) + j) * 4 + half % 2 * 2;
            packed[j] = machine.pack(sums[g][q][e] + added[2 * j], sums[g][q][e + 1] + added[2 * j + 1]);
          }
          if (row < rows) machine.store(packed, y, place, row * pitch + g * p.orbits + r * run, inside);
        }
      }
    }
  }
};

}  // namespace halo
