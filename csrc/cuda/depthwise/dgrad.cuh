// Gradient of the input of depthwise layers: the members' gradients are added at mirrored taps, then
// multiplied once.
//
// A thread has kRun positions of the input along the axis that is not folded, apart by what makes the same
// taps meet them. The sums stay in registers over all rows and members; the members come through shared
// memory one by one, or two at a time where a position that a tap meets is also met by the mirrored tap of
// the mirrored member.
#pragma once
#include "depthwise/window.cuh"

namespace symconv {
namespace {

// Weights of one row of all channels of the CTA as they are: [channel][tap across][tap along], float32.
template <class T>
__device__ __forceinline__ void stage_row(const DepthwiseDevice& p, const DepthwisePlace& at, int row,
                                          const void* w, uint32_t to) {
  const int across = p.axis[0].taps, along = p.axis[1].taps;
  const int64_t base = at.channel * p.w_group + row * p.w_row;
  for (int i = thread(); i < across * along * at.channels; i += threads()) {
    const int j = i % across, k = i / across % along, c = i / (across * along);
    const int64_t from = base + c * p.w_group + j * p.axis[0].w_stride + k * p.axis[1].w_stride;
    shared_put(to + (j * along + k) * 4 + c * p.weights_channel, load_element<T>(w, from));
  }
}

// The taps of an axis that meet a position of the input: `first` and each tap_step further, `count` of them.
// The first meets position `at` of the output, the others one output_step less each.
struct DepthwiseTaps {
  int first, count, at;
};

__device__ __forceinline__ DepthwiseTaps taps_of(const DepthwiseAxis& a, int position) {
  const int padded = position + a.padding;
  for (int first = 0; first < a.tap_step && first < a.taps; ++first) {
    const int reach = padded - first * a.dilation;
    if (reach % a.stride == 0) return {first, (a.taps - 1 - first) / a.tap_step + 1, reach / a.stride};
  }
  return {0, 0, 0};
}

// A thread's place in a column of taps: in the gradient of a member, and of the member that is mirrored
// across. `roll` is from what an output meets to what the next one meets, which is also from what a tap meets
// to what the one before meets; `next` from a tap to the next.
template <bool PAIR>
struct DepthwiseGather {
  uint32_t a, b, w;
  int roll, next;
  float rows[kRun];

  __device__ __forceinline__ void read(int slot, int row) {
    rows[slot] = shared_float(a + row * roll);
    if (PAIR) rows[slot] += shared_float(b + row * roll);
  }

  __device__ __forceinline__ void multiply(float (&sums)[kRun], int u) {
    read((kRun - u) % kRun, -u);
    const float weight = shared_float(w + u * next);
#pragma unroll
    for (int i = 0; i < kRun; ++i) sums[i] += rows[(i - u + kRun) % kRun] * weight;
  }

