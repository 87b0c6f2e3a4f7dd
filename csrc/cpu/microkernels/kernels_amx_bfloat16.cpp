// The matrix kernel of bfloat16 in AMX tiles, on x86-64 with AMX-BF16 and AVX512_BF16: called only where the
// CPU has them and the system lets the process use them. All other loops are those of AVX512_BF16.
//
// A tile has up to 16 rows of 64 bytes. tdpbf16ps adds the product of 16 rows of 16 words (of A) and 16 words
// of 16 columns (of B) to 16 x 16 sums: words of panels and of packed weights lie as it wants them. It sums
// the products of the words' first halves and those of the second ones apart, in float32, and adds both to
// what there is: chains of 16, so that long contractions need not be cut. It flushes denormals to zero, of
// the operands and of the sums.
#include "microkernels/kernels.h"
#include "microkernels/tiles.h"

#if defined(__x86_64__)

#include <immintrin.h>  // functions that are always inlined: none is left for the linker to choose

namespace symconv {

namespace avx512_bf16 {
const Kernels<Pair>& table(Pair);
}  // namespace avx512_bf16

namespace {

// Of the thread: scopes that live, and rows of the tiles that are configured, 0 where none are.
thread_local int scopes, configured;

void release_tiles() {
  if (configured) asm volatile("tilerelease");
  configured = 0;
}

}  // namespace

TileScope::TileScope() { ++scopes; }
TileScope::~TileScope() {
  if (--scopes == 0) release_tiles();
}

}  // namespace symconv

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")
#endif

namespace symconv::amx_bf16 {
namespace {

#define SYMCONV_INLINE __attribute__((always_inline)) inline

constexpr int kSide = 16;  // rows of a tile at most, and words of a row
constexpr int64_t kRowBytes = kSide * sizeof(Pair);
// Registers: four of sums, then two for A and two for B.
constexpr int kSums = 4, kA = 4, kB = 6, kRegisters = 8;
constexpr int kMaxRows[kMaxVectors + 1] = {0, 4 * kSide, 2 * kSide, kSide};

template <int kTile>
SYMCONV_INLINE void load_tile(const void* from, int64_t bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(bytes), "i"(kTile) : "memory");
}
template <int kTile>
SYMCONV_INLINE void store_tile(void* to, int64_t bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(bytes), "i"(kTile) : "memory");
}
template <int kTile>
SYMCONV_INLINE void clear_tile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
}
template <int kSum, int kLeft, int kRight>
SYMCONV_INLINE void multiply_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kLeft), "i"(kRight));
}

// What ldtilecfg reads.
struct alignas(64) TileShapes {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileShapes) == 64);

// Tiles of `rows` rows, but for B's.
void configure(int rows) {
  if (configured == rows) return;
  TileShapes tiles{};
  tiles.palette = 1;
  for (int i = 0; i < kRegisters; ++i) {
    tiles.row_bytes[i] = kRowBytes;
    tiles.rows[i] = static_cast<uint8_t>(i < kB ? rows : kSide);
  }
  asm volatile("ldtilecfg %0" : : "m"(tiles));
  configured = rows;
}

SYMCONV_INLINE __mmask16 first(int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }

// Words as they lie in memory; the second half of a word may be one that is not there.
constexpr int kWhole = -1, kFirstHalf = 0xffff;
SYMCONV_INLINE __m512i load_words(const Pair* from, int64_t count, int part) {
  return _mm512_and_si512(_mm512_maskz_loadu_epi32(first(count), from), _mm512_set1_epi32(part));
}

