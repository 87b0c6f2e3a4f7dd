// From the sums of all splits to the gradient of the weight: fixed order, parities to taps, any strides.
#pragma once
#include "../device.h"
#include "../launch.h"
#include "work.h"

namespace symconv {

// A thread makes all taps of an orbit, for one row and channel. Bit a of a parity is axis 2 - a, as of a
// mask.
template <class T>
__global__ void __launch_bounds__(256)
    wgrad_total(const __grid_constant__ WgradTotal p, const float* sums, void* weight) {
  const int64_t plane = int64_t{p.rows} * p.channels;
  const int taps = p.kernel[0] * p.kernel[1] * p.kernel[2];
  const int64_t slab = p.groups * taps * plane;
  const int64_t i = int64_t{block()} * threads() + thread();
  if (i >= slab) return;
  const int channel = static_cast<int>(i % p.channels), row = static_cast<int>(i / p.channels % p.rows);
  const int tap = static_cast<int>(i / plane % taps), group = static_cast<int>(i / plane / taps);
  const int at[3] = {tap / (p.kernel[1] * p.kernel[2]), tap / p.kernel[2] % p.kernel[1], tap % p.kernel[2]};
  int paired = 0, tap_step[3];
  int64_t step[3], to = p.first + group * p.stride[0] + row * p.stride[1] + channel * p.stride[2];
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    const int axis = 2 - a, mirror = p.kernel[axis] - 1 - at[axis];
    const int row_taps = a == 0 ? 1 : a == 1 ? p.kernel[2] : p.kernel[1] * p.kernel[2];
    if (p.mask >> a & 1 && mirror < at[axis]) return;
    if (p.mask >> a & 1 && mirror > at[axis]) paired |= 1 << a;
    tap_step[a] = (mirror - at[axis]) * row_taps;
    step[a] = (mirror - at[axis]) * p.stride[3 + axis];
    to += at[axis] * p.stride[3 + axis];
  }
  float v[8] = {};
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    if (c & ~paired) continue;
    int64_t from = i;
#pragma unroll
    for (int a = 0; a < 3; ++a)
      if (c >> a & 1) from += tap_step[a] * plane;
#pragma unroll 4
    for (int s = 0; s < p.splits; ++s) v[c] += work_load(sums + from + s * slab);
  }
  float scale = 1.0f;
  for (int a = 0; a < p.order; ++a) scale *= kFold<T>;
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    if (!(paired >> a & 1)) continue;
    scale *= 0.5f * kFold<T>;
#pragma unroll
    for (int c = 0; c < 8; ++c)
      if (!(c >> a & 1)) {
        const float sum = v[c] + v[c | 1 << a];
        v[c | 1 << a] = v[c] - v[c | 1 << a];
        v[c] = sum;
      }
  }
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    if (c & ~paired) continue;
    int64_t place = to;
#pragma unroll
    for (int a = 0; a < 3; ++a)
      if (c >> a & 1) place += step[a];
    store_element<T>(weight, place, scale * v[c]);
  }
}

template <class T>
std::string wgrad_run_total(const WgradTotal& work, int grid, const Queue& queue, const float* sums,
                            void* weight) {
  return launch(wgrad_total<T>, grid, 256, 0, queue, work, sums, weight);
}

}  // namespace symconv
