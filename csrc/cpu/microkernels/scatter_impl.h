// Sums of shifted products, for two members at once: the second has the products of the mirrored taps.
// Included by microkernels/kernels_impl.h, inside its namespace.

// Results of pixels are prefetched that many positions before they are stored: lines of them wait for memory
// in turn otherwise (measured on Zen 3: 1.03 to 1.18 times the speed of a whole forward at 128@112).
constexpr int64_t kPixelsAhead = 2;

// Sources of S sums of K taps (0: any number), at one row. Copies, so that no store can change them.
template <class T, int S, int K, bool kMasked>
struct ShiftedSums {
  using A = Sum<T>;
  static constexpr int kMost = K ? K : kMaxScatterTaps;
  const A* at[S][kMost];
  int64_t step[kMost];
  const Bits<A>* const mask;
  const int64_t mask_ld;
  const int taps;

  SYMCONV_INLINE explicit ShiftedSums(const ScatterArgs<T>& a)
      : mask(a.mask), mask_ld(a.mask_ld), taps(K ? K : a.taps) {
#pragma GCC unroll 3
    for (int k = 0; k < (K ? K : taps); ++k) {
      step[k] = a.step[k];
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s) at[s][k] = a.source[s][k];
    }
  }
  SYMCONV_INLINE V<A> value(int s, int k, int64_t column, int64_t product) const {
    const V<A> v = load(at[s][k] + product + column);
    if constexpr (!kMasked) return v;
    return (V<A>)((V<Bits<A>>)v & load(mask + k * mask_ld + column));
  }
  SYMCONV_INLINE V<A> sum(int s, int64_t column, int64_t product) const {
    V<A> v = value(s, 0, column, product);
#pragma GCC unroll 3
    for (int k = 1; k < (K ? K : taps); ++k) v += value(s, k, column, product);
    return v;
  }
  SYMCONV_INLINE void next_row() {
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s)
#pragma GCC unroll 3
      for (int k = 0; k < (K ? K : taps); ++k) at[s][k] += step[k];
  }
};

template <class T, int K, bool kMasked>
SYMCONV_INLINE void sum_lines(const ScatterArgs<T>& a) {
  constexpr int L = Vec<Sum<T>>::lanes;
  ShiftedSums<T, 2, K, kMasked> sums(a);
  Sum<T>*first = a.sums[0], *second = a.sums[1];
  const int64_t rows = a.rows, columns = a.columns, step = a.sums_step;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; c += L) {
      save(first + c, sums.sum(0, c, 0));
      save(second + c, sums.sum(1, c, 0));
    }
    first += step, second += step;
    sums.next_row();
  }
}

// To scratch memory: whole vectors, past the last column.
template <class T, int K>
void scatter_lines(const ScatterArgs<T>& a) {
  a.mask ? sum_lines<T, K, true>(a) : sum_lines<T, K, false>(a);
}

// Where S members go. Copies, as above.
template <class T, int S>
struct ScatterResults {
  using A = Sum<T>;
  Element<T>* out[S];
  const A* bias[S];
  const int64_t step, line_stride, product_stride;
  const int lines;
  const bool has_bias, bias_of_row;

  SYMCONV_INLINE explicit ScatterResults(const ScatterArgs<T>& a)
      : step(a.out_step),
        line_stride(a.line_stride),
        product_stride(a.product_stride),
        lines(a.lines),
        has_bias(a.bias[0]),
        bias_of_row(a.bias_of_row) {
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) out[s] = a.out[s], bias[s] = a.bias[s];
  }
  SYMCONV_INLINE V<A> bias_at(int s, int64_t row, int64_t column) const {
    if (!has_bias) return V<A>{};
    return bias_of_row ? V<A>{} + bias[s][row] : load(bias[s] + column);
  }
  // For the memory of a later row.
  template <int kLines>
  SYMCONV_INLINE void prefetch(int64_t column) const {
    if (bias_of_row || column * sizeof(Element<T>) % kCacheLine) return;
#pragma GCC unroll 4
    for (int i = 0; i < kLines; ++i) {
      if (i >= lines) break;
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s)
        __builtin_prefetch(out[s] + kPixelsAhead * step + i * line_stride + column, 1);
    }
  }
  SYMCONV_INLINE void next_row() {
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) out[s] += step;
  }
};

