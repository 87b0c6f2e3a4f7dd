// The matrix kernel with a right side that is the sum or the difference of two, folded as it is loaded.
// Included by microkernels/kernels_impl.h, inside its namespace.

template <class T, bool kOdd, int R, int N>
void mirrored_tile(const MirroredArgs<T>& g) {
  const int64_t lda = g.lda, step = g.a_step, ldb = g.ldb, apart = g.apart;
  T* const to = g.c;
  const int64_t ldc = g.ldc;
  bool add = g.add;
  int64_t s = 0, k = 0;  // segment, and the place in it
  do {
    V<T> acc[R][N];
#pragma GCC unroll 28
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) acc[r][n] = V<T>{};
    for (int64_t left = kChain; s < g.segments && left > 0;) {
      const T* a[(R + 4) / 5];
      for (int i = 0; i < (R + 4) / 5; ++i) a[i] = g.a + g.a_offset[s] + k * step + 5 * i * lda;
      const T *first = g.b + g.first[s] + k * ldb, *second = g.b + g.second[s] + k * ldb;
      const int64_t rest = g.k - k, count = rest < left ? rest : left;
      for (int64_t i = 0; i < count; ++i) {
        V<T> bv[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
          const V<T> x = load(first + n * apart), y = load(second + n * apart);
          bv[n] = kOdd ? x - y : x + y;
        }
#pragma GCC unroll 28
        for (int r = 0; r < R; ++r) {
          const T x = a[r / 5][(r % 5) * lda];
#pragma GCC unroll 4
          for (int n = 0; n < N; ++n) acc[r][n] += x * bv[n];
        }
#pragma GCC unroll 6
        for (int j = 0; j < (R + 4) / 5; ++j) a[j] += step;
        first += ldb, second += ldb;
      }
      left -= count, k += count;
      if (k == g.k) ++s, k = 0;
    }
    store_tile<T>(acc, to, ldc, add);
    add = true;
  } while (s < g.segments);
}

template <class T, bool kOdd, int N, int R>
inline void mirrored_rows(int rows, const MirroredArgs<T>& g) {
  if (rows == R) return mirrored_tile<T, kOdd, R, N>(g);
  if constexpr (R > 1) mirrored_rows<T, kOdd, N, R - 1>(rows, g);
}

template <class T, bool kOdd>
inline void mirrored(int rows, int vectors, const MirroredArgs<T>& g) {
  if (vectors == 1) return mirrored_rows<T, kOdd, 1, SYMCONV_ROWS2>(rows, g);
  if (vectors == 2) return mirrored_rows<T, kOdd, 2, SYMCONV_ROWS2>(rows, g);
  mirrored_rows<T, kOdd, 3, SYMCONV_ROWS3>(rows, g);
}

template <class T>
void gemm_mirrored(int rows, int vectors, const MirroredArgs<T>& g) {
  g.odd ? mirrored<T, true>(rows, vectors, g) : mirrored<T, false>(rows, vectors, g);
}
