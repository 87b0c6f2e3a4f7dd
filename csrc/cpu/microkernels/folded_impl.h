// The matrix kernel of layers that fold their lines: products of all parities stay in registers, and go
// through the butterfly, with the bias, to every member. Included by microkernels/kernels_impl.h, inside its
// namespace.

// Sums of two parities fill the registers; those of the pairs before them wait in memory. Rows of a tile: so
// many, or as many as hide the latency of a multiply-add.
template <int N>
constexpr int kFoldedRows = SYMCONV_SUMS / (2 * N) < 8 ? SYMCONV_SUMS / (2 * N) : 8;

// Where the taps of a parity are read. Filters have a row for each tap, one after the other.
template <class A>
struct FoldedSides {
  const A* filters;
  const A* lines;
  const int64_t* offset;  // of each tap in `lines`
  int64_t filter_step, line_step;
};

// Planes: rows are orbits, side by side in a row of filters. Pixels: they are positions. The last vector of
// columns begins at `last`, and may overlap the one before it.
template <class A, bool kPlanes, int R, int N>
SYMCONV_INLINE void add_products(FoldedSides<A>& sides, int64_t last, int64_t taps, V<A> (&acc)[R][N]) {
  const A* filters = sides.filters;
  const int64_t* offset = sides.offset;
  const int64_t row_step = kPlanes ? 1 : sides.line_step;
  for (int64_t k = 0; k < taps; ++k, filters += sides.filter_step) {
    const A* const line = sides.lines + offset[k];
    const A *const left = kPlanes ? filters : line, *const right = kPlanes ? line : filters;
    const A* const rest = left + 5 * row_step;
    V<A> b[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) b[n] = load(right + (n < N - 1 ? n * Vec<A>::lanes : last));
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const A x = r < 5 ? left[r * row_step] : rest[(r - 5) * row_step];
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) acc[r][n] += x * b[n];
    }
  }
  sides.filters = filters, sides.offset = offset + taps;
}

// Sums of one parity, of no more taps than one chain has (kChain).
template <class A, bool kPlanes, int R, int N>
SYMCONV_INLINE void sum_parity(FoldedSides<A>& sides, int64_t last, int64_t taps, V<A> (&acc)[R][N]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) acc[r][n] = V<A>{};
  add_products<A, kPlanes>(sides, last, taps, acc);
}

// Bias and store are told apart outside of the loops, which leave no register for more than the results.
enum class Epilogue { whole, part, streamed };

// The results at row `r` and `column` of each member, from the sums of the parities.
template <class T, Epilogue kEpilogue, bool kPlanes, int P>
SYMCONV_INLINE void epilogue_at(V<Sum<T>> (&y)[P], Element<T>* const (&out)[P],
                                const Sum<T>* const (&bias)[P], int64_t r, int64_t column, int64_t columns,
                                int64_t ahead) {
  using A = Sum<T>;
  butterfly(y);
#pragma GCC unroll 8
  for (int i = 0; i < P; ++i) {
    if constexpr (kPlanes)
      y[i] += bias[i][r];
    else
      y[i] += load(bias[i] + column);
    Element<T>* const to = out[i] + column;
    if constexpr (kEpilogue == Epilogue::streamed) {
      stream<Element<T>, V<A>>(to, y[i]);
    } else {
      __builtin_prefetch(to + ahead, 1);  // stores that miss the caches wait for each other
      kEpilogue == Epilogue::part ? write_part<A>(to, y[i], columns) : write<V<A>>(to, y[i]);
    }
  }
}

// Where narrowing is long, and for eight members, the sums of all parities wait in memory, and results are
// made of them in a loop: unrolled it would be most of the code of this library, too much to compile and for
// the cache of instructions.
template <class T, int P>
constexpr bool kEpilogueInLoop = kNarrowedByHand<Element<T>> || P == 8;

constexpr int kMostWaiting = SYMCONV_SUMS / 2;  // vectors of a parity: those of two fill the registers

// Where the results of a tile go.
template <class T, int P>
struct FoldedResults {
  Element<T>* out[P];
  const Sum<T>* bias[P];

  SYMCONV_INLINE FoldedResults(const FoldedArgs<T>& g, const FoldedTile<T>& t) {
#pragma GCC unroll 8
    for (int i = 0; i < P; ++i) out[i] = g.out[i] + t.out, bias[i] = g.bias[i] + t.bias;
  }
  SYMCONV_INLINE void next_row(int64_t out_row) {
#pragma GCC unroll 8
    for (int i = 0; i < P; ++i) out[i] += out_row;
  }
};

