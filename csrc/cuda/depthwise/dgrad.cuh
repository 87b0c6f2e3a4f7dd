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

// Weights of one row of all channels of the CTA as they are: [tap across][tap along][channel], float32.
template <class T>
__device__ __forceinline__ void stage_row(const DepthwiseDevice& p, const DepthwisePlace& at, int folded,
                                          int row, const void* w, uint32_t to) {
  const int across = p.axis[folded].taps, along = p.axis[folded ^ 1].taps;
  const int64_t base = at.channel * p.w_group + row * p.w_row;
  for (int i = thread(); i < across * along * at.channels; i += threads()) {
    const int j = i % across, k = i / across % along, c = i / (across * along);
    const int64_t from = base + c * p.w_group + j * p.w_tap[folded] + k * p.w_tap[folded ^ 1];
    shared_put(to + (j * along + k) * weight_bytes(p) + 4 * c, load_element<T>(w, from));
  }
}

// The taps of an axis that meet a position of the input: `first` and each between_taps further, `count` of
// them. The first meets position `at` of the output, the others one output_step less each.
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

// What one column of taps adds to the sums: `a` is where its first tap meets the output's gradient (and `b`,
// of the mirrored member), `roll` from there to what the next output meets.
template <bool PAIR>
__device__ __forceinline__ void gather_column(float (&sums)[kRun], uint32_t a, uint32_t b, int roll,
                                              uint32_t w, int step, int count) {
  float value[kRun];
  const auto read = [&](int slot, int offset) {
    value[slot] = shared_float(a + offset);
    if (PAIR) value[slot] += shared_float(b + offset);
  };
#pragma unroll
  for (int i = 1; i < kRun; ++i) read(i, i * roll);
  int offset = 0;
  for (int first = 0; first < count; first += kRun) {
#pragma unroll
    for (int u = 0; u < kRun; ++u) {
      if (first + u >= count) break;
      read((kRun - u) % kRun, offset);
      offset -= roll;
      const float weight = shared_float(w);
      w += step;
#pragma unroll
      for (int i = 0; i < kRun; ++i) sums[i] += value[(i - u + kRun) % kRun] * weight;
    }
  }
}

// The positions of a thread, and the taps that meet them across and along the folded axis.
struct DepthwisePositions {
  bool active;
  int channel, image;  // of the CTA's
  int across, along;   // of the map
  DepthwiseTaps over, down;
};

__device__ __forceinline__ DepthwisePositions positions_of(const DepthwiseDevice& p, const DepthwisePlace& at,
                                                           int folded) {
  const DepthwiseAxis &f = p.axis[folded], &s = p.axis[folded ^ 1];
  const int strips = s.tile / kRun;
  DepthwisePositions t;
  t.channel = thread() % p.block;
  int rest = thread() / p.block;
  t.across = (folded ? at.origin[1] : at.origin[0]) + rest % f.tile;
  rest /= f.tile;
  const int strip = rest % strips;
  t.image = rest / strips;
  t.along =
      (folded ? at.origin[0] : at.origin[1]) + strip % s.row_step + strip / s.row_step * kRun * s.row_step;
  t.active = t.channel < at.channels && t.image < at.images && t.across < f.x && t.along < s.x;
  t.over = taps_of(f, t.across);
  t.down = taps_of(s, t.along);
  return t;
}

