// The matrix kernel: C (+)= sum over segments of A * B. Included by microkernels/kernels_impl.h, inside its
// namespace.

// Longest chain of products summed one by one in float32; longer contractions are sums of such sums,
// which keeps the error near that of torch's convolution for any number of channels.
constexpr int64_t kChain = 384;

// One word of A, broadcast, times a vector of words of B.
template <class W>
struct Step {
  using Scalar = W;
  using Vector = V<W>;
  static Scalar scalar(const W* a) { return *a; }
  static Vector vector(const W* b) { return load(b); }
  static V<W> add(V<W> sum, Scalar a, Vector b) { return sum + a * b; }
};

#ifdef SYMCONV_PAIR_INSTRUCTIONS
template <>
struct Step<Pair> {
  using Scalar = __m512i;
  using Vector = __m512i;
  static Scalar scalar(const Pair* a) {
    int word;
    __builtin_memcpy(&word, a, sizeof word);
    return _mm512_set1_epi32(word);
  }
  static Vector vector(const Pair* b) { return _mm512_loadu_si512(b); }
  static V<float> add(V<float> sum, Scalar a, Vector b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
  }
  // What is in the second half of a word may be anything, not a number included.
  static __m512i first_half(__m512i words) { return _mm512_and_si512(words, _mm512_set1_epi32(0xffff)); }
};

template <int R, int N>
inline void add_half(const GemmArgs<Pair>& g, V<float> (&acc)[R][N]) {
  using At = Step<Pair>;
  const int64_t s = g.segments - 1;
  const Pair* a = g.a + g.a_offset[s] + g.k[s] * g.a_step;
  const Pair* b = g.b + g.b_offset[s] + g.k[s] * g.ldb;
#pragma GCC unroll 28
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n)
      acc[r][n] = At::add(acc[r][n], At::first_half(At::scalar(a + r * g.lda)),
                          At::first_half(At::vector(b + n * Vec<float>::lanes)));
}
#endif

// Writes a tile, or adds it. Row addresses are made here: the compiler would make all of them before the
// products, and keep them in memory.
template <class A, int R, int N>
SYMCONV_INLINE void store_tile(const V<A> (&acc)[R][N], A* to, int64_t ldc, bool add) {
  asm volatile("" : "+r"(to));
  if (add) {
#pragma GCC unroll 28
    for (int r = 0; r < R; ++r, to += ldc)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) save(to + n * Vec<A>::lanes, load(to + n * Vec<A>::lanes) + acc[r][n]);
  } else {
#pragma GCC unroll 28
    for (int r = 0; r < R; ++r, to += ldc)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) save(to + n * Vec<A>::lanes, acc[r][n]);
  }
}

// Matrix tile. Row addresses are one base for five rows and multiples of lda, so that fourteen rows need
// five registers and not fourteen.
template <class W, int R, int N>
void gemm_tile(const GemmArgs<W>& g) {
  using At = Step<W>;
  using A = Sum<W>;
  constexpr int L = Vec<A>::lanes;
  const int64_t lda = g.lda, step = g.a_step, ldb = g.ldb;
  A* const to = g.c;  // the compiler must take it that stores may change `g`
  const int64_t ldc = g.ldc;
  bool add = g.add;
  int64_t s = 0, k = 0;  // segment, and the place in it
  do {
    V<A> acc[R][N];
    // Unrolled: else the compiler fills an array in memory, and loads it into the registers.
#pragma GCC unroll 28
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) acc[r][n] = V<A>{};
    for (int64_t left = kChain; s < g.segments && left > 0;) {
      const W* a[(R + 4) / 5];
      for (int i = 0; i < (R + 4) / 5; ++i) a[i] = g.a + g.a_offset[s] + k * step + 5 * i * lda;
      const W* b = g.b + g.b_offset[s] + k * ldb;
      const int64_t rest = g.k[s] - k, count = rest < left ? rest : left;
      for (int64_t i = 0; i < count; ++i) {
        typename At::Vector bv[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) bv[n] = At::vector(b + n * L);
#pragma GCC unroll 28
        for (int r = 0; r < R; ++r) {
          const auto x = At::scalar(a[r / 5] + (r % 5) * lda);
#pragma GCC unroll 4
          for (int n = 0; n < N; ++n) acc[r][n] = At::add(acc[r][n], x, bv[n]);
        }
#pragma GCC unroll 6
        for (int j = 0; j < (R + 4) / 5; ++j) a[j] += step;
        b += ldb;
      }
      left -= count, k += count;
      if (k == g.k[s]) ++s, k = 0;
    }
#ifdef SYMCONV_PAIR_INSTRUCTIONS
    if (s == g.segments && g.half) add_half(g, acc);
#endif
    store_tile<A>(acc, to, ldc, add);
    add = true;
  } while (s < g.segments);
}

