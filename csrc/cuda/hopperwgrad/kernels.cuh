// Weight gradient of the 3 x 3 kernels with products of warp groups (compute capability 9.0a).
//
// A CTA sums its split of the strips for one block of rows and channels. The first warp keeps the copy engine
// busy: a box of the input (zeros outside of the map) and one of each member's gradient with its halo (zeros
// outside are the padding). Three warp groups multiply, one for each column of taps. A stage is full when its
// bytes have arrived, and empty when every multiplying warp has let go of it.
#pragma once
#include "hopper/map.h"
#include "hopper/turn.h"
#include "hopperwgrad/column.cuh"
#include "hopperwgrad/params.h"

namespace symconv {
namespace {

// Of a CTA: its block of a group's rows and channels, and its strips.
struct StripBlock {
  int group, row, channel, split, first, end;
};
__device__ __forceinline__ StripBlock strip_block(const HopperwgradWork& p) {
  StripBlock b;
  const int of = block() % p.blocks;
  b.channel = of % p.blocks_c * kStripBlock;
  b.row = of / p.blocks_c % p.blocks_u * kStripBlock;
  b.group = of / p.blocks_c / p.blocks_u;
  b.split = block() / p.blocks;
  b.first = static_cast<int>(int64_t{p.strips} * b.split / p.splits);
  b.end = static_cast<int>(int64_t{p.strips} * (b.split + 1) / p.splits);
  return b;
}

// By one warp: a lane for each member, and the next one for the input.
template <class T>
__device__ __forceinline__ void bring(const CUtensorMap* x, const CUtensorMap* y, const HopperwgradWork& p,
                                      const StripBlock& b, uint32_t stages, uint32_t full, uint32_t empty) {
  const int gradient = (b.group * T::kMembers + lane()) * p.rows + b.row;
  Turn<T> turn;
#pragma unroll 1
  for (int strip = b.first; strip < b.end; ++strip, turn.next()) {
    const int column = strip % p.across * kStripWidth, row = strip / p.across % p.down * T::kHeight;
    const int image = strip / p.across / p.down;
    await(empty + turn.stage * 8, turn.phase ^ 1);
    const uint32_t to = stages + turn.stage * T::kStageBytes, barrier = full + turn.stage * 8;
    if (lane() == 0) expect(barrier, T::kCopiedBytes);
    warp_barrier();
    if (lane() < T::kMembers)
      copy_box(to + lane() * T::kMemberBytes, y, barrier, gradient, column - 1, row - 1, image);
    if (lane() == T::kMembers)
      copy_box(to + T::kMembers * T::kMemberBytes, x, barrier, b.group * p.channels + b.channel, column, row,
               image);
  }
}

template <class T, class E>
__device__ __forceinline__ void sum_strips(float* workspace, const HopperwgradWork& p, const StripBlock& b,
                                           uint32_t stages, uint32_t full, uint32_t empty) {
  const int kw = thread() / 128 - 1, warp = thread() / 32 % 4;
  TapColumn<T, E> column;
  column.locate(kw, warp);
  column.clear();
  Turn<T> turn;
#pragma unroll 1
  for (int strip = b.first; strip < b.end; ++strip, turn.next()) {
    await(full + turn.stage * 8, turn.phase);
    column.multiply(stages + turn.stage * T::kStageBytes);
    warp_barrier();
    if (lane() == 0) arrive(empty + turn.stage * 8);
  }
  const int64_t slab = int64_t{b.split} * (p.blocks / (p.blocks_u * p.blocks_c)) + b.group;
  column.store(p, workspace + slab * 9 * p.rows * p.channels, kw, b.row + 16 * warp, b.channel);
}

template <class T, class E>
__global__ void __launch_bounds__(T::kThreads, 1)
    hopperwgrad_strips(const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap y,
                       float* workspace, const __grid_constant__ HopperwgradWork p) {
  const uint32_t stages = (shared_memory() + 1023) & ~1023u;
  const uint32_t full = stages + T::kStages * T::kStageBytes, empty = full + T::kStages * 8;
  if (thread() == 0) {
    for (int stage = 0; stage < T::kStages; ++stage) {
      start_barrier(full + stage * 8, 1);
      start_barrier(empty + stage * 8, 12);
    }
    publish_barriers();
  }
  barrier();
  const StripBlock b = strip_block(p);
  if (thread() < 128) {
    give_registers<24>();
    if (thread() < 32) bring<T>(&x, &y, p, b, stages, full, empty);
  } else {
    take_registers<160>();
    sum_strips<T, E>(workspace, p, b, stages, full, empty);
  }
}

}  // namespace

// Sums one call's strips: what instances.txt instantiates.
template <class T, class E>
std::string hopperwgrad_run(const HopperwgradParams& p, const HopperwgradWork& work, const Pointers& pointers,
                            const Queue& queue) {
  const bool v = p.mask == 2;  // a tie along rows alone: rows and columns of both maps are exchanged
  const uint64_t width = v ? p.height : p.width, height = v ? p.width : p.height, images = p.batch;
  const uint64_t x_sizes[] = {uint64_t(p.groups * p.channels), width, height, images};
  const uint64_t y_sizes[] = {uint64_t(p.groups * T::kMembers * p.rows), width, height, images};
  const auto bytes = [](int64_t stride) { return uint64_t(2 * stride); };
  const uint64_t x_strides[] = {bytes(v ? p.x_y : p.x_x), bytes(v ? p.x_x : p.x_y), bytes(p.x_n)};
  const uint64_t y_strides[] = {bytes(v ? p.y_y : p.y_x), bytes(v ? p.y_x : p.y_y), bytes(p.y_n)};
  const uint32_t x_box[] = {kStripBlock, kStripWidth, T::kHeight, 1};
  const uint32_t y_box[] = {kStripBlock, T::kPitch, T::kHeight + 2, 1};
  CUtensorMap x, y;
  std::string error = make_map(x, p.dtype, pointers.x, x_sizes, x_strides, x_box, 128);
  if (error.empty()) error = make_map(y, p.dtype, pointers.w, y_sizes, y_strides, y_box, 128);
  if (!error.empty()) return error;
  return launch(hopperwgrad_strips<T, E>, work.blocks * work.splits, T::kThreads, T::kSharedBytes, queue, x,
                y, static_cast<float*>(pointers.workspace), work);
}

}  // namespace symconv
