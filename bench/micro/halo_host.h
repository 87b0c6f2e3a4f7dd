// Host stand-in of a warp: registers are arrays over 32 lanes, collectives do what the PTX manual says of
// them.
#pragma once
#include <cmath>
#include <cstring>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "halo_group.h"

namespace halo {

// What a GPU would do silently, or trap on.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};
[[noreturn]] inline void fail(const std::string& what) { throw Fault(what); }

// Row and column of an element of a fragment.
struct Place {
  int row, column;
};

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

// A pair of bfloat16.
template <class Op>
uint32_t packed_bf16(uint32_t a, uint32_t b, Op op) {
  const uint32_t low = to_bf16(op(to_float(a & 0xffff), to_float(b & 0xffff)));
  return low | uint32_t{to_bf16(op(to_float(a >> 16), to_float(b >> 16)))} << 16;
}

// What a lane stores at once: `words` pairs at an element of the output, once.
inline void store_at(std::vector<uint16_t>& out, int64_t at, const uint32_t* packed, int words) {
  if (at % (2 * words) || at < 0 || at + 2 * words > int64_t(out.size()))
    fail("store: element " + std::to_string(at));
  for (int n = 0; n < words; ++n) {
    if (out[at + 2 * n] != 0xffff) fail("store: written twice");
    out[at + 2 * n] = packed[n] & 0xffff;
    out[at + 2 * n + 1] = packed[n] >> 16;
  }
}

// The swizzle of the copy engine and of wgmma's descriptors over 64 or 128 bytes.
inline uint32_t engine_swizzle(uint32_t address, int span) {
  return span == 64 ? address ^ (address >> 3 & 0x30) : address ^ (address >> 3 & 0x70);
}

// Told of every byte of shared memory that an instruction reads.
struct Watch {
  virtual ~Watch() = default;
  virtual void touch(uint32_t address) = 0;
};

struct Host {
  using U = LanesU;
  using F = LanesF;
  std::vector<uint8_t>* shared;
  std::vector<uint16_t>* out;
  Watch* watch = nullptr;

  U lane() const {
    U r;
    for (int i = 0; i < 32; ++i) r.v[i] = i;
    return r;
  }

  // Fragments, as the PTX manual defines them: what a lane's register holds, by 16-bit half. Of an 8 x 8
  // matrix that ldmatrix loads, as it is or transposed:
  static Place matrix_place(int lane, int half, bool transposed) {
    const int row = lane / 4, column = lane % 4 * 2 + half;
    return transposed ? Place{column, row} : Place{row, column};
  }
  // Of mma.m16n8k16, and of a warp's part of wgmma: A (row, k), B (k, column) and the sums (row, column).
  static Place a_place(int lane, int e, int half) {
    return {lane / 4 + e % 2 * 8, lane % 4 * 2 + half + e / 2 * 8};
  }
  static Place b_place(int lane, int e, int half) { return {lane % 4 * 2 + half + e * 8, lane / 4}; }
  static Place sum_place(int lane, int e) { return {lane / 4 + e / 2 * 8, lane % 4 * 2 + e % 2}; }

  uint16_t shared_half(uint32_t address) const {
    uint16_t value;
    if (watch) watch->touch(address);
    std::memcpy(&value, shared->data() + address, 2);
    return value;
  }

  // ldmatrix.x4: lanes 8m .. 8m + 7 give the addresses of the rows of matrix m, which goes to register m.
  void load(U (&r)[4], const U& address, bool transposed = false) const {
    for (int m = 0; m < 4; ++m) {
      std::set<uint32_t> banks;
      for (int row = 0; row < 8; ++row) {
        const uint32_t a = address.v[m * 8 + row];
        if (a % 16 || a + 16 > shared->size() || a + 16 < a) fail("ldmatrix: address " + std::to_string(a));
        banks.insert(a / 16 % 8);
      }
      if (banks.size() != 8) fail("ldmatrix: bank conflict");
      for (int i = 0; i < 32; ++i) {
        r[m].v[i] = 0;
        for (int half = 0; half < 2; ++half) {
          const Place at = matrix_place(i, half, transposed);
          r[m].v[i] |= uint32_t{shared_half(address.v[m * 8 + at.row] + at.column * 2)} << (16 * half);
        }
      }
    }
  }

  template <class Op>
  static U packed(const U& a, const U& b, Op op) {
    return U::map(a, b, [op](uint32_t x, uint32_t y) { return packed_bf16(x, y, op); });
  }
  U add(const U& a, const U& b) const {
    return packed(a, b, [](float x, float y) { return x + y; });
  }
  U subtract(const U& a, const U& b) const {
    return packed(a, b, [](float x, float y) { return x - y; });
  }

  // mma.m16n8k16.
  void multiply(F* d, const U (&a)[4], const U& b0, const U& b1) const {
    float left[16][16], right[16][8];
    for (int i = 0; i < 32; ++i)
      for (int half = 0; half < 2; ++half) {
        for (int e = 0; e < 4; ++e) {
          const Place at = a_place(i, e, half);
          left[at.row][at.column] = to_float(a[e].v[i] >> (16 * half));
        }
        for (int e = 0; e < 2; ++e) {
          const Place at = b_place(i, e, half);
          right[at.row][at.column] = to_float((e ? b1 : b0).v[i] >> (16 * half));
        }
      }
    for (int i = 0; i < 32; ++i)
      for (int e = 0; e < 4; ++e) {
        const Place at = sum_place(i, e);
        float sum = 0;
        for (int k = 0; k < 16; ++k) sum += left[at.row][k] * right[k][at.column];
        d[e].v[i] += sum;
      }
  }

  // wgmma, one warp of it: m16 x orbits x k16, the weights K-major at a descriptor's address, with the
  // swizzle.
  template <class T>
  void product(F* d, const U (&a)[4], uint32_t weights) const {
    for (int j = 0; j < T::kOrbits / 8; ++j) {
      U b[2] = {0, 0};
      for (int i = 0; i < 32; ++i)
        for (int e = 0; e < 2; ++e)
          for (int half = 0; half < 2; ++half) {
            const Place at = b_place(i, e, half);
            const uint32_t from =
                engine_swizzle(weights + (j * 8 + at.column) * T::kPixelBytes + at.row * 2, T::kPixelBytes);
            if (from + 2 > shared->size() || from + 2 < from) fail("wgmma: address " + std::to_string(from));
            b[e].v[i] |= uint32_t{shared_half(from)} << (16 * half);
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
      uint32_t words[N];
      for (int n = 0; n < N; ++n) words[n] = packed[n].v[i];
      if (inside.v[i]) store_at(*out, place.v[i] + more, words, N);
    }
  }
};

}  // namespace halo