template <class W, int N, int R>
inline void gemm_rows(int rows, const GemmArgs<W>& g) {
  if (rows == R) return gemm_tile<W, R, N>(g);
  if constexpr (R > 1) gemm_rows<W, N, R - 1>(rows, g);
}

template <class W>
void gemm(int rows, int vectors, const GemmArgs<W>& g) {
  if (vectors == 1) return gemm_rows<W, 1, SYMCONV_ROWS1>(rows, g);
  if (vectors == 2) return gemm_rows<W, 2, SYMCONV_ROWS2>(rows, g);
  gemm_rows<W, 3, SYMCONV_ROWS3>(rows, g);
}

// The same tile with offsets for every k. Chains end as those above do.
template <class T, int R, int N>
void taps_tile(const TapsArgs<T>& g) {
  constexpr int L = Vec<T>::lanes;
  const int64_t lda = g.lda, ldc = g.ldc, *a_offset = g.a_offset, *b_offset = g.b_offset;
  T* const to = g.c;
  const T *const left = g.a, *const right = g.b;
  int64_t rest = g.taps;
  V<T> acc[R][N];
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) {
    const V<T> start = g.start ? load(g.start + n * L) : V<T>{};
#pragma GCC unroll 28
    for (int r = 0; r < R; ++r) acc[r][n] = start;
  }
  for (bool add = false;; add = true) {
    const int64_t count = rest < kChain ? rest : kChain;
    for (int64_t k = 0; k < count; ++k) {
      const T* a[(R + 4) / 5];
#pragma GCC unroll 6
      for (int i = 0; i < (R + 4) / 5; ++i) a[i] = left + a_offset[k] + 5 * i * lda;
      V<T> bv[N];
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) bv[n] = load(right + b_offset[k] + n * L);
#pragma GCC unroll 28
      for (int r = 0; r < R; ++r) {
        const T x = a[r / 5][(r % 5) * lda];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) acc[r][n] += x * bv[n];
      }
    }
    store_tile<T>(acc, to, ldc, add);
#pragma GCC unroll 28
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) acc[r][n] = V<T>{};
    rest -= count, a_offset += count, b_offset += count;
    if (rest == 0) return;
  }
}

template <class T, int N, int R>
inline void taps_rows(int rows, const TapsArgs<T>& g) {
  if (rows == R) return taps_tile<T, R, N>(g);
  if constexpr (R > 1) taps_rows<T, N, R - 1>(rows, g);
}

template <class T>
void taps(int rows, int vectors, const TapsArgs<T>& g) {
  if (vectors == 1) return taps_rows<T, 1, SYMCONV_ROWS1>(rows, g);
  if (vectors == 2) return taps_rows<T, 2, SYMCONV_ROWS2>(rows, g);
  taps_rows<T, 3, SYMCONV_ROWS3>(rows, g);
}

// Rows of a tile of correlate(): as many as the registers hold, addresses of theirs included.
template <int N>
constexpr int kCorrelateRowsOf = SYMCONV_SUMS / N < kCorrelateRows ? SYMCONV_SUMS / N : kCorrelateRows;

template <class T, int R, int N>
void correlate_tile(const CorrelateArgs<T>& g) {
  constexpr int L = Vec<T>::lanes;
  V<T> acc[R][N];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) acc[r][n] = V<T>{};
  const T* row[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) row[r] = g.a + g.a_offset[r];
  const T* b = g.b;
  const int64_t step = g.a_step, end = g.positions * step, ldb = g.ldb;
  for (int64_t at = 0; at < end; at += step, b += ldb) {
    V<T> bv[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) bv[n] = load(b + n * L);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const T x = row[r][at];
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) acc[r][n] += x * bv[n];
    }
  }
  store_tile<T>(acc, g.c, g.ldc, true);
}

template <class T, int N, int R>
inline void correlate_rows(int rows, const CorrelateArgs<T>& g) {
  if (rows == R) return correlate_tile<T, R, N>(g);
  if constexpr (R > 1) correlate_rows<T, N, R - 1>(rows, g);
}

template <class T>
void correlate(int rows, int vectors, const CorrelateArgs<T>& g) {
  if (vectors == 3) return correlate_rows<T, 3, kCorrelateRowsOf<3>>(rows, g);
  if (vectors == 2) return correlate_rows<T, 2, kCorrelateRowsOf<2>>(rows, g);
  correlate_rows<T, 1, kCorrelateRowsOf<1>>(rows, g);
}