// Result lines of one member, or with both parities of a filtered axis of a part of it.
template <class T, int K, int S, class F, bool kMasked>
SYMCONV_INLINE void result_lines(const ShiftedSums<T, S, K, kMasked>& sums, int s, int64_t column,
                                 int64_t product_stride, V<Sum<T>> (&lines)[F::out]) {
  if constexpr (F::products > F::in) {
    if (s >= 2) {
      V<Sum<T>> m[F::odd];
#pragma GCC unroll 4
      for (int i = 0; i < F::odd; ++i) m[i] = sums.sum(s, column, i * product_stride);
      return F::odd_result(m, lines);
    }
  }
  V<Sum<T>> m[F::in];
#pragma GCC unroll 6
  for (int i = 0; i < F::in; ++i) m[i] = sums.sum(s, column, i * product_stride);
  F::result(m, lines);
}

// Result lines of all S members for one vector of columns. `count`: columns that exist, 0 for all.
template <class T, int K, int S, class F, bool kMasked>
SYMCONV_INLINE void scatter_at(const ShiftedSums<T, S, K, kMasked>& sums, const ScatterResults<T, S>& to,
                               int64_t row, int64_t column, int64_t count) {
  using A = Sum<T>;
  V<A> y[F::out][S];
#pragma GCC unroll 4
  for (int s = 0; s < S; ++s) {
    V<A> lines[F::out];
    result_lines<T, K, S, F, kMasked>(sums, s, column, to.product_stride, lines);
#pragma GCC unroll 4
    for (int i = 0; i < F::out; ++i) y[i][s] = lines[i];
  }
#pragma GCC unroll 4
  for (int i = 0; i < F::out; ++i) {
    if (i >= to.lines) break;
    if constexpr (S == 4) {  // sums of the two parities of the folded or filtered axis
#pragma GCC unroll 2
      for (int s = 0; s < 2; ++s) {
        const V<A> even = y[i][s], odd = y[i][2 + s];
        y[i][s] = even + odd, y[i][2 + s] = even - odd;
      }
    }
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) {
      Element<T>* at = to.out[s] + i * to.line_stride + column;
      const V<A> v = y[i][s] + to.bias_at(s, row, column);
      if (count)
        write_part<A>(at, v, count);
      else
        write<V<A>>(at, v);
    }
  }
}

template <class T, int K, int S, class F, bool kMasked>
SYMCONV_INLINE void store_sums(const ScatterArgs<T>& a) {
  constexpr int L = Vec<Sum<T>>::lanes;
  ShiftedSums<T, S, K, kMasked> sums(a);
  ScatterResults<T, S> to(a);
  const int64_t rows = a.rows, columns = a.columns;
  for (int64_t r = 0; r < rows; ++r) {
    if (columns < L) {
      to.template prefetch<F::out>(0);
      scatter_at<T, K, S, F, kMasked>(sums, to, r, 0, columns);
    } else {
      for (int64_t c = 0; c < columns; c += L) {
        if constexpr (!kMasked) to.template prefetch<F::out>(c);
        // The last vector of a row overlaps the one before it, where there is one.
        scatter_at<T, K, S, F, kMasked>(sums, to, r, c + L > columns ? columns - L : c, 0);
      }
    }
    to.next_row();
    sums.next_row();
  }
}

template <class T, int K, int S, class F>
void scatter_store(const ScatterArgs<T>& a) {
  a.mask ? store_sums<T, K, S, F, true>(a) : store_sums<T, K, S, F, false>(a);
}
