// From the sums of all splits to the gradient of the weight: fixed order, parities to taps, any strides.
#pragma once
#include "../device.h"
#include "../launch.h"
#include "work.h"

namespace symconv {

// Part k of an element's `parts` threads adds the splits k, k + parts, ...; the first adds the parts, in
// order.
__device__ __forceinline__ void add_parts(const WgradTotal& p, float (&v)[8], int element, int part) {
  if (p.parts == 1) return;
  const int width = threads() / p.parts;
  const uint32_t at = shared_memory() + 4 * element;
#pragma unroll
  for (int c = 0; c < 8; ++c) shared_store(at + 4 * (8 * part + c) * width, __float_as_uint(v[c]));
  barrier();
  if (part) return;
  for (int k = 1; k < p.parts; ++k)
#pragma unroll
    for (int c = 0; c < 8; ++c) v[c] += __uint_as_float(shared_load(at + 4 * (8 * k + c) * width));
}

// Parities of an orbit, which is paired along some axes, to its taps; a parity's bit a is axis 2 - a, as of a
// mask.
__device__ __forceinline__ void to_taps(float (&v)[8], int paired) {
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    if (!(paired >> a & 1)) continue;
#pragma unroll
    for (int c = 0; c < 8; ++c)
      if (!(c >> a & 1)) {
        const float sum = v[c] + v[c | 1 << a];
        v[c | 1 << a] = v[c] - v[c | 1 << a];
        v[c] = sum;
      }
  }
}

// Where an orbit lies, by its first tap: the axes along which it is paired, and what its mirrored taps are
// away.
struct WgradOrbitPlace {
  bool first;
  int paired, tap_step[3];  // in taps
  int64_t step[3];          // in elements of the weight
};

__device__ __forceinline__ WgradOrbitPlace orbit_place(const WgradTotal& p, const int (&at)[3]) {
  WgradOrbitPlace o = {true, 0, {}, {}};
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    const int axis = 2 - a, distance = p.kernel[axis] - 1 - 2 * at[axis];
    const int row_taps = a == 0 ? 1 : a == 1 ? p.kernel[2] : p.kernel[1] * p.kernel[2];
    const bool tied = p.mask >> a & 1;
    o.first &= !tied || distance >= 0;
    if (tied && distance > 0) o.paired |= 1 << a;
    o.tap_step[a] = distance * row_taps;
    o.step[a] = distance * p.stride[3 + axis];
  }
  return o;
}

// All taps of an orbit, for one row and channel, by `parts` threads.
template <class T>
__global__ void __launch_bounds__(256)
    wgrad_total(const __grid_constant__ WgradTotal p, const float* sums, void* weight) {
  const int width = threads() / p.parts, element = thread() % width, part = thread() / width;
  const int64_t plane = int64_t{p.rows} * p.channels;
  const int taps = p.kernel[0] * p.kernel[1] * p.kernel[2];
  const int64_t slab = p.groups * taps * plane;
  const int64_t i = int64_t{block()} * width + element;
  const int channel = static_cast<int>(i % p.channels), row = static_cast<int>(i / p.channels % p.rows);
  const int tap = static_cast<int>(i / plane % taps), group = static_cast<int>(i / plane / taps);
  const int at[3] = {tap / (p.kernel[1] * p.kernel[2]), tap / p.kernel[2] % p.kernel[1], tap % p.kernel[2]};
  const WgradOrbitPlace o = orbit_place(p, at);
  const bool works = i < slab && o.first;
  float v[8] = {};
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    if (!works || c & ~o.paired) continue;
    int64_t from = i;
#pragma unroll
    for (int a = 0; a < 3; ++a)
      if (c >> a & 1) from += o.tap_step[a] * plane;
#pragma unroll 4
    for (int s = part; s < p.splits; s += p.parts) v[c] += work_load(sums + from + s * slab);
  }
  add_parts(p, v, element, part);
  if (!works || part) return;
  to_taps(v, o.paired);
  const int64_t to = p.first + group * p.stride[0] + row * p.stride[1] + channel * p.stride[2] +
                     at[0] * p.stride[3] + at[1] * p.stride[4] + at[2] * p.stride[5];
  float scale =
      1.0f;  // a mean over the paired axes; sums of float16 were halved for each tied and each paired one
#pragma unroll
  for (int a = 0; a < 3; ++a)
    scale *= (p.mask >> a & 1 ? kFold<T> : 1.0f) * (o.paired >> a & 1 ? 0.5f * kFold<T> : 1.0f);
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    if (c & ~o.paired) continue;
    int64_t place = to;
#pragma unroll
    for (int a = 0; a < 3; ++a)
      if (c >> a & 1) place += o.step[a];
    store_element<T>(weight, place, scale * v[c]);
  }
}

template <class T>
std::string wgrad_run_total(const WgradTotal& work, int grid, const Queue& queue, const float* sums,
                            void* weight) {
  return launch(wgrad_total<T>, grid, 256, work.parts > 1 ? 8 << 10 : 0, queue, work, sums, weight);
}

}  // namespace symconv
