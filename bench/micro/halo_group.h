// A warp of the wgmma kernels: tile copies by the copy engine, A from registers, the weights read by
// descriptors.
//
// wgmma is separable by warp: each warp of a group of four brings 16 rows of A and keeps their sums, in the
// fragments of mma.sync, and all multiply by the same weights in shared memory. So a warp owns rows x 8
// pixels as in halo_warp.h.
#pragma once
#include "halo_sums.h"

namespace halo {

// The stage as the copy engine writes it: a patch is one box of the map, swizzled by the bits of its address.
// CLUSTER: CTAs that work on as many tiles of the same orbits at once; each fetches its share of the weights
// for all.
// FLOWS: products stay in flight from one stage to the next, and a stage is let go of when the next has
// begun.
template <class Base, int CLUSTER = 1, bool FLOWS = false>
struct Boxes : Base {
  static constexpr bool kFlows = FLOWS;
  static constexpr int kCluster = CLUSTER, kShareBytes = Base::kWeightBytes / CLUSTER;
  static constexpr int kPixelBytes = Base::kChannels * 2;  // also the span of the swizzle: 64 or 128 bytes
  static constexpr int kPatchBytes = (Base::kPatchPixels * kPixelBytes + 1023) / 1024 * 1024;
  static constexpr int kHaloBytes = Base::kPatches * kPatchBytes;
  static constexpr int kStageBytes = kHaloBytes + Base::kWeightBytes;
  static constexpr int kCopiedBytes = Base::kPatches * Base::kPatchPixels * kPixelBytes + Base::kWeightBytes;
  static constexpr int kSharedBytes = Base::kStages * kStageBytes + 1024 + 16 * Base::kStages;
  static constexpr int kWarpgroups = Base::kPixelWarps / 4;
  static_assert(Base::kGroups == 1 && Base::kPixelWarps % 4 == 0,
                "a warpgroup computes all orbits of its pixels");
  static_assert(Base::kChunks >= 4 && Base::kWeightBytes % 1024 == 0, "alignment of the swizzle");
  static_assert(Base::kWindows <= 6, "addresses of the windows");
};

// Units of work of a cluster, and the tile of its CTA `rank`; the last may lie beyond the last image.
template <class T>
HALO_FN int works(const Problem& p) {
  return (p.tiles / p.orbit_blocks + T::kCluster - 1) / T::kCluster * p.orbit_blocks;
}
template <class T>
HALO_FN int tile_of(const Problem& p, int work, int rank) {
  return (work / p.orbit_blocks * T::kCluster + rank) * p.orbit_blocks + work % p.orbit_blocks;
}

// The copy engine's swizzle: 16-byte chunks of 64 or 128 bytes exchanged by the bits above them.
template <class T, class I>
HALO_FN I swizzled(I address) {
  return address ^ (T::kPixelBytes == 64 ? (address >> 3) & 48 : (address >> 3) & 112);
}

template <class M, class T>
struct GroupWarp : Sums<M, T> {
  using U = typename M::U;
  // Addresses inside a stage of the windows, by tap column. The keys of rows 4 apart are equal (64 bytes a
  // pixel and 18 or 10 pixels a row), so that such windows differ by a constant.
  static constexpr int kDistinct = T::kPixelBytes == 64 && T::kWindows > 4 ? 4 : T::kWindows;
  static_assert(T::kPixelBytes != 64 || T::kPitch * 4 % 8 == 0, "keys of rows 4 apart");
  U column[3][kDistinct];

  HALO_FN void locate(const M& machine, int warp) {
    const Patch at = warp_patch<T>(warp);
    const U lane = machine.lane(), matrix = lane >> 3, i = lane & 7;
    HALO_UNROLL
    for (int kw = 0; kw < 3; ++kw) {
      HALO_UNROLL
      for (int t = 0; t < kDistinct; ++t) {
        const U row = (matrix & 1) * (T::kRows / 2) + (at.row + t);
        const U pixel = row * T::kPitch + i + (at.column + kw);
        column[kw][t] =
            swizzled<T, U>(pixel * T::kPixelBytes + (matrix >> 1) * 16) + at.image * T::kPatchBytes;
      }
    }
  }

  HALO_FN void load_window(const M& machine, U (&a)[4], uint32_t stage, int step, int kw, int t) {
    const int beyond = t / kDistinct * kDistinct;
    machine.load(a, (column[kw][t - beyond] ^ (step * 32)) + (stage + beyond * T::kPitch * T::kPixelBytes));
  }

  HALO_FN void load_sides(const M& machine, U (&sum)[T::kWindows][4], U (&difference)[T::kWindows][4],
                          uint32_t stage, int step) {
    HALO_UNROLL
    for (int t = 0; t < T::kWindows; ++t) {
      U l[4], r[4];
      load_window(machine, l, stage, step, 0, t);
      load_window(machine, r, stage, step, 2, t);
      HALO_UNROLL
      for (int e = 0; e < 4; ++e) {
        sum[t][e] = machine.add(l[e], r[e]);
        difference[t][e] = machine.subtract(l[e], r[e]);
      }
    }
  }

