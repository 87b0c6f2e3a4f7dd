// The matrix kernel that folds one tied axis on its way: lanes are positions, a shifted line and its mirror
// image are added and subtracted in registers. Included by kernels_impl.h, inside its namespace.

template <class W, int R, int N>
struct MirrorSums {
  V<Sum<W>> even[R][N], odd[R][N];
};

// `count` rows of one segment, from its row `k`.
template <class W, int R, int N, bool kMirrored>
SYMCONV_INLINE void mirror_rows(const MirrorArgs<W>& g, int64_t s, int64_t k, int64_t count,
                                MirrorSums<W, R, N>& sums) {
  constexpr int L = Vec<W>::lanes;
  const W* even = g.even + (g.even_row[s] + k) * g.a_step;
  const W* odd = kMirrored ? g.odd + (g.odd_row[s] + k) * g.a_step : nullptr;
  const W* b = g.b + g.b_offset[s] + k * g.ldb;
  const int64_t to_mirror = kMirrored ? g.mirror_offset[s] - g.b_offset[s] : 0;
  for (int64_t i = 0; i < count; ++i) {
    V<W> sum[N], difference[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      sum[n] = load(b + n * L);
      if constexpr (kMirrored) {
        const V<W> mirror = load(b + to_mirror + n * L);
        difference[n] = sum[n] - mirror;
        sum[n] += mirror;
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const W x = even[r];
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sums.even[r][n] += x * sum[n];
    }
    if constexpr (kMirrored) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const W x = odd[r];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) sums.odd[r][n] += x * difference[n];
      }
      odd += g.a_step;
    }
    even += g.a_step;
    b += g.ldb;
  }
}

template <class W, int R, int N>
void mirror_tile(const MirrorArgs<W>& g) {
  bool add = g.add;
  int64_t s = 0, k = 0;  // segment, and the place in it
  do {
    MirrorSums<W, R, N> sums;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sums.even[r][n] = sums.odd[r][n] = V<W>{};
    for (int64_t left = kChain; s < g.segments && left > 0;) {
      const int64_t rest = g.k[s] - k, count = rest < left ? rest : left;
      if (g.mirror_offset[s] == kNoMirror)
        mirror_rows<W, R, N, false>(g, s, k, count, sums);
      else
        mirror_rows<W, R, N, true>(g, s, k, count, sums);
      left -= count, k += count;
      if (k == g.k[s]) ++s, k = 0;
    }
    store_tile<Sum<W>>(sums.even, g.e, g.ldc, add);
    store_tile<Sum<W>>(sums.odd, g.o, g.ldc, add);
    add = true;
  } while (s < g.segments);
}

template <class W, int N, int R>
inline void mirror_shape(int rows, const MirrorArgs<W>& g) {
  if (rows == R) return mirror_tile<W, R, N>(g);
  if constexpr (R > 1) mirror_shape<W, N, R - 1>(rows, g);
}

template <class W>
void mirror(int rows, int vectors, const MirrorArgs<W>& g) {
  if constexpr (SYMCONV_MIRROR_VECTORS > 1)
    if (vectors == 2) return mirror_shape<W, 2, SYMCONV_MIRROR_ROWS>(rows, g);
  mirror_shape<W, 1, SYMCONV_MIRROR_ROWS>(rows, g);
}
