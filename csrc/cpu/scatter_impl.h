// Sums of shifted products, for two members at once: the second has the products of the mirrored taps. Included
// by kernels_impl.h, inside its namespace.

// Sources of S sums of K taps (0: any number), at one row.
template <class A, int S, int K>
struct ShiftedSums {
  const A* at[S][K ? K : kMaxScatterTaps];
  const int64_t* step;
  int taps;

  ShiftedSums(const A* const (&source)[4][kMaxScatterTaps], const int64_t* steps, int count)
      : step(steps), taps(K ? K : count) {
    for (int s = 0; s < S; ++s)
      for (int k = 0; k < taps; ++k) at[s][k] = source[s][k];
  }
  SYMCONV_INLINE V<A> sum(int s, int64_t column) const {
    V<A> v = load(at[s][0] + column);
#pragma GCC unroll 3
    for (int k = 1; k < (K ? K : taps); ++k) v += load(at[s][k] + column);
    return v;
  }
  SYMCONV_INLINE void next_row() {
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s)
#pragma GCC unroll 3
      for (int k = 0; k < (K ? K : taps); ++k) at[s][k] += step[k];
  }
};

// To scratch memory: whole vectors, past the last column.
template <class T, int K>
void scatter_lines(const ScatterArgs<T>& a) {
  using A = Sum<T>;
  constexpr int L = Vec<A>::lanes;
  ShiftedSums<A, 2, K> sums(a.source, a.step, a.taps);
  A *first = a.sums[0], *second = a.sums[1];
  for (int64_t r = 0; r < a.rows; ++r) {
    for (int64_t c = 0; c < a.columns; c += L) {
      save(first + c, sums.sum(0, c));
      save(second + c, sums.sum(1, c));
    }
    first += a.sums_step, second += a.sums_step;
    sums.next_row();
  }
}

// The first elements of a vector, fewer than it has.
template <class A, class E>
inline void write_part(E* to, V<A> v, int64_t count) {
  E whole[Vec<A>::lanes];
  write<V<A>>(whole, v);
  const E* from = whole;
#pragma GCC unroll 4
  for (int part = Vec<A>::lanes / 2; part > 0; part /= 2)
    if (count & part) __builtin_memcpy(to, from, part * sizeof(E)), to += part, from += part;
}

// Result lines of all S members for one vector of columns. `count`: columns that exist, 0 for all.
template <class T, int K, int S, class F>
SYMCONV_INLINE void scatter_at(const ScatterArgs<T>& a, const ShiftedSums<Sum<T>, S, K>& sums,
                               Element<T>* const (&out)[S], const V<Sum<T>> (&bias)[S], int64_t column,
                               int64_t count) {
  using A = Sum<T>;
  V<A> y[F::out][S];
#pragma GCC unroll 4
  for (int s = 0; s < S; ++s) {
    V<A> m[F::in], lines[F::out];
#pragma GCC unroll 6
    for (int i = 0; i < F::in; ++i) m[i] = sums.sum(s, column + i * a.product_stride);
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

template <class T, int K, int S, class F>
void scatter_store(const ScatterArgs<T>& a) {
  using A = Sum<T>;
  constexpr int L = Vec<A>::lanes;
  ShiftedSums<A, S, K> sums(a.source, a.step, a.taps);
  Element<T>* out[S];
  for (int s = 0; s < S; ++s) out[s] = a.out[s];
  for (int64_t r = 0; r < a.rows; ++r) {
    // The last vector of a row overlaps the one before it, where there is one.
    const int64_t vectors = (a.columns + L - 1) / L;
    for (int64_t i = 0; i < vectors; ++i) {
      const int64_t c = a.columns < L ? 0 : i * L + L > a.columns ? a.columns - L : i * L;
      V<A> bias[S];
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s) {
        bias[s] = V<A>{};
        if (a.bias[s]) bias[s] = a.bias_of_row ? V<A>{} + a.bias[s][r] : load(a.bias[s] + c);
      }
      scatter_at<T, K, S, F>(a, sums, out, bias, c, a.columns < L ? a.columns : 0);
    }
    for (int s = 0; s < S; ++s) out[s] += a.out_step;
    sums.next_row();
  }
}
