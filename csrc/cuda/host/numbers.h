// Elements of 16 bits, TF32 and float32 on the host: what the instructions of device.h make of them.
#pragma once
#include <bit>
#include <cstdint>

namespace symconv::host {

inline float as_float(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t as_bits(float v) { return std::bit_cast<uint32_t>(v); }

inline float from_bfloat16(uint32_t bits) { return as_float(bits << 16); }
inline uint32_t to_bfloat16(float v) {
  if (v != v) return 0x7fff;
  const uint32_t bits = as_bits(v);
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

inline float from_float16(uint32_t bits) {
  const float magnitude = as_float((bits & 0x7fff) << 13) * 0x1p112f;
  const uint32_t infinite = (bits & 0x7c00) == 0x7c00 ? 0x7f800000 : 0;
  return as_float(as_bits(magnitude) | infinite | (bits & 0x8000) << 16);
}
inline uint32_t to_float16(float v) {
  const uint32_t sign = as_bits(v) >> 16 & 0x8000, magnitude = as_bits(v) & 0x7fffffff;
  if (magnitude > 0x7f800000) return 0x7fff;
  if (magnitude >= 0x477ff000) return sign | 0x7c00;  // from half a step above the greatest on
  if (magnitude < 0x38800000)                         // below 2^-14: steps of 2^-24, which 2^-1 + 2^0 has
    return sign | (as_bits(as_float(magnitude) + 0.5f) - as_bits(0.5f));
  return sign | (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
}

// To nearest, ties away from zero, as cvt.rna does.
inline uint32_t to_tf32(uint32_t bits) {
  if ((bits & 0x7f800000) == 0x7f800000) return bits & 0x7fffff ? 0x7fffe000 : bits;
  return (bits + 0x1000) & 0xffffe000;
}

}  // namespace symconv::host