// to[row][k] = from[k * step + row]; reads `count` times `rows` words, and writes so many of 16 rows.
SYMCONV_INLINE void transpose(const Pair* from, int64_t step, int64_t count, int rows, int part,
                              Pair (*to)[kSide]) {
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  __m512i v[kSide], next[kSide];
#pragma GCC unroll 16
  for (int k = 0; k < kSide; ++k)
    v[k] = k < count ? load_words(from + k * step, rows, part) : _mm512_setzero_si512();
#pragma GCC unroll 4
  for (int stage = 1; stage < kSide; stage *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < kSide / 2; ++i) {
      next[2 * i] = _mm512_permutex2var_epi32(v[i], low, v[i + kSide / 2]);
      next[2 * i + 1] = _mm512_permutex2var_epi32(v[i], high, v[i + kSide / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kSide; ++i) v[i] = next[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < kSide; ++i) _mm512_mask_storeu_epi32(to[i], first(count), v[i]);
}

// R x N tiles of sums. Rows of C are shared out evenly: all tiles of A and C have as many, and neighbours
// overlap where these do not divide. What they share is computed twice, from sums that were all loaded
// before.
template <int R, int N>
class Product {
 public:
  Product(int rows, const GemmArgs<Pair>& g) : g_(g), height_((rows + R - 1) / R) {
    for (int r = 0; r < R; ++r) row_[r] = r * height_ < rows - height_ ? r * height_ : rows - height_;
  }

  void operator()() {
    configure(height_);
    start<0>();
    const int64_t a_step = g_.a_step, ldb = g_.ldb;
    for (int64_t s = 0; s < g_.segments; ++s) {
      const Pair *a = g_.a + g_.a_offset[s], *b = g_.b + g_.b_offset[s];
      int64_t left = g_.k[s];
      for (; left >= kSide; left -= kSide, a += kSide * a_step, b += kSide * ldb) multiply(a, b);
      if (left) keep(a, b, left, kWhole);
    }
    if (g_.half) {
      const int64_t s = g_.segments - 1, k = g_.k[s];
      keep(g_.a + g_.a_offset[s] + k * a_step, g_.b + g_.b_offset[s] + k * ldb, 1, kFirstHalf);
    }
    if (kept_) multiply_kept();
    finish<0>();
  }

 private:
  // Sums: as they are in C, or zeros.
  template <int I>
  SYMCONV_INLINE void start() const {
    if constexpr (I < R * N) {
      g_.add ? load_tile<I>(sums<I>(), sums_bytes()) : clear_tile<I>();
      start<I + 1>();
    }
  }
  template <int I>
  SYMCONV_INLINE void finish() const {
    if constexpr (I < R * N) {
      store_tile<I>(sums<I>(), sums_bytes());
      finish<I + 1>();
    }
  }
  template <int I>
  SYMCONV_INLINE float* sums() const {
    return g_.c + row_[I / N] * g_.ldc + I % N * kSide;
  }
  int64_t sums_bytes() const { return g_.ldc * static_cast<int64_t>(sizeof(float)); }

  // One step of all tiles: every part of A and of B is loaded once.
  template <int I = 0>
  SYMCONV_INLINE void step(const Pair* const (&a)[R], int64_t a_bytes, const Pair* b, int64_t b_bytes) const {
    static_assert(R == 1 || N <= 2);
    if constexpr (I < R * N) {
      constexpr int r = I / N, n = r % 2 ? N - 1 - I % N : I % N, left = kA + r % 2, right = kB + n % 2;
      if constexpr (r == 0) load_tile<right>(b + n * kSide, b_bytes);
      if constexpr (I % N == 0) load_tile<left>(a[r], a_bytes);
      multiply_tiles<r * N + n, left, right>();
      step<I + 1>(a, a_bytes, b, b_bytes);
    }
  }

  // 16 words of a segment.
  SYMCONV_INLINE void multiply(const Pair* a, const Pair* b) {
    const Pair* tile[R];
    int64_t bytes = kRowBytes;
    if (g_.a_step == 1) {
      bytes = g_.lda * static_cast<int64_t>(sizeof(Pair));
      for (int r = 0; r < R; ++r) tile[r] = a + row_[r] * g_.lda;
    } else {
      for (int r = 0; r < R; ++r) {
        transpose(a + row_[r], g_.a_step, kSide, height_, kWhole, turned_ + r * kSide);
        tile[r] = turned_[r * kSide];
      }
    }
    step(tile, bytes, b, g_.ldb * static_cast<int64_t>(sizeof(Pair)));
  }

  // Words that do not fill a step are kept, those of one segment after the other.
  void keep(const Pair* a, const Pair* b, int64_t count, int part) {
    while (count) {
      const int64_t room = kSide - kept_, now = count < room ? count : room;
      keep_left(a, now, part);
      for (int64_t k = 0; k < now; ++k)
        for (int n = 0; n < N; ++n)
          _mm512_storeu_si512(right_[kept_ + k] + n * kSide,
                              load_words(b + k * g_.ldb + n * kSide, kSide, part));
      a += now * g_.a_step, b += now * g_.ldb, count -= now;
      kept_ += now;
      if (kept_ == kSide) multiply_kept();
    }
  }

  void keep_left(const Pair* a, int64_t count, int part) {
    for (int r = 0; r < R; ++r) {
      Pair(*const to)[kSide] = left_ + r * kSide;
      if (g_.a_step == 1) {
        for (int i = 0; i < height_; ++i)
          _mm512_mask_storeu_epi32(to[i] + kept_, first(count),
                                   load_words(a + (row_[r] + i) * g_.lda, count, part));
      } else {
        transpose(a + row_[r], g_.a_step, count, height_, part, turned_);
        for (int i = 0; i < height_; ++i)
          _mm512_mask_storeu_epi32(to[i] + kept_, first(count), load_words(turned_[i], count, kWhole));
      }
    }
  }

  void multiply_kept() {
    const Pair* tile[R];
    for (int r = 0; r < R; ++r) {
      tile[r] = left_[r * kSide];
      for (int i = 0; i < height_ && kept_ < kSide; ++i)
        _mm512_mask_storeu_epi32(left_[r * kSide + i], static_cast<__mmask16>(~first(kept_)),
                                 _mm512_setzero_si512());
    }
    for (int64_t k = kept_; k < kSide; ++k)
      for (int n = 0; n < N; ++n) _mm512_storeu_si512(right_[k] + n * kSide, _mm512_setzero_si512());
    step(tile, kRowBytes, right_[0], N * kRowBytes);
    kept_ = 0;
  }

  const GemmArgs<Pair>& g_;
  int height_;
  int64_t row_[R];
  int64_t kept_ = 0;
  alignas(64) Pair left_[R * kSide][kSide];
  alignas(64) Pair turned_[R * kSide][kSide];
  alignas(64) Pair right_[kSide][N * kSide];
};

template <int N, int R>
void gemm_rows(int rows, const GemmArgs<Pair>& g) {
  static_assert(R * N <= kSums);
  if constexpr (R > 1)
    if (rows <= (R - 1) * kSide) return gemm_rows<N, R - 1>(rows, g);
  Product<R, N>(rows, g)();
}

void gemm(int rows, int vectors, const GemmArgs<Pair>& g) {
  if (vectors == 1)
    gemm_rows<1, kMaxRows[1] / kSide>(rows, g);
  else if (vectors == 2)
    gemm_rows<2, kMaxRows[2] / kSide>(rows, g);
  else
    gemm_rows<3, kMaxRows[3] / kSide>(rows, g);
  if (!scopes) release_tiles();
}

}  // namespace

const Kernels<Pair>& table(Pair) {
  static const Kernels<Pair> made = [] {
    Kernels<Pair> some = avx512_bf16::table(Pair{});
    for (int n = 1; n <= kMaxVectors; ++n) some.max_rows[n] = kMaxRows[n];
    some.gemm = gemm;
    return some;
  }();
  return made;
}

}  // namespace symconv::amx_bf16

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else

namespace symconv {
TileScope::TileScope() {}
TileScope::~TileScope() {}
}  // namespace symconv

#endif
