// Host stand-in of a warp: registers are arrays over 32 lanes, collectives do what the PTX manual says of
// them.
#pragma once
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "halo_group.h"

namespace halo {

inline void fail(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  std::exit(1);
}

template <class E>
struct Lanes {
  E v[32];
  Lanes() { std::memset(v, 0xff, sizeof v); }  // NaN, or an address far outside
  Lanes(E value) {
    for (E& each : v) each = value;
  }
  template <class Op>
  static Lanes map(const Lanes& a, const Lanes& b, Op op) {
    Lanes r;
    for (int i = 0; i < 32; ++i) r.v[i] = op(a.v[i], b.v[i]);
    return r;
  }
};
using LanesU = Lanes<uint32_t>;
using LanesF = Lanes<float>;

#define HALO_OPERATOR(op)                                                                \
  inline LanesU operator op(const LanesU& a, const LanesU& b) {                          \
    return LanesU::map(a, b, [](uint32_t x, uint32_t y) -> uint32_t { return x op y; }); \
  }
HALO_OPERATOR(+)
HALO_OPERATOR(*)
HALO_OPERATOR(^)
HALO_OPERATOR(&)
HALO_OPERATOR(>>)
HALO_OPERATOR(<)
#undef HALO_OPERATOR
inline LanesF operator+(const LanesF& a, const LanesF& b) {
  return LanesF::map(a, b, [](float x, float y) { return x + y; });
}
inline LanesF operator-(const LanesF& a, const LanesF& b) {
  return LanesF::map(a, b, [](float x, float y) { return x - y; });
}

inline float to_float(uint16_t bits) {
  const uint32_t wide = uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

inline uint16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (std::isnan(value)) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

struct Host {
  using U = LanesU;
  using F = LanesF;
  std::vector<uint8_t>* shared;
  std::vector<uint16_t>* out;
  long* loads;

  U lane() const {
    U r;
    for (int i = 0; i < 32; ++i) r.v[i] = i;
    return r;
  }

  // ldmatrix.x4: lanes 8m .. 8m + 7 give the rows of matrix m; lane i receives elements 2 (i % 4) and the
  // next of row i / 4.
  void load(U (&r)[4], const U& address) const {
    ++*loads;
    for (int m = 0; m < 4; ++m) {
      std::set<uint32_t> banks;
      for (int row = 0; row < 8; ++row) {
        const uint32_t a = address.v[m * 8 + row];
        if (a % 16 || a + 16 > shared->size()) fail("ldmatrix: address " + std::to_string(a));
        banks.insert(a / 16 % 8);
        for (int t = 0; t < 4; ++t) std::memcpy(&r[m].v[row * 4 + t], shared->data() + a + t * 4, 4);
      }
      if (banks.size() != 8) fail("ldmatrix: bank conflict");
    }
  }

  template <class Op>
  static U packed(const U& a, const U& b, Op op) {
    return U::map(a, b, [op](uint32_t x, uint32_t y) -> uint32_t {
      const uint32_t low = to_bf16(op(to_float(x & 0xffff), to_float(y & 0xffff)));
      return low | uint32_t{to_bf16(op(to_float(x >> 16), to_float(y >> 16)))} << 16;
    });
  }
  U add(const U& a, const U& b) const {
    return packed(a, b, [](float x, float y) { return x + y; });
  }
  U subtract(const U& a, const U& b) const {
    return packed(a, b, [](float x, float y) { return x - y; });
  }

  // mma.m16n8k16: a[0..3] are (row g, k 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8); b0, b1 (k 2t, 2t + 8;
  // column g); sums (row g, columns 2t, 2t + 1), (g + 8, the same); g = lane / 4, t = lane % 4.
  void multiply(F* d, const U (&a)[4], const U& b0, const U& b1) const {
    float left[16][16], right[16][8];
    for (int i = 0; i < 32; ++i) {
      const int g = i / 4, t = i % 4;
      for (int e = 0; e < 2; ++e) {
        left[g][2 * t + e] = to_float(a[0].v[i] >> (16 * e));
        left[g + 8][2 * t + e] = to_float(a[1].v[i] >> (16 * e));
        left[g][2 * t + 8 + e] = to_float(a[2].v[i] >> (16 * e));
        left[g + 8][2 * t + 8 + e] = to_float(a[3].v[i] >> (16 * e));
        right[2 * t + e][g] = to_float(b0.v[i] >> (16 * e));
        right[2 * t + 8 + e][g] = to_float(b1.v[i] >> (16 * e));
      }
    }
    for (int i = 0; i < 32; ++i)
      for (int e = 0; e < 4; ++e) {
        const int row = i / 4 + e / 2 * 8, column = i % 4 * 2 + e % 2;
        float sum = 0;
        for (int k = 0; k < 16; ++k) sum += left[row][k] * right[k][column];
        d[e].v[i] += sum;
      }
  }

  // wgmma, one warp of it: m16 x orbits x k16, the weights K-major at a descriptor's address, with the
  // swizzle.
  template <class T>
  void product(F* d, const U (&a)[4], uint32_t weights) const {
    for (int j = 0; j < T::kOrbits / 8; ++j) {
      U b[2];
      for (int i = 0; i < 32; ++i)
        for (int half = 0; half < 2; ++half) {
          const uint32_t at = weights + (j * 8 + i / 4) * T::kPixelBytes + half * 16;
          const uint32_t swapped = swizzled<T, uint32_t>(at) + i % 4 * 4;
          if (swapped + 4 > shared->size()) fail("wgmma: address " + std::to_string(swapped));
          std::memcpy(&b[half].v[i], shared->data() + swapped, 4);
        }
      multiply(d + j * 4, a, b[0], b[1]);
    }
  }
  void fence() const {}
  void commit() const {}
  void let_go() const {}
  template <int N>
  void wait() const {}

  template <int N>
  void bias(F (&added)[N], const float* values, int first, const U& orbit, const U& inside) const {
    for (int n = 0; n < N; ++n)
      for (int i = 0; i < 32; ++i) added[n].v[i] = values && inside.v[i] ? values[first + orbit.v[i] + n] : 0;
  }

  U pack(const F& low, const F& high) const {
    U r;
    for (int i = 0; i < 32; ++i) r.v[i] = to_bf16(low.v[i]) | uint32_t{to_bf16(high.v[i])} << 16;
    return r;
  }

  // Elements from the start of the output.
  Lanes<int64_t> place(const U& column, int channels, const U& orbit, int64_t row) const {
    Lanes<int64_t> r;
    for (int i = 0; i < 32; ++i) r.v[i] = row + int64_t(column.v[i]) * channels + orbit.v[i];
    return r;
  }

  template <int N>
  void store(const U (&packed)[N], void*, const Lanes<int64_t>& place, int more, const U& inside) const {
    for (int i = 0; i < 32; ++i) {
      if (!inside.v[i]) continue;
      const int64_t at = place.v[i] + more;
      if (at % (2 * N) || at < 0 || at + 2 * N > int64_t(out->size()))
        fail("store: element " + std::to_string(at));
      for (int n = 0; n < N; ++n) {
        if ((*out)[at + 2 * n] != 0xffff) fail("store: written twice");
        (*out)[at + 2 * n] = packed[n].v[i] & 0xffff;
        (*out)[at + 2 * n + 1] = packed[n].v[i] >> 16;
      }
    }
  }
};

}  // namespace halo
