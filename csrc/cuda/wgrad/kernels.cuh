// Gradient of the reduced weight on matrix units: tiles of pixels through shared memory, sums in registers.
//
// M is rows, N channels, K pixels: both operands lie pixel by pixel in shared memory, so both are loaded
// transposed. A pixel has 16 bytes of padding (32 of TF32), so that neither kind of load has a bank conflict.
// A step is 32 bytes of pixels: two runs of 8 along the width, or one of TF32. A tap is an address: its
// window of any tile is the run's address plus an offset that the warp computes once.
#pragma once
#include "tile.cuh"
#include "total.cuh"

namespace symconv {

// 16 channels x one step of pixels, of which a register has 8 channels and half of the pixels. As A, rows:
// channels 0 to 7 of the first half, 8 to 15 of it, both of the second half. As B, columns: both halves of
// channels 0 to 7, then of 8 to 15, so that the two registers of a block of 8 columns are neighbours, as the
// products want them.
template <class T>
__device__ __forceinline__ void load_rows(uint32_t (&r)[4], uint32_t address, int pitch) {
  if constexpr (T::kBytes == 2) {
    load_transposed(r, address);
  } else {
    r[0] = shared_load(address), r[1] = shared_load(address + 32);
    r[2] = shared_load(address + 4 * pitch), r[3] = shared_load(address + 4 * pitch + 32);
  }
}
template <class T>
__device__ __forceinline__ void load_columns(uint32_t (&r)[4], uint32_t address, int pitch) {
  if constexpr (T::kBytes == 2) {
    load_transposed(r, address);
  } else {
    r[0] = shared_load(address), r[1] = shared_load(address + 4 * pitch);
    r[2] = shared_load(address + 32), r[3] = shared_load(address + 4 * pitch + 32);
  }
}

// A lane's part of those addresses: its run of the step, and the bytes in it.
template <class T>
__device__ __forceinline__ int row_run() {
  return T::kBytes == 2 ? lane() / 16 : 0;
}
template <class T>
__device__ __forceinline__ int row_offset(int pitch) {
  if constexpr (T::kBytes == 2) return lane() % 8 * pitch + lane() / 8 % 2 * 16;
  return lane() % 4 * pitch + lane() / 4 * 4;
}
template <class T>
__device__ __forceinline__ int column_run() {
  return T::kBytes == 2 ? lane() / 8 % 2 : 0;
}
template <class T>
__device__ __forceinline__ int column_offset(int pitch) {
  if constexpr (T::kBytes == 2) return lane() % 8 * pitch + lane() / 16 * 16;
  return lane() % 4 * pitch + lane() / 4 * 4;
}

template <class Set>
using WgradSums = float[Set::kSlots][Set::kM][Set::kN][4];

// The products of one orbit and step: windows are loaded, become parities, and are multiplied.
template <class T, class Set, int ORBIT>
__device__ __forceinline__ void multiply_orbit(WgradSums<Set>& sums,
                                               const uint32_t (&a)[Set::kSlices][Set::kM][4],
                                               uint32_t address, int pitch,
                                               const int (&window)[Set::kSlots]) {
  using Orbit = WgradOrbitOf<Set, ORBIT>;
  constexpr int kWindows = Orbit::kWindows, kFirst = Orbit::kFirst;
#pragma unroll
  for (int n = 0; n < Set::kN; n += 2) {
    uint32_t b[kWindows][4];
#pragma unroll
    for (int w = 0; w < kWindows; ++w)
      load_columns<T>(b[w], address + window[kFirst + w] + 8 * n * T::kBytes, pitch);
#pragma unroll
    for (int bit = 1; bit < kWindows; bit *= 2)
#pragma unroll
      for (int w = 0; w < kWindows; ++w)
        if (!(w & bit))
#pragma unroll
          for (int i = 0; i < 4; ++i) butterfly<T>(b[w][i], b[w | bit][i]);
#pragma unroll
    for (int w = 0; w < kWindows; ++w) {
#pragma unroll
      for (int i = 0; i < 4; ++i) b[w][i] = operand<T>(b[w][i]);
#pragma unroll
      for (int m = 0; m < Set::kM; ++m) {
        const uint32_t (&rows)[4] = a[Orbit::kParities >> 4 * w & 7][m];
        multiply<T>(sums[kFirst + w][m][n], rows, b[w][0], b[w][1]);
        multiply<T>(sums[kFirst + w][m][n + 1], rows, b[w][2], b[w][3]);
      }
    }
  }
}

template <class T, class Set, int ORBIT = 0>
__device__ __forceinline__ void multiply_orbits(WgradSums<Set>& sums,
                                                const uint32_t (&a)[Set::kSlices][Set::kM][4],
                                                uint32_t address, int pitch,
                                                const int (&window)[Set::kSlots]) {
  multiply_orbit<T, Set, ORBIT>(sums, a, address, pitch, window);
  if constexpr (ORBIT + 1 < Set::kOrbits) multiply_orbits<T, Set, ORBIT + 1>(sums, a, address, pitch, window);
}

// Where a warp reads.
template <class Set>
struct WgradWarp {
  int window[Set::kSlots];  // bytes from a pixel to the window of a tap
  int slice[Set::kSlices];  // bytes to the parities of the gradient
};

template <class Set>
__device__ __forceinline__ WgradPart wgrad_part(const WgradWork& p, int set) {
  const int warp = thread() / 32, side = warp / p.warps_n;
  return {set * p.warps_items + side / p.warps_m, side % p.warps_m * Set::kRows,
          warp % p.warps_n * Set::kChannels};
}

template <class Set>
__device__ __forceinline__ void wgrad_warp(const WgradWork& p, int item, WgradWarp<Set>& w) {
#pragma unroll
  for (int s = 0; s < Set::kSlots; ++s) {
    const int tap = max(static_cast<int>(p.taps[item * Set::kSlots + s]), 0), row = tap / p.kernel[2];
    const int z = row / p.kernel[1] * p.reach[0], y = row % p.kernel[1] * p.reach[1],
              x = tap % p.kernel[2] * p.reach[2];
    const int pixel = (z * p.halo[1] + y) * p.halo[2] + x % p.step[2] * p.columns + x / p.step[2];
    w.window[s] = pixel * p.x_pitch;
  }
#pragma unroll
  for (int k = 0; k < Set::kSlices; ++k) {
    int parity = Set::kWhole ? k : 0;
#pragma unroll
    for (int bit = 0; bit < 3 && !Set::kWhole; ++bit)
      if (k >> bit & 1) parity |= p.axes[item] >> 3 * bit & 7;
    w.slice[k] = parity * p.slice_bytes;
  }
}

template <class T, class Set>
__device__ __forceinline__ void multiply_tile(const WgradWork& p, const WgradWarp<Set>& w, uint32_t stage,
                                              WgradSums<Set>& sums) {
  constexpr int kRuns = T::kBytes == 2 ? 2 : 1;  // of a step
  const WgradPart part = kept_part();
  const uint32_t x = stage + column_offset<T>(p.x_pitch) + part.channel * T::kBytes;
  uint32_t gradient =
      stage + p.x_bytes + row_offset<T>(p.y_pitch) + part.row * T::kBytes + row_run<T>() * 8 * p.y_pitch;
  uint32_t run = run_table(p) + 4 * column_run<T>();
#pragma unroll 1
  for (int step = 0; step < p.steps; ++step) {
    const uint32_t address = x + shared_load(run);
    uint32_t a[Set::kSlices][Set::kM][4];
#pragma unroll
    for (int k = 0; k < Set::kSlices; ++k)
#pragma unroll
      for (int m = 0; m < Set::kM; ++m)
        load_rows<T>(a[k][m], gradient + w.slice[k] + 16 * m * T::kBytes, p.y_pitch);
    multiply_orbits<T, Set>(sums, a, address, p.x_pitch, w.window);
    run += 4 * kRuns;
    gradient += 8 * kRuns * p.y_pitch;
  }
}

// [split][group][tap][row][channel]: the sums of parity j at the tap of window j.
template <class Set>
__device__ __forceinline__ void store_sums(const WgradWork& p, const WgradSums<Set>& sums, float* to) {
  const WgradBlock b = kept_block();
  const WgradPart w = kept_part();
  const int64_t taps = p.kernel[0] * p.kernel[1] * p.kernel[2];
  const int row = b.row + w.row + lane() / 4, channel = b.channel + w.channel + lane() % 4 * 2;
  to += (int64_t{b.split} * p.groups + b.group) * taps * p.rows * p.channels;
#pragma unroll
  for (int s = 0; s < Set::kSlots; ++s) {
    const int tap = p.taps[w.item * Set::kSlots + s];
    if (tap < 0) continue;
#pragma unroll
    for (int m = 0; m < 2 * Set::kM; ++m) {
      const int u = row + 8 * m;
      float* line = to + (int64_t{tap} * p.rows + u) * p.channels + channel;
#pragma unroll
      for (int n = 0; n < Set::kN; ++n) {
        const float* v = sums[s][m / 2][n] + m % 2 * 2;
        if (u < p.rows && channel + 8 * n < p.channels)
          global_store8(line + 8 * n, make_uint2(__float_as_uint(v[0]), __float_as_uint(v[1])));
      }
    }
  }
}

template <class Set>
__device__ __forceinline__ WgradBlock wgrad_block(const WgradWork& p) {
  WgradBlock b;
  int i = block();
  b.channel = i % p.blocks_n * p.warps_n * Set::kChannels, i /= p.blocks_n;
  b.row = i % p.blocks_m * p.warps_m * Set::kRows, i /= p.blocks_m;
  b.group = i % p.groups, i /= p.groups;
  b.set = i % p.sets, b.split = i / p.sets;
  return b;
}

// All but the last `stages` - 2 of the groups committed: the oldest stage in flight has arrived.
__device__ __forceinline__ void wait_stage(int stages) {
  if (stages <= 2) copy_wait<0>();
  if (stages == 3) copy_wait<1>();
  if (stages == 4) copy_wait<2>();
}

// A CTA sums its split of the tiles for a block of rows and channels and a set of items. One barrier a tile:
// behind it the stage is there and folded for all, and the stage of the tile before is free for the next
// copies. Where but one stage fits, nothing overlaps.
template <class T, class Set>
__global__ void __launch_bounds__(kWgradThreads, 1)
    wgrad_tiles(const __grid_constant__ WgradWork p, const void* x, const void* gy, float* to) {
  const WgradBlock b = wgrad_block<Set>(p);
  const WgradPart part = wgrad_part<Set>(p, b.set);
  if (thread() == 0) keep(b);
  if (lane() == 0) keep(part);
  wgrad_tables(p);
  WgradWarp<Set> w;
  wgrad_warp<Set>(p, min(part.item, p.items - 1), w);
  const bool works =
      part.item < p.items && b.row + part.row < p.rows && b.channel + part.channel < p.channels;
  WgradSums<Set> sums;
#pragma unroll
  for (int i = 0; i < Set::kSlots * Set::kM * Set::kN * 4; ++i)
    sums[i / (Set::kM * Set::kN * 4)][i / (Set::kN * 4) % Set::kM][i / 4 % Set::kN][i % 4] = 0.0f;
  barrier();

  const int first = static_cast<int>(int64_t{p.all_tiles} * b.split / p.splits);
  const int end = static_cast<int>(int64_t{p.all_tiles} * (b.split + 1) / p.splits);
  const auto copy = [&](int tile, int stage) {
    if (tile < end) {
      const WgradPlace place = wgrad_place(p, tile);
      const WgradBlock mine = kept_block();
      copy_input<T>(p, mine, static_cast<const uint8_t*>(x), place, stage_at(p, stage));
      copy_gradient<T>(p, mine, static_cast<const uint8_t*>(gy), place, stage_at(p, stage) + p.x_bytes);
    }
    copy_commit();
  };
  for (int i = 0; i < p.stages - 1; ++i) copy(first + i, i);
  int stage = 0;
#pragma unroll 1
  for (int tile = first; tile < end; ++tile) {
    if (p.stages == 1) copy(tile, 0);
    wait_stage(p.stages);
    fold_members<T>(p, stage_at(p, stage) + p.x_bytes);
    barrier();
    // Warps that share a scheduler are four apart: one copies while the other multiplies.
#pragma unroll 1
    for (int turn = thread() / 128; turn < thread() / 128 + 2; ++turn) {
      if (turn % 2 == 0 && p.stages > 1) copy(tile + p.stages - 1, stage ? stage - 1 : p.stages - 1);
      if (turn % 2 == 1 && works) multiply_tile<T, Set>(p, w, stage_at(p, stage), sums);
    }
    if (p.stages == 1) barrier();
    stage = stage + 1 == p.stages ? 0 : stage + 1;
  }
  copy_wait<0>();
  if (works) store_sums<Set>(p, sums, to);
}

// Launches it: an instance is compiled by itself, and the launcher knows this function alone.
template <class T, class Set>
std::string wgrad_run(const WgradWork& work, int grid, int threads, int shared_bytes, const Queue& queue,
                      const void* x, const void* gy, float* to) {
  return launch(wgrad_tiles<T, Set>, grid, threads, shared_bytes, queue, work, x, gy, to);
}

}  // namespace symconv
