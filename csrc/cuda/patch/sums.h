// The accumulators of a warp: one for each parity, and what becomes of them: butterfly, bias, activation,
// stores.
#pragma once
#include "activation.h"
#include "patch/tile.h"

namespace symconv {
namespace {

template <class T, class E>
struct Sums {
  // By parity (bit 0 odd along columns, bit 1 odd along rows), fragment and, four a block of 8 orbits, place
  // in the fragment: (row g, columns 2t, 2t + 1), (row g + 8, the same), for lane 4g + t.
  float sums[T::kMembers][T::kFragments][T::kBlocks8 * 4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int c = 0; c < T::kMembers; ++c) {
#pragma unroll
      for (int q = 0; q < T::kFragments; ++q) {
#pragma unroll
        for (int e = 0; e < T::kBlocks8 * 4; ++e) sums[c][q][e] = 0.0f;
      }
    }
  }

  // Parities to members, in place: member g is the sum of all parities c with the signs (-1)^|c & g|.
  __device__ __forceinline__ void butterfly() {
#pragma unroll
    for (int axis = 1; axis < T::kMembers; axis *= 2) {
#pragma unroll
      for (int c = 0; c < T::kMembers; ++c) {
        if (c & axis) continue;
#pragma unroll
        for (int q = 0; q < T::kFragments; ++q) {
#pragma unroll
          for (int e = 0; e < T::kBlocks8 * 4; ++e) {
            const float even = sums[c][q][e], odd = sums[c + axis][q][e];
            sums[c][q][e] = even + odd;
            sums[c + axis][q][e] = even - odd;
          }
        }
      }
    }
  }

  // Butterfly, bias (or null), activation and stores. What most layers need is code of its own: without the
  // tests and the exponentials in between it is a tenth as long.
  __device__ __forceinline__ void store(const Layer& p, int tile, int warp, const void* bias, void* y) {
    butterfly();
    if (p.whole && p.activation == kNone)
      store_as<true>(p, tile, warp, bias, y);
    else
      store_as<false>(p, tile, warp, bias, y);
  }

 private:
  // Lane 4g + t holds, for pixel column g, kTogether consecutive orbits of every run. Members are in the
  // order identity, columns, rows, both; the channel is (group * members + member) * orbits + orbit.
  template <bool PLAIN>
  __device__ __forceinline__ void store_as(const Layer& p, int tile, int warp, const void* bias, void* y) {
    constexpr int run = 4 * T::kTogether;
    const Patch in = warp_patch<T>(warp / T::kGroups);
    const Patch at = patch_at<T>(p, tile, in.image);
    const int rows =
        at.image < 0 ? 0 : p.height - at.row - in.row;  // that lie in the map, from the warp's first on
    const int column = lane() / 4 + at.column + in.column, block = tile % p.blocks;
    const int first =
        lane() % 4 * T::kTogether + block % p.orbit_blocks * T::kOrbits + warp % T::kGroups * T::kWarpOrbits;
    const int channel = block / p.orbit_blocks * T::kMembers * p.orbits + first;
    const int64_t place = at.image / p.depth * p.y_image + at.image % p.depth * p.y_plane +
                          int64_t{at.row + in.row} * p.y_row + int64_t{column} * p.y_column + channel;
#pragma unroll
    for (int r = 0; r < T::kWarpOrbits / run; ++r) {
      const int orbits = column < p.width ? p.orbits - first - r * run : 0;  // that there are, of the lane's
#pragma unroll
      for (int g = 0; g < T::kMembers; ++g) {
        float added[T::kTogether];
        load_bias(added, bias, g * p.orbits + channel + r * run, orbits);
#pragma unroll
        for (int half = 0; half < 2 * T::kFragments; ++half) {
          const int q = half / 2, row = q + half % 2 * (T::kRows / 2);
          float v[T::kTogether];
#pragma unroll
          for (int n = 0; n < T::kTogether; ++n)
            v[n] = sums[g][q][(r * (run / 8) + n / 2) * 4 + half % 2 * 2 + n % 2] + added[n];
          if constexpr (!PLAIN) activate(v, p.activation);
          if (row < rows)
            store_orbits(v, PLAIN || p.whole, orbits, y, place + (row * p.y_row + g * p.orbits + r * run));
        }
      }
    }
  }

  __device__ __forceinline__ static void load_bias(float (&added)[T::kTogether], const void* bias, int index,
                                                   int orbits) {
#pragma unroll
    for (int n = 0; n < T::kTogether; ++n)
      added[n] = bias && n < orbits ? load_element<E>(bias, index + n) : 0;
    compiler_fence();  // else what all members need is computed at once, in registers that are not there
  }

  __device__ __forceinline__ static void store_orbits(const float (&v)[T::kTogether], bool whole, int orbits,
                                                      void* y, int64_t index) {
    if (whole) {
      uint32_t packed[T::kTogether / 2];
#pragma unroll
      for (int j = 0; j < T::kTogether / 2; ++j) packed[j] = pack2<E>(v[2 * j], v[2 * j + 1]);
      void* to = static_cast<uint8_t*>(y) + index * E::kBytes;
      if (orbits <= 0) return;
      if constexpr (T::kTogether == 8)
        global_store16(to, {packed[0], packed[1], packed[2], packed[3]});
      else
        global_store8(to, {packed[0], packed[1]});
    } else {
#pragma unroll
      for (int n = 0; n < T::kTogether; ++n)
        if (n < orbits) store_element<E>(y, index + n, v[n]);
    }
  }
};

}  // namespace
}  // namespace symconv