// One member, or a pair of members that are mirrored along the folded axis, whose gradients are in shared
// memory. Mirrored taps are those of a member that is mirrored along that axis, in a pair of both.
template <bool PAIR>
__device__ __forceinline__ void gather(float (&sums)[kRun], const DepthwiseDevice& p, int folded,
                                       const DepthwisePositions& t, int origin_f, int origin_s,
                                       uint32_t planes, bool mirror_across, bool mirror_along) {
  const DepthwiseAxis &f = p.axis[folded], &s = p.axis[folded ^ 1];
  const int wb = weight_bytes(p), roll = s.output_step * s.step;
  const uint32_t here = planes + t.image * p.window_image + 4 * t.channel + (t.down.at - origin_s) * s.step;
  const uint32_t weights = shared_memory() + p.weights + 4 * t.channel;
  const int top = mirror_along ? s.taps - 1 - t.down.first : t.down.first;
  const int step = (mirror_along ? -wb : wb) * s.tap_step;
  const int twin = (t.across + f.padding - (f.taps - 1 - t.over.first) * f.dilation) / f.stride;
  for (int m = 0; m < t.over.count; ++m) {
    const int tap = t.over.first + m * f.tap_step;
    const int column = mirror_across ? f.taps - 1 - tap : tap;
    const uint32_t a = here + (t.over.at - m * f.output_step - origin_f) * f.step;
    const uint32_t b = here + p.images * p.window_image + (twin + m * f.output_step - origin_f) * f.step;
    gather_column<PAIR>(sums, a, b, roll, weights + (column * s.taps + top) * wb, step, t.down.count);
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

}  // namespace

template <class T>
__global__ void __launch_bounds__(kDgradThreads, 2)
    depthwise_dgrad(const __grid_constant__ DepthwiseDevice p, const void* gy, const void* w, void* gx) {
  const int blocks_of_channels = channel_blocks(p);
  const DepthwisePlace at = place_of(p, block() / blocks_of_channels, block() % blocks_of_channels);
  const DepthwiseAxis &width = p.axis[0], &height = p.axis[1];
  const int top = window_origin(height, at.origin[1]);
  const int start = window_origin(width, at.origin[0]), left = start - lead_of(p, start);
  const int64_t first = at.image * p.y.n + static_cast<int64_t>(at.channel) * p.filters * p.y.c;
  DepthwisePixels stride = p.y;
  stride.c *= p.filters;
  const int folded = p.swap;
  const DepthwiseAxis& s = p.axis[folded ^ 1];
  const DepthwisePositions t = positions_of(p, at, folded);
  const bool meet = pairs_meet(p.axis[folded]);
  const uint32_t plane = p.images * p.window_image;
  float sums[kRun] = {};
  for (int i = 0; i < p.segments; ++i) {
    const DepthwiseSegment segment = p.segment[i];
    const int tied_across = segment.mask >> folded & 1, members = segment.mask == 3 ? 4
                                                                  : segment.mask    ? 2
                                                                                    : 1;
    const bool pair = tied_across && meet;
    for (int term = 0; term < segment.rows * members; term += pair ? 2 : 1) {
      const int row = term / members, n = term % members;
      barrier();  // all have done with the members from before
      for (int k = 0; k < (pair ? 2 : 1); ++k) {
        // Two members that are mirrored along the folded axis are neighbours, but not if the height of hv is
        // folded.
        const int channel =
            member_channel(segment, row, folded && members == 4 && pair ? n / 2 + 2 * k : n + k);
        const DepthwiseMap map{
            gy, first + channel * p.y.c, stride, height.y, width.y, at.channels, at.images, top, left};
        fill<T, false>(p.window, map, p, shared_memory() + k * plane, height.step, width.step, 0, 0);
      }
      if (n == 0) stage_row<T>(p, at, folded, segment.row + row, w, shared_memory() + p.weights);
      barrier();
      // Mirrors of member n: the width is the first axis of the order, the height the last.
      const int mirrors = segment.mask == 3 ? (pair && folded ? n / 2 : n) : n ? segment.mask : 0;
      const bool across = !pair && (mirrors >> folded & 1), along = mirrors >> (folded ^ 1) & 1;
      if (!t.active) continue;
      if (pair)
        gather<true>(sums, p, folded, t, folded ? top : left, folded ? left : top, shared_memory(), false,
                     along);
      else
        gather<false>(sums, p, folded, t, folded ? top : left, folded ? left : top, shared_memory(), across,
                      along);
    }
  }
  if (!t.active) return;
  const int64_t to = (at.image + t.image) * p.x.n + (at.channel + t.channel) * p.x.c +
                     t.across * (folded ? p.x.y : p.x.x) + t.along * (folded ? p.x.x : p.x.y);
  const int64_t apart = (folded ? p.x.x : p.x.y) * s.row_step;
#pragma unroll
  for (int i = 0; i < kRun; ++i)
    if (t.along + i * s.row_step < s.x) store_element<T>(gx, to + i * apart, sums[i]);
}

}  // namespace symconv
