// A stage of the weight gradient: tables of where its pixels lie, the copies into it, the fold of the
// members.
#pragma once
#include "../device.h"
#include "../launch.h"
#include "work.h"

namespace symconv {

constexpr uint32_t kNoPixel = 0xffffffffu;  // of a run that fills the last step up

// Where a CTA works: its group, first row and channel, its set of items and its split of the tiles. And a
// warp's part of that. Both lie in shared memory and are read where they are needed: registers are for the
// sums.
struct WgradBlock {
  int group, row, channel, set, split;
};
struct WgradPart {
  int item, row, channel;
};
constexpr int kPlaces = 256;  // bytes of shared memory: the CTA's place, then 16 bytes a warp

__device__ __forceinline__ void keep(const WgradBlock& b) {
  const uint32_t at = shared_memory();
  shared_store(at, b.group), shared_store(at + 4, b.row), shared_store(at + 8, b.channel);
  shared_store(at + 12, b.set), shared_store(at + 16, b.split);
}
__device__ __forceinline__ WgradBlock kept_block() {
  const uint32_t at = shared_memory();
  WgradBlock b;
  b.group = shared_load(at), b.row = shared_load(at + 4), b.channel = shared_load(at + 8);
  b.set = shared_load(at + 12), b.split = shared_load(at + 16);
  return b;
}
__device__ __forceinline__ void keep(const WgradPart& w) {
  const uint32_t at = shared_memory() + 32 + thread() / 32 * 16;
  shared_store(at, w.item), shared_store(at + 4, w.row), shared_store(at + 8, w.channel);
}
__device__ __forceinline__ WgradPart kept_part() {
  const uint32_t at = shared_memory() + 32 + thread() / 32 * 16;
  WgradPart w;
  w.item = shared_load(at), w.row = shared_load(at + 4), w.channel = shared_load(at + 8);
  return w;
}

// Tables: a word for each pixel of the input's tile, for each output pixel, for each run; behind them the
// stages.
__device__ __forceinline__ uint32_t pixel_table() { return shared_memory() + kPlaces; }
__device__ __forceinline__ uint32_t output_table(const WgradWork& p) { return pixel_table() + 4 * p.pixels; }
__device__ __forceinline__ uint32_t run_table(const WgradWork& p) { return output_table(p) + 32 * p.runs; }
__device__ __forceinline__ uint32_t stage_at(const WgradWork& p, int stage) {
  return shared_memory() + p.table_bytes + stage * p.stage_bytes;
}

// A tile's image and first output pixel.
struct WgradPlace {
  int n, z, y, x;
};

__device__ __forceinline__ WgradPlace wgrad_place(const WgradWork& p, int tile) {
  WgradPlace at;
  at.x = tile % p.tiles[2] * p.tile[2], tile /= p.tiles[2];
  at.y = tile % p.tiles[1] * p.tile[1], tile /= p.tiles[1];
  at.z = tile % p.tiles[0] * p.tile[0], at.n = tile / p.tiles[0];
  return at;
}

__device__ __forceinline__ uint32_t packed(int z, int y, int x) { return z | y << 10 | x << 20; }

// Entries hold a pixel's place in its tile, 10 bits an axis; those of a run the address of its first window.
__device__ __forceinline__ void wgrad_tables(const WgradWork& p) {
  for (int i = thread(); i < p.pixels; i += threads()) {  // in the order of shared memory
    const int place = i % p.halo[2], row = i / p.halo[2];
    const int column = place % p.columns * p.step[2] + place / p.columns;
    const int z = row / p.halo[1] * p.sample[0], y = row % p.halo[1] * p.sample[1];
    shared_store(pixel_table() + 4 * i, packed(z, y, column * p.sample[2]));
  }
  const int across = p.tile[2] / 8, real = across * p.tile[1] * p.tile[0];
  for (int i = thread(); i < p.runs; i += threads()) {
    const int x = i % across, y = i / across % p.tile[1], z = i / across / p.tile[1];
    const int pixel = (z * p.step[0] * p.halo[1] + y * p.step[1]) * p.halo[2] + 8 * x;
    shared_store(run_table(p) + 4 * i, i < real ? pixel * p.x_pitch : 0);
    for (int j = 0; j < 8; ++j)
      shared_store(output_table(p) + 32 * i + 4 * j, i < real ? packed(z, y, 8 * x + j) : kNoPixel);
  }
}

// Zeros outside of the map and beyond the channels.
template <class T>
__device__ __forceinline__ void copy_input(const WgradWork& p, const WgradBlock& b, const uint8_t* x,
                                           const WgradPlace& at, uint32_t stage) {
  const int z = at.z * p.stride[0] - p.padding[0], y = at.y * p.stride[1] - p.padding[1],
            c = at.x * p.stride[2] - p.padding[2];
  const int64_t start = at.n * p.x_stride[0] + z * p.x_stride[1] + y * p.x_stride[2] + c * p.x_stride[3] +
                        int64_t{b.group} * p.channels + b.channel;
  const int mask = (1 << p.n_shift) - 1;
  for (int i = thread(); i < p.pixels << p.n_shift; i += threads()) {
    const int pixel = i >> p.n_shift, chunk = i & mask;
    const uint32_t entry = shared_load(pixel_table() + 4 * pixel);
    const int dz = entry & 1023, dy = entry >> 10 & 1023, dx = entry >> 20;
    const bool inside = static_cast<unsigned>(z + dz) < static_cast<unsigned>(p.x[0]) &&
                        static_cast<unsigned>(y + dy) < static_cast<unsigned>(p.x[1]) &&
                        static_cast<unsigned>(c + dx) < static_cast<unsigned>(p.x[2]) &&
                        b.channel + chunk * kVector<T> < p.channels;
    const int64_t from =
        start + dz * p.x_stride[1] + dy * p.x_stride[2] + dx * p.x_stride[3] + chunk * kVector<T>;
    copy16(stage + pixel * p.x_pitch + 16 * chunk, x + (inside ? from * T::kBytes : 0), inside ? 16 : 0);
  }
}

// All members of an orbit's rows, each in a slice of its own; zeros outside of the map and beyond the rows. A
// thread copies all members of what it copies one of, and folds them itself (`fold_members`).
template <class T>
__device__ __forceinline__ void copy_gradient(const WgradWork& p, const WgradBlock& b, const uint8_t* gy,
                                              const WgradPlace& at, uint32_t stage) {
  const int64_t start = at.n * p.y_stride[0] + int64_t{b.group} * p.filters + b.row;
  const int mask = (1 << p.m_shift) - 1;
  for (int i = thread(); i < p.runs << (p.m_shift + 3); i += threads()) {
    const int pixel = i >> p.m_shift, chunk = i & mask;
    const uint32_t entry = shared_load(output_table(p) + 4 * pixel);
    const int z = at.z + (entry & 1023), y = at.y + (entry >> 10 & 1023), x = at.x + (entry >> 20);
    const bool inside = entry != kNoPixel && z < p.y[0] && y < p.y[1] && x < p.y[2];
    const int left = (p.rows - b.row - chunk * kVector<T>)*T::kBytes;
    const int bytes = inside ? max(0, min(left, 16)) : 0;
    const int64_t from =
        start + z * p.y_stride[1] + y * p.y_stride[2] + x * p.y_stride[3] + chunk * kVector<T>;
    const uint32_t target = stage + pixel * p.y_pitch + 16 * chunk;
    for (int m = 0; m < 1 << p.order; ++m)
      copy16(target + m * p.slice_bytes, gy + (bytes ? (from + p.members[m]) * T::kBytes : 0), bytes);
  }
}

// Members a and b of a pair become their sum and difference.
template <class T>
__device__ __forceinline__ void butterfly(uint32_t& a, uint32_t& b) {
  const uint32_t sum = fold_add<T>(a, b);
  b = fold_subtract<T>(a, b);
  a = sum;
}

// Members of 16 bytes to parities, in place; products get what `operand` makes of them.
template <class T, int ORDER>
__device__ __forceinline__ void fold_chunk(uint32_t address, int slice) {
  uint128 v[1 << ORDER];
#pragma unroll
  for (int m = 0; m < 1 << ORDER; ++m) v[m] = shared_load16(address + m * slice);
#pragma unroll
  for (int bit = 1; bit < 1 << ORDER; bit *= 2)
#pragma unroll
    for (int m = 0; m < 1 << ORDER; ++m)
      if (!(m & bit)) {
        butterfly<T>(v[m].x, v[m | bit].x), butterfly<T>(v[m].y, v[m | bit].y);
        butterfly<T>(v[m].z, v[m | bit].z), butterfly<T>(v[m].w, v[m | bit].w);
      }
#pragma unroll
  for (int m = 0; m < 1 << ORDER; ++m) {
    v[m].x = operand<T>(v[m].x), v[m].y = operand<T>(v[m].y);
    v[m].z = operand<T>(v[m].z), v[m].w = operand<T>(v[m].w);
    shared_store16(address + m * slice, v[m]);
  }
}

// Of what this thread has copied itself: no barrier before it, one behind it.
template <class T>
__device__ __forceinline__ void fold_members(const WgradWork& p, uint32_t stage) {
  if (T::kBytes == 2 && p.order == 0) return;
  const int mask = (1 << p.m_shift) - 1;
  for (int i = thread(); i < p.runs << (p.m_shift + 3); i += threads()) {
    const uint32_t address = stage + (i >> p.m_shift) * p.y_pitch + 16 * (i & mask);
    if (p.order == 0) fold_chunk<T, 0>(address, p.slice_bytes);
    if (p.order == 1) fold_chunk<T, 1>(address, p.slice_bytes);
    if (p.order == 2) fold_chunk<T, 2>(address, p.slice_bytes);
    if (p.order == 3) fold_chunk<T, 3>(address, p.slice_bytes);
  }
}

}  // namespace symconv
