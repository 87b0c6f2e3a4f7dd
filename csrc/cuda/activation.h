// The activations that a convolution applies to its sums before the one rounding, numbered as in Python.
#pragma once
#include "device.h"

namespace symconv {

enum Activation { kNone = 0, kRelu = 1, kSilu = 2, kGelu = 3 };

namespace {

// Of N values at once: the test is the same for a whole launch. NaN stays NaN.
template <int N>
__device__ __forceinline__ void activate(float (&v)[N], int activation) {
  if (activation == kRelu) {
#pragma unroll
    for (int n = 0; n < N; ++n) v[n] = v[n] < 0.0f ? 0.0f : v[n];
  } else if (activation == kSilu) {
#pragma unroll
    for (int n = 0; n < N; ++n) v[n] = divide(v[n], 1.0f + exponential(-v[n]));
  } else if (activation == kGelu) {
#pragma unroll
    for (int n = 0; n < N; ++n) v[n] = 0.5f * v[n] * (1.0f + error_function(v[n] * 0.70710678f));
  }
}

}  // namespace
}  // namespace symconv
