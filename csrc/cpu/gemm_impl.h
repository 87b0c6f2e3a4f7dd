// The matrix kernel: C (+)= sum over segments of A * B. Included by kernels_impl.h, inside its namespace.

// Longest chain of products summed one by one in float32; longer contractions are sums of such sums,
// which keeps the error near that of torch's convolution for any number of channels.
constexpr int64_t kChain = 384;

// Matrix tile. Row addresses are three bases and multiples of lda, so that fourteen rows need
// five registers and not fourteen.
template <class T, int R, int N>
void gemm_tile(const GemmArgs<T>& g) {
  constexpr int L = Vec<T>::lanes;
  const int64_t lda = g.lda, ldb = g.ldb;
  bool add = g.add;
  int64_t s = 0, k = 0;  // segment, and the place in it
  do {
    V<T> acc[R][N];
    for (int r = 0; r < R; ++r)
      for (int n = 0; n < N; ++n) acc[r][n] = V<T>{};
    for (int64_t left = kChain; s < g.segments && left > 0;) {
      const T* a0 = g.a + g.a_offset[s] + k;
      const T* a5 = a0 + 5 * lda;
      const T* a10 = a0 + 10 * lda;
      const T* b = g.b + g.b_offset[s] + k * ldb;
      const int64_t rest = g.k[s] - k, count = rest < left ? rest : left;
      for (int64_t i = 0; i < count; ++i) {
        V<T> bv[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) bv[n] = load(b + n * L);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const T* base = r < 5 ? a0 : r < 10 ? a5 : a10;
          const T x = base[(r % 5) * lda];
#pragma GCC unroll 4
          for (int n = 0; n < N; ++n) acc[r][n] += x * bv[n];
        }
        ++a0, ++a5, ++a10, b += ldb;
      }
      left -= count, k += count;
      if (k == g.k[s]) ++s, k = 0;
    }
    for (int r = 0; r < R; ++r)
      for (int n = 0; n < N; ++n) {
        T* c = g.c + r * g.ldc + n * L;
        save(c, add ? load(c) + acc[r][n] : acc[r][n]);
      }
    add = true;
  } while (s < g.segments);
}

template <class T, int N, int R>
inline void gemm_rows(int rows, const GemmArgs<T>& g) {
  if (rows == R) return gemm_tile<T, R, N>(g);
  if constexpr (R > 1) gemm_rows<T, N, R - 1>(rows, g);
}

template <class T>
void gemm(int rows, int vectors, const GemmArgs<T>& g) {
  if (vectors == 1) return gemm_rows<T, 1, SYMCONV_ROWS1>(rows, g);
  if (vectors == 2) return gemm_rows<T, 2, SYMCONV_ROWS2>(rows, g);
  gemm_rows<T, 3, SYMCONV_ROWS3>(rows, g);
}
