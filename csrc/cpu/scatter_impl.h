// Sums of shifted products, for two members at once: the second has the products of the mirrored taps.
// Included by kernels_impl.h, inside its namespace.

// Results of pixels are asked for that many positions before they are stored: lines of them wait for memory
// in turn otherwise (measured on Zen 3: 1.03 to 1.18 times the speed of a whole forward at 128@112).
constexpr int64_t kPixelsAhead = 2;

// Sources of S sums of K taps (0: any number), at one row.
template <class T, int S, int K, bool kMasked>
struct ShiftedSums {
  using A = Sum<T>;
  const ScatterArgs<T>& args;
  const A* at[S][K ? K : kMaxScatterTaps];
  int taps;

  explicit ShiftedSums(const ScatterArgs<T>& a) : args(a), taps(K ? K : a.taps) {
    for (int s = 0; s < S; ++s)
      for (int k = 0; k < taps; ++k) at[s][k] = a.source[s][k];
  }
  SYMCONV_INLINE V<A> value(int s, int k, int64_t column, int64_t product) const {
    const V<A> v = load(at[s][k] + product + column);
    if constexpr (!kMasked) return v;
    return (V<A>)((V<Bits<A>>)v & load(args.mask + k * args.mask_ld + column));
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
      for (int k = 0; k < (K ? K : taps); ++k) at[s][k] += args.step[k];
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

// Result lines of all S members for one vector of columns. `count`: columns that exist, 0 for all.
template <class T, int K, int S, class F, bool kMasked>
SYMCONV_INLINE void scatter_at(const ScatterArgs<T>& a, const ShiftedSums<T, S, K, kMasked>& sums,
                               Element<T>* const (&out)[S], const V<Sum<T>> (&bias)[S], int64_t column,
                               int64_t count) {
  using A = Sum<T>;
  V<A> y[F::out][S];
#pragma GCC unroll 4
  for (int s = 0; s < S; ++s) {
    V<A> m[F::in], lines[F::out];
#pragma GCC unroll 6
    for (int i = 0; i < F::in; ++i) m[i] = sums.sum(s, column, i * a.product_stride);
    F::result(m, lines);
#pragma GCC unroll 4
    for (int i = 0; i < F::out; ++i) y[i][s] = lines[i];
  }
#pragma GCC unroll 4
  for (int i = 0; i < F::out; ++i) {
    if (i >= a.lines) break;
    if constexpr (S == 4) {  // sums of the two parities of the folded axis
#pragma GCC unroll 2
      for (int s = 0; s < 2; ++s) {
        const V<A> even = y[i][s], odd = y[i][2 + s];
        y[i][s] = even + odd, y[i][2 + s] = even - odd;
      }
    }
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) {
      Element<T>* to = out[s] + i * a.line_stride + column;
      const V<A> v = y[i][s] + bias[s];
      if (count)
        write_part<A>(to, v, count);
      else
        write<V<A>>(to, v);
    }
  }
}

template <class T, int K, int S, class F, bool kMasked>
SYMCONV_INLINE void store_sums(const ScatterArgs<T>& a) {
  using A = Sum<T>;
  constexpr int L = Vec<A>::lanes;
  ShiftedSums<T, S, K, kMasked> sums(a);
  Element<T>* out[S];
  for (int s = 0; s < S; ++s) out[s] = a.out[s];
  for (int64_t r = 0; r < a.rows; ++r) {
    // The last vector of a row overlaps the one before it, where there is one.
    const int64_t vectors = (a.columns + L - 1) / L;
    for (int64_t i = 0; i < vectors; ++i) {
      if (!kMasked && !a.bias_of_row && i * L * sizeof(Element<T>) % kCacheLine == 0) {
        for (int l = 0; l < F::out && l < a.lines; ++l)
          for (int s = 0; s < S; ++s)
            __builtin_prefetch(out[s] + kPixelsAhead * a.out_step + l * a.line_stride + i * L, 1);
      }
      const int64_t c = a.columns < L ? 0 : i * L + L > a.columns ? a.columns - L : i * L;
      V<A> bias[S];
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s) {
        bias[s] = V<A>{};
        if (a.bias[s]) bias[s] = a.bias_of_row ? V<A>{} + a.bias[s][r] : load(a.bias[s] + c);
      }
      scatter_at<T, K, S, F, kMasked>(a, sums, out, bias, c, a.columns < L ? a.columns : 0);
    }
    for (int s = 0; s < S; ++s) out[s] += a.out_step;
    sums.next_row();
  }
}

template <class T, int K, int S, class F>
void scatter_store(const ScatterArgs<T>& a) {
  a.mask ? store_sums<T, K, S, F, true>(a) : store_sums<T, K, S, F, false>(a);
}