// Of sums that wait for the last two parities, `acc`, which are in registers.
template <class T, Epilogue kEpilogue, bool kPlanes, int P, int R, int N>
SYMCONV_INLINE void epilogue(const FoldedArgs<T>& g, const FoldedTile<T>& t, int64_t last,
                             const V<Sum<T>>* waiting, const V<Sum<T>> (&acc)[2][R][N]) {
  const int64_t out_row = g.out_row, ahead = t.ahead;
  FoldedResults<T, P> to(g, t);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      V<Sum<T>> y[P];
#pragma GCC unroll 8
      for (int i = 0; i < P; ++i) y[i] = i < P - 2 ? waiting[(i * R + r) * N + n] : acc[i - P + 2][r][n];
      const int64_t column = n < N - 1 ? n * Vec<Sum<T>>::lanes : last;
      epilogue_at<T, kEpilogue, kPlanes, P>(y, to.out, to.bias, r, column, t.columns, ahead);
    }
    to.next_row(out_row);
  }
}

template <class T>
SYMCONV_INLINE int64_t last_vector(const FoldedTile<T>& t) {
  constexpr int L = Vec<Sum<T>>::lanes;
  return t.columns < L ? 0 : t.columns - L;
}

template <class T, bool kPlanes, int P, int R, int N>
SYMCONV_INLINE void epilogue(const FoldedArgs<T>& g, const FoldedTile<T>& t, int64_t last,
                             const V<Sum<T>>* waiting, const V<Sum<T>> (&acc)[2][R][N]) {
  if (N == 1 && t.columns < Vec<Sum<T>>::lanes)
    return epilogue<T, Epilogue::part, kPlanes, P>(g, t, last, waiting, acc);
  if constexpr (kStreams<Element<T>>)
    if (g.stream) return epilogue<T, Epilogue::streamed, kPlanes, P>(g, t, last, waiting, acc);
  epilogue<T, Epilogue::whole, kPlanes, P>(g, t, last, waiting, acc);
}

template <class T, bool kPlanes, int P, int N, int R>
void folded_tile(const FoldedArgs<T>& g, const FoldedTile<T>& t) {
  using A = Sum<T>;
  const int64_t last = last_vector(t);
  FoldedSides<A> sides{t.filters, t.lines, g.line_offset, g.filter_step, g.line_step};
  constexpr int kWaiting = P - 2;  // parities whose sums go to memory
  V<A> acc[2][R][N], waiting[kWaiting ? kWaiting * R * N : 1];
  for (int i = 0; i < kWaiting; i += 2) {
    sum_parity<A, kPlanes>(sides, last, g.taps[i], acc[0]);
    sum_parity<A, kPlanes>(sides, last, g.taps[i + 1], acc[1]);
#pragma GCC unroll 24
    for (int k = 0; k < 2 * R * N; ++k) waiting[i * R * N + k] = acc[k / (R * N)][k / N % R][k % N];
  }
  sum_parity<A, kPlanes>(sides, last, g.taps[P - 2], acc[0]);
  sum_parity<A, kPlanes>(sides, last, g.taps[P - 1], acc[1]);
  epilogue<T, kPlanes, P>(g, t, last, waiting, acc);
}

template <class T, bool kPlanes, int P, int N, int R>
inline void folded_rows(int rows, const FoldedArgs<T>& g, const FoldedTile<T>& t) {
  if (rows == R) return folded_tile<T, kPlanes, P, N, R>(g, t);
  if constexpr (R > 1) folded_rows<T, kPlanes, P, N, R - 1>(rows, g, t);
}

// --- sums that all wait ---

// Neither elements nor the number of parities are known to what sums them: one kernel serves all types that
// are summed alike.
template <class A>
struct WaitingSums {
  FoldedSides<A> sides;
  int64_t last;
  const int64_t *taps, *end;  // of each parity
  V<A>* sums;
};

template <class A, bool kPlanes, int N, int R>
void waiting_tile(const WaitingSums<A>& w) {
  FoldedSides<A> sides = w.sides;
  const int64_t last = w.last, *taps = w.taps, *const end = w.end;
  V<A>* sums = w.sums;
  do {  // two parities at a time
    V<A> acc[2][R][N];
    sum_parity<A, kPlanes>(sides, last, taps[0], acc[0]);
    sum_parity<A, kPlanes>(sides, last, taps[1], acc[1]);
#pragma GCC unroll 24
    for (int k = 0; k < 2 * R * N; ++k)
      sums[k / (R * N) * kMostWaiting + k % (R * N)] = acc[k / (R * N)][k / N % R][k % N];
    taps += 2, sums += 2 * kMostWaiting;
  } while (taps != end);
}

