// What the weight gradient multiplies, and where its sums go. Included by microkernels/kernels_impl.h, inside
// its namespace.

// Products of one value: the lines that exist, spread as the adjoint of `result` does.
template <class T, class X, class F>
inline void spread_at(const GatherArgs<T>& g, const Element<T>* source, X (&products)[F::in]) {
  X lines[F::out];
#pragma GCC unroll 4
  for (int i = 0; i < F::out; ++i) lines[i] = i < g.lines ? read<X>(source + i * g.line_stride) : X{};
  F::spread(lines, products);
}

// Rows that are contiguous in the source too.
template <class T, class F>
void gather_lines(const GatherArgs<T>& g) {
  using A = Sum<T>;
  constexpr int L = Vec<A>::lanes;
  for (int64_t c = 0; c < g.channels; ++c) {
    const Element<T>* from = g.source + c * g.channel_stride;
    Stored<T>* to = g.out + c * g.ld;
    int64_t p = 0;
    for (; p + L <= g.positions; p += L) {
      V<A> products[F::in];
      spread_at<T, V<A>, F>(g, from + p, products);
#pragma GCC unroll 6
      for (int i = 0; i < F::in; ++i) write<V<A>>(to + i * g.product_stride + p, products[i]);
    }
    for (; p < g.positions; ++p) {
      A products[F::in];
      spread_at<T, A, F>(g, from + p, products);
      for (int i = 0; i < F::in; ++i) write<A>(to + i * g.product_stride + p, products[i]);
    }
  }
}

template <class T, class F>
void gather(const GatherArgs<T>& g) {
  using A = Sum<T>;
  constexpr int L = Vec<A>::lanes;
  if (!g.offset) return gather_lines<T, F>(g);
  for (int64_t p0 = 0; p0 < g.positions; p0 += L) {
    const int64_t n = g.positions - p0 < L ? g.positions - p0 : L;
    int64_t c = 0;
    if (g.channel_stride == 1 && n == L) {
      for (; c + L <= g.channels; c += L) {
        V<A> block[F::in][L];
        for (int p = 0; p < L; ++p) {
          V<A> products[F::in];
          spread_at<T, V<A>, F>(g, g.source + g.offset[p0 + p] + c, products);
#pragma GCC unroll 6
          for (int i = 0; i < F::in; ++i) block[i][p] = products[i];
        }
        for (int i = 0; i < F::in; ++i) {
          V<A> v[L];
#pragma GCC unroll 16
          for (int p = 0; p < L; ++p) v[p] = block[i][p];
          transpose<A>(v);
#pragma GCC unroll 16
          for (int p = 0; p < L; ++p) write<V<A>>(g.out + i * g.product_stride + (c + p) * g.ld + p0, v[p]);
        }
      }
    }
    for (; c < g.channels; ++c)
      for (int64_t p = p0; p < p0 + n; ++p) {
        A products[F::in];
        spread_at<T, A, F>(g, g.source + g.offset[p] + c * g.channel_stride, products);
        for (int i = 0; i < F::in; ++i) write<A>(g.out + i * g.product_stride + c * g.ld + p, products[i]);
      }
  }
}

template <class T, class X>
inline X combined(const CombineArgs<T>& a, int64_t i) {
  X sum{};
  for (int64_t t = 0; t < a.terms; ++t) {
    const CombineTerm<T>& term = a.term[t];
    sum += term.scale * read<X>(term.data + a.row * term.ld + a.first + i);
  }
  return sum;
}

template <class T>
void combine(const CombineArgs<T>& a) {
  constexpr int L = Vec<Sum<T>>::lanes;
  int64_t i = 0;
  for (; i + L <= a.count; i += L) write<V<Sum<T>>>(a.out + i, combined<T, V<Sum<T>>>(a, i));
  for (; i < a.count; ++i) write<Sum<T>>(a.out + i, combined<T, Sum<T>>(a, i));
}
