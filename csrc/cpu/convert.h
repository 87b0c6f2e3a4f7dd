// Single elements to and from the type that sums have, outside of the inner loops.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include "dtypes.h"

namespace symconv {

inline float widened(float v) { return v; }
inline double widened(double v) { return v; }
inline float widened(Half v) { return c10::Half(v.bits, c10::Half::from_bits()); }
inline float widened(BFloat16 v) { return c10::BFloat16(v.bits, c10::BFloat16::from_bits()); }

// One rounding, to nearest.
inline void assign(float& out, float v) { out = v; }
inline void assign(double& out, double v) { out = v; }
inline void assign(Half& out, float v) { out.bits = c10::Half(v).x; }
inline void assign(BFloat16& out, float v) { out.bits = c10::BFloat16(v).x; }

}  // namespace symconv