template <class A, bool kPlanes, int N, int R>
inline void waiting_rows(int rows, const WaitingSums<A>& w) {
  if (rows == R) return waiting_tile<A, kPlanes, N, R>(w);
  if constexpr (R > 1) waiting_rows<A, kPlanes, N, R - 1>(rows, w);
}

template <class A, bool kPlanes>
void waiting_sums(int rows, int vectors, const WaitingSums<A>& w) {
  if (vectors == 3) return waiting_rows<A, kPlanes, 3, kFoldedRows<3>>(rows, w);
  if (vectors == 2) return waiting_rows<A, kPlanes, 2, kFoldedRows<2>>(rows, w);
  waiting_rows<A, kPlanes, 1, kFoldedRows<1>>(rows, w);
}

// The file of float32 has those of the types that are widened to it.
#if defined(SYMCONV_WIDENED)
extern template void waiting_sums<float, false>(int, int, const WaitingSums<float>&);
extern template void waiting_sums<float, true>(int, int, const WaitingSums<float>&);
#elif !defined(SYMCONV_PAIR_INSTRUCTIONS)
template void waiting_sums<SYMCONV_OF, false>(int, int, const WaitingSums<SYMCONV_OF>&);
template void waiting_sums<SYMCONV_OF, true>(int, int, const WaitingSums<SYMCONV_OF>&);
#endif

template <class T, Epilogue kEpilogue, bool kPlanes, int P>
SYMCONV_INLINE void epilogue_in_loop(const FoldedArgs<T>& g, const FoldedTile<T>& t, int rows, int vectors,
                                     int64_t last, const V<Sum<T>>* waiting) {
  const int64_t out_row = g.out_row, ahead = t.ahead;
  FoldedResults<T, P> to(g, t);
  for (int r = 0; r < rows; ++r) {
    for (int n = 0; n < vectors; ++n, ++waiting) {
      V<Sum<T>> y[P];
#pragma GCC unroll 8
      for (int i = 0; i < P; ++i) y[i] = waiting[i * kMostWaiting];
      const int64_t column = n < vectors - 1 ? n * Vec<Sum<T>>::lanes : last;
      epilogue_at<T, kEpilogue, kPlanes, P>(y, to.out, to.bias, r, column, t.columns, ahead);
    }
    to.next_row(out_row);
  }
}

template <class T, bool kPlanes, int P>
void folded_in_loop(int rows, int vectors, const FoldedArgs<T>& g, const FoldedTile<T>& t) {
  using A = Sum<T>;
  const int64_t last = last_vector(t);
  alignas(SYMCONV_BYTES) V<A> waiting[P * kMostWaiting];
  const WaitingSums<A> sums{
      {t.filters, t.lines, g.line_offset, g.filter_step, g.line_step}, last, g.taps, g.taps + P, waiting};
  waiting_sums<A, kPlanes>(rows, vectors, sums);
  if (t.columns < Vec<A>::lanes)
    return epilogue_in_loop<T, Epilogue::part, kPlanes, P>(g, t, rows, vectors, last, waiting);
  if constexpr (kStreams<Element<T>>)
    if (g.stream)
      return epilogue_in_loop<T, Epilogue::streamed, kPlanes, P>(g, t, rows, vectors, last, waiting);
  epilogue_in_loop<T, Epilogue::whole, kPlanes, P>(g, t, rows, vectors, last, waiting);
}

template <class T, bool kPlanes, int P>
void folded(int rows, int vectors, const FoldedArgs<T>& g, const FoldedTile<T>& t) {
  if constexpr (kEpilogueInLoop<T, P>) {
    folded_in_loop<T, kPlanes, P>(rows, vectors, g, t);
  } else {
    if (vectors == 3) return folded_rows<T, kPlanes, P, 3, kFoldedRows<3>>(rows, g, t);
    if (vectors == 2) return folded_rows<T, kPlanes, P, 2, kFoldedRows<2>>(rows, g, t);
    folded_rows<T, kPlanes, P, 1, kFoldedRows<1>>(rows, g, t);
  }
}