  HALO_FN void product(const M& machine, int parity, int q, const U (&a)[4], uint32_t weights, int tap) {
    machine.template product<T>(this->sums[parity][q], a, weights + tap * (T::kOrbits * T::kPixelBytes));
  }

  // All channels of a stage. At most two groups of products are in flight, and none when it returns, or one
  // if they flow; let_go() is called once those of the stage before are through.
  HALO_FN void multiply(const M& machine, uint32_t stage) {
    HALO_UNROLL
    for (int step = 0; step < T::kChannels / 16; ++step) {
      const uint32_t weights = stage + T::kHaloBytes + step * 32;
      if constexpr (T::kTie == Tie::h)
        multiply_h(machine, stage, step, weights);
      else
        multiply_hv(machine, stage, step, weights);
    }
    if (!T::kFlows) machine.template wait<0>();
  }

  HALO_FN void multiply_h(const M& machine, uint32_t stage, int step, uint32_t weights) {
    U sum[T::kWindows][4], difference[T::kWindows][4], centre[T::kWindows][4];
    load_sides(machine, sum, difference, stage, step);
    machine.fence();
    HALO_UNROLL
    for (int kh = 0; kh < 3; ++kh) {
      HALO_UNROLL
      for (int q = 0; q < T::kFragments; ++q) product(machine, 0, q, sum[q + kh], weights, kh * 2);
      HALO_UNROLL
      for (int q = 0; q < T::kFragments; ++q) product(machine, 1, q, difference[q + kh], weights, kh * 2 + 1);
    }
    machine.commit();
    if (step > 0 || T::kFlows) machine.template wait<1>();
    if (step == 0 && T::kFlows) machine.let_go();
    HALO_UNROLL
    for (int t = 0; t < T::kWindows; ++t) load_window(machine, centre[t], stage, step, 1, t);
    machine.fence();
    HALO_UNROLL
    for (int kh = 0; kh < 3; ++kh) {
      HALO_UNROLL
      for (int q = 0; q < T::kFragments; ++q) product(machine, 0, q, centre[q + kh], weights, 6 + kh);
    }
    machine.commit();
    machine.template wait<1>();
  }

  // Sum and difference of the rows above and below, for each fragment.
  HALO_FN void fold_rows(const M& machine, const U (&rows)[T::kWindows][4], U (&sum)[T::kFragments][4],
                         U (&difference)[T::kFragments][4]) {
    HALO_UNROLL
    for (int q = 0; q < T::kFragments; ++q) {
      HALO_UNROLL
      for (int e = 0; e < 4; ++e) {
        sum[q][e] = machine.add(rows[q][e], rows[q + 2][e]);
        difference[q][e] = machine.subtract(rows[q][e], rows[q + 2][e]);
      }
    }
  }

  // Three taps of rows that are folded along W: with the sums, the differences, and the rows between.
  HALO_FN void multiply_rows(const M& machine, uint32_t weights, int tap, int parity,
                             const U (&sum)[T::kFragments][4], const U (&difference)[T::kFragments][4],
                             const U (&rows)[T::kWindows][4]) {
    HALO_UNROLL
    for (int q = 0; q < T::kFragments; ++q) product(machine, parity, q, sum[q], weights, tap);
    HALO_UNROLL
    for (int q = 0; q < T::kFragments; ++q) product(machine, parity + 2, q, difference[q], weights, tap + 1);
    HALO_UNROLL
    for (int q = 0; q < T::kFragments; ++q) product(machine, parity, q, rows[q + 1], weights, tap + 2);
  }

  HALO_FN void multiply_hv(const M& machine, uint32_t stage, int step, uint32_t weights) {
    U even[T::kWindows][4], odd[T::kWindows][4], centre[T::kWindows][4];
    U sum[3][T::kFragments][4], difference[3][T::kFragments][4];
    load_sides(machine, even, odd, stage, step);
    fold_rows(machine, even, sum[0], difference[0]);
    fold_rows(machine, odd, sum[1], difference[1]);
    machine.fence();
    multiply_rows(machine, weights, 0, 0, sum[0], difference[0], even);
    multiply_rows(machine, weights, 3, 1, sum[1], difference[1], odd);
    machine.commit();
    if (step > 0 || T::kFlows) machine.template wait<1>();
    if (step == 0 && T::kFlows) machine.let_go();
    HALO_UNROLL
    for (int t = 0; t < T::kWindows; ++t) load_window(machine, centre[t], stage, step, 1, t);
    fold_rows(machine, centre, sum[2], difference[2]);
    machine.fence();
    multiply_rows(machine, weights, 6, 0, sum[2], difference[2], centre);
    machine.commit();
    machine.template wait<1>();
  }
};

}  // namespace halo