  __device__ __forceinline__ void add(float (&sums)[kRun], int count) {
#pragma unroll
    for (int i = 1; i < kRun; ++i) read(i, i);
    for (; count >= kRun; count -= kRun) {
#pragma unroll
      for (int u = 0; u < kRun; ++u) multiply(sums, u);
      a -= kRun * roll, b -= kRun * roll, w += kRun * next;
    }
#pragma unroll
    for (int u = 0; u < kRun - 1; ++u) {
      if (u >= count) break;
      multiply(sums, u);
    }
  }
};

// The positions of a thread, and the taps that meet them across and along.
struct DepthwisePositions {
  bool active;
  int channel, image;  // of the CTA's
  int across, along;   // of the map
  DepthwiseTaps over, down;
};

template <bool PLAIN>
__device__ __forceinline__ DepthwisePositions positions_of(const DepthwiseDevice& p,
                                                           const DepthwisePlace& at) {
  const DepthwiseAxis &f = p.axis[0], &s = p.axis[1];
  const int strips = s.tile / kRun;
  DepthwisePositions t;
  t.channel = thread() % p.block;
  int rest = thread() / p.block;
  t.across = at.across + rest % f.tile;
  rest /= f.tile;
  const int strip = rest % strips;
  t.image = rest / strips;
  t.along = at.along + (PLAIN ? strip * kRun : strip % s.row_step + strip / s.row_step * kRun * s.row_step);
  t.active = t.channel < at.channels && t.image < at.images && t.across < f.x && t.along < s.x;
  t.over = taps_of(f, t.across);
  t.down = PLAIN ? DepthwiseTaps{0, s.taps, t.along + s.padding} : taps_of(s, t.along);
  return t;
}

// One member, or a pair of members that are mirrored across, whose gradients are in shared memory from
// `planes` on, which has the position `across`, `along` first. A member that is mirrored meets the mirrored
// taps.
template <bool PAIR, bool MIRROR, bool PLAIN>
__device__ __forceinline__ void gather(float (&sums)[kRun], const DepthwiseDevice& p,
                                       const DepthwisePositions& t, int across, int along,
                                       bool mirror_across) {
  const DepthwiseAxis &f = p.axis[0], &s = p.axis[1];
  DepthwiseGather<PAIR> g;
  g.roll = PLAIN ? 4 : s.output_step * 4;
  g.next = (PLAIN ? 4 : s.tap_step * 4) * (MIRROR ? -1 : 1);
  const uint32_t here =
      shared_memory() + t.image * p.window.image + t.channel * p.window.channel + (t.down.at - along) * 4;
  const int top = MIRROR ? s.taps - 1 - t.down.first : t.down.first;
  const uint32_t weights = shared_memory() + p.weights + t.channel * p.weights_channel + top * 4;
  const int twin = (t.across + f.padding - (f.taps - 1 - t.over.first) * f.dilation) / f.stride;
  const int column = mirror_across ? f.taps - 1 - t.over.first : t.over.first;
  const int ahead = t.down.count / kRun * kRun, step = f.output_step * f.step;
  g.a = here + (t.over.at - across) * f.step;
  g.b = here + p.images * p.window.image + (twin - across) * f.step;
  g.w = weights + column * s.taps * 4;
  const int next_column = (mirror_across ? -4 : 4) * f.tap_step * s.taps;
  for (int m = 0; m < t.over.count; ++m) {
    g.add(sums, t.down.count);
    // Whole runs have moved it on along the column.
    g.a += ahead * g.roll - step;
    g.b += ahead * g.roll + step;
    g.w += next_column - ahead * g.next;
  }
}

// The first position of the output that a tile of the input from `position` on needs.
__device__ __forceinline__ int window_origin(const DepthwiseAxis& a, int position) {
  return floor_divide(position + a.padding - a.dilation * (a.taps - 1), a.stride);
}

// Does each tap of the axis that meets a position have a mirrored tap that meets it?
__device__ __forceinline__ bool pairs_meet(const DepthwiseAxis& a) {
  return a.stride == 1 || (a.stride == 2 && a.dilation * (a.taps - 1) % 2 == 0);
}

template <bool PLAIN>
__device__ __forceinline__ void gather_as(float (&sums)[kRun], const DepthwiseDevice& p,
                                          const DepthwisePositions& t, int across, int along, bool pair,
                                          int mirrors) {
  if (pair) {
    if (mirrors & 2)
      gather<true, true, PLAIN>(sums, p, t, across, along, false);
    else
      gather<true, false, PLAIN>(sums, p, t, across, along, false);
  } else {
    if (mirrors & 2)
      gather<false, true, PLAIN>(sums, p, t, across, along, mirrors & 1);
    else
      gather<false, false, PLAIN>(sums, p, t, across, along, mirrors & 1);
  }
}

}  // namespace

// PLAIN: stride and dilation along are 1.
template <class T, bool PLAIN>
__global__ void __launch_bounds__(kDgradThreads, 2)
    depthwise_dgrad(const __grid_constant__ DepthwiseDevice p, const void* gy, const void* w, void* gx) {
  const int blocks_of_channels = channel_blocks(p);
  const DepthwisePlace at = place_of(p, block() / blocks_of_channels, block() % blocks_of_channels);
  const DepthwiseAxis &f = p.axis[0], &s = p.axis[1];
  const int across = window_origin(f, at.across), along = window_origin(s, at.along);
  const int left = p.columns ? along : across, lead = lead_of(p, left);
  const DepthwiseMap map = gradient_map(p, at, gy, p.columns ? across : along, left - lead);
  const int from_across = across - (p.columns ? 0 : lead), from_along = along - (p.columns ? lead : 0);
  const DepthwisePositions t = positions_of<PLAIN>(p, at);
  const bool meet = pairs_meet(f);
  const uint32_t plane = p.images * p.window.image;
  float sums[kRun] = {};
  for (int i = 0; i < p.segments; ++i) {
    const DepthwiseSegment segment = p.segment[i];
    const int members = segment.mask == 3 ? 4 : segment.mask ? 2 : 1;
    const bool pair = (segment.mask & 1) && meet;
    for (int term = 0; term < segment.rows * members; term += pair ? 2 : 1) {
      const int row = term / members, n = term % members;
      const int64_t first = member_channel(segment, row, n) * p.y_channel;
      DepthwiseMap member = map;
      member.at += first;
      barrier();  // all have done with the members from before
      if (pair)
        fill<T, kBoth>(p, p.window, member, shared_memory(),
                       member_channel(segment, row, n + 1) * p.y_channel - first, plane);
      else
        fill<T, kFirst>(p, p.window, member, shared_memory());
      if (n == 0) stage_row<T>(p, at, segment.row + row, w, shared_memory() + p.weights);
      barrier();
      // Member n of four is mirrored along the axes whose bits it has; of two the second along the one that
      // is tied.
      const int mirrors = segment.mask == 3 ? n : n * segment.mask;
      if (t.active && t.down.count) gather_as<PLAIN>(sums, p, t, from_across, from_along, pair, mirrors);
    }
  }
  if (!t.active) return;
  const int64_t to = (at.image + t.image) * p.x_image + (at.channel + t.channel) * p.x_channel +
                     t.across * f.x_stride + t.along * s.x_stride;
  const int apart = PLAIN ? 1 : s.row_step;
#pragma unroll
  for (int i = 0; i < kRun; ++i)
    if (t.along + i * apart < s.x) store_element<T>(gx, to + i * apart * s.x_stride, sums[i]);
}

}  // namespace symconv
