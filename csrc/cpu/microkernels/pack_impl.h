// Packing of the panel: sums and differences of sources, filtered and stored. Included by
// microkernels/kernels_impl.h, inside its namespace.

// One value of each of O outputs: sources of each line reduced, then the lines transformed. `step` of the
// input is 1 or 0. The panel lives in the second-level cache: lines are prefetched `ahead` of the stores,
// which would otherwise wait for each of them (measured: 1.3 times the speed of a whole forward).
template <class X, int S, int O, class F, class E, class P>
SYMCONV_INLINE void reduce_at(const E* const (&in)[F::in][S], P* const (&out)[S], int64_t product_stride,
                              int64_t at, int64_t step, int64_t ahead) {
  if constexpr (S == 1 && F::in == 1 && Same<E, P>::value) {  // nothing to sum, nothing to round
    __builtin_prefetch(out[0] + at + ahead, 1);
    __builtin_memcpy(out[0] + at, in[0][0] + at * step, elements<X, E>() * sizeof(E));
    return;
  }
  constexpr bool kHalves = O < S && F::products > F::in;  // both parities of the last axis
  constexpr int N = kHalves ? 2 : O;
  X folded[N][F::in];
#pragma GCC unroll 6
  for (int l = 0; l < F::in; ++l) {
    X v[S];
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) v[s] = read<X>(in[l][s] + at * step);
    if constexpr (kHalves) {
      X half[2][S / 2];
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) half[2 * s / S][s % (S / 2)] = v[s];
      const X first = total(half[0]), second = total(half[1]);
      folded[0][l] = first + second, folded[1][l] = first - second;
    } else if constexpr (O == 1) {
      folded[0][l] = total(v);
    } else {
#pragma GCC unroll 4
      for (int n = S / 2; n >= O; n /= 2)
#pragma GCC unroll 8
        for (int s = 0; s < n; ++s) v[s] += v[s + n];
      X sums[O];
#pragma GCC unroll 8
      for (int o = 0; o < O; ++o) sums[o] = v[o];
      butterfly(sums);
#pragma GCC unroll 8
      for (int o = 0; o < O; ++o) folded[o][l] = sums[o];
    }
  }
#pragma GCC unroll 8
  for (int o = 0; o < N; ++o) {
    F::data(folded[o]);
#pragma GCC unroll 6
    for (int l = 0; l < F::in; ++l) {
      if (kHalves && o == 1 && !has_odd_product(l)) continue;
      P* to = out[o] + l * product_stride + at;
      __builtin_prefetch(to + ahead, 1);
      write<X>(to, folded[o][l]);
    }
  }
}

// Blocks of L values over `count` contiguous elements, at least L; the last block overlaps the one before it,
// which writes the same values twice and needs no mask.
template <class X, int L, int S, int O, class F, class E, class P>
SYMCONV_INLINE void reduce_blocks(const E* const (&in)[F::in][S], P* const (&out)[S], int64_t product_stride,
                                  int64_t count, int64_t ahead) {
  for (int64_t c = 0; c + L <= count; c += L) reduce_at<X, S, O, F>(in, out, product_stride, c, 1, ahead);
  if (count % L) reduce_at<X, S, O, F>(in, out, product_stride, count - L, 1, ahead);
}

template <class A, int S, int O, class F, class E, class P>
SYMCONV_INLINE void reduce_line(const E* const (&in)[F::in][S], P* const (&out)[S], int64_t product_stride,
                                int64_t count, int64_t ahead, bool loose = false) {
  constexpr int L = Block<P, A>::lanes, half = Vec<A>::lanes;
  if (loose) {
    int64_t c = 0;
    for (; L > half && c + half < count; c += L)
      reduce_at<typename Block<P, A>::type, S, O, F>(in, out, product_stride, c, 1, ahead);
    for (; c < count; c += half) reduce_at<V<A>, S, O, F>(in, out, product_stride, c, 1, ahead);
    return;
  }
  if (count >= L)
    return reduce_blocks<typename Block<P, A>::type, L, S, O, F>(in, out, product_stride, count, ahead);
  if (L > half && count >= half)
    return reduce_blocks<V<A>, half, S, O, F>(in, out, product_stride, count, ahead);
  for (int64_t c = 0; c < count; ++c) reduce_at<A, S, O, F>(in, out, product_stride, c, 1, ahead);
}

// Positions far apart, as on a line across the width, are not foreseen by the hardware. Of the lines that are
// filtered the first ones were the last ones of the step before.
template <class F, class T, int S>
SYMCONV_INLINE void prefetch_sources(const Element<T>* const (&in)[F::in][S], const RunArgs<T>& r) {
  constexpr int64_t bytes = sizeof(Element<T>), far = 2048, ahead = 3;
  if (r.position_step[F::in - 1][0] * bytes < far) return;
  for (int l = F::in - F::out; l < F::in; ++l)
    for (int64_t c = 0; c < r.channels; c += kCacheLine / bytes)
      __builtin_prefetch(in[l][0] + ahead * r.position_step[l][0] + c);
}

template <class T, int S, int O, class F>
void pack_pixels(const RunArgs<T>& r) {
  const Element<T>* in[F::in][S];
  Stored<T>* out[S];
  for (int s = 0; s < S; ++s) {
    out[s] = r.out[s];
    for (int l = 0; l < F::in; ++l) in[l][s] = r.source[l][s];
  }
  for (int64_t p = 0; p < r.positions; ++p) {
    if constexpr (S == 1) prefetch_sources<F>(in, r);
    reduce_line<Sum<T>, S, O, F>(in, out, r.product_stride, r.channels, 2 * r.ld);
    for (int s = 0; s < S; ++s) {
      out[s] += r.ld;
      for (int l = 0; l < F::in; ++l) in[l][s] += r.position_step[l][s];
    }
  }
}

template <class T, int S, int O, class F>
void pack_planes(const RunArgs<T>& r) {
  const Element<T>* in[F::in][S];
  Stored<T>* out[S];
  bool unit = true;  // absent sources read a line of zeros, or one zero again and again
  for (int s = 0; s < S; ++s) {
    out[s] = r.out[s];
    for (int l = 0; l < F::in; ++l) {
      in[l][s] = r.source[l][s];
      unit = unit && (r.position_step[l][s] == 0 || r.position_step[l][s] == 1);
    }
  }
  for (int64_t c = 0; c < r.channels; ++c) {
    if (unit) {
      reduce_line<Sum<T>, S, O, F>(in, out, r.product_stride, r.positions, r.ld, r.loose);
    } else {
      const Element<T>* at[F::in][S];
      for (int l = 0; l < F::in; ++l)
        for (int s = 0; s < S; ++s) at[l][s] = in[l][s];
      for (int64_t p = 0; p < r.positions; ++p) {
        reduce_at<Sum<T>, S, O, F>(at, out, r.product_stride, p, 0, r.ld);
        for (int l = 0; l < F::in; ++l)
          for (int s = 0; s < S; ++s) at[l][s] += r.position_step[l][s];
      }
    }
    for (int s = 0; s < S; ++s) {
      out[s] += r.ld;
      for (int l = 0; l < F::in; ++l) in[l][s] += r.channel_step[l][s];
    }
  }
}

template <class T, int S, int O>
SYMCONV_INLINE void pack_staged_run(const StagedLine<T>& g, const StagedRun<T>& r) {
  const Element<T>* in[1][S];
  Stored<T>* out[S];
#pragma GCC unroll 8
  for (int s = 0; s < S; ++s) {
    in[0][s] = r.source[s] + (r.step[s] ? g.from : 0);
    out[s] = g.out + r.row[s < O ? s : 0];
  }
  const int64_t positions = g.positions, ld = g.ld;
  for (int64_t c = r.channels; c > 0; --c) {
    reduce_line<Sum<T>, S, O, Plain>(in, out, 0, positions, ld, true);
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) in[0][s] += r.step[s], out[s] += ld;
  }
}

template <class T, bool kSum>
void pack_staged_line(const StagedLine<T>& line) {
  const StagedLine<T> g = line;  // what is stored cannot change it
  for (int64_t i = 0; i < g.runs; ++i) {
    const StagedRun<T>& r = g.run[i];
    if (r.log_sources == 0)
      pack_staged_run<T, 1, 1>(g, r);
    else if (r.log_sources == 1)
      pack_staged_run<T, 2, kSum ? 1 : 2>(g, r);
    else if (r.log_sources == 2)
      pack_staged_run<T, 4, kSum ? 1 : 4>(g, r);
    else
      pack_staged_run<T, 8, kSum ? 1 : 8>(g, r);
  }
}

// Sources and results share an offset each, and results three bases.
template <class X, int S, class T>
SYMCONV_INLINE void fold_blocks_at(const T* const (&in)[S], int64_t at, T* out, int64_t apart) {
  X v[S];
#pragma GCC unroll 8
  for (int s = 0; s < S; ++s) v[s] = read<X>(in[s] + at);
  butterfly(v);
  T* const base[3] = {out, out + 3 * apart, out + 6 * apart};
#pragma GCC unroll 8
  for (int s = 0; s < S; ++s) write<X>(base[s / 3] + s % 3 * apart, v[s]);
}

// A column of vectors: rows are short, and are run over by the inner loop.
template <class X, int S, class T>
SYMCONV_INLINE void fold_block_rows(const T* const (&in)[S], const BlocksArgs<T>& r, int64_t at) {
  const int64_t step = r.step, ld = r.ld, apart = r.apart;
  T* out = r.out + at;
  for (int64_t left = r.rows; left > 0; --left, at += step, out += ld)
    fold_blocks_at<X, S>(in, at, out, apart);
}

// Rows that fill a half of a vector, as eight orbits do in AVX-512, have vectors of that size.
template <class T, int S>
void fold_blocks(const BlocksArgs<T>& r) {
  constexpr int64_t L = Vec<T>::lanes, half = L / 2;
  const T* in[S];
#pragma GCC unroll 8
  for (int s = 0; s < S; ++s) in[s] = r.source[s];
  const int64_t length = r.length;
  int64_t i = 0;
  for (; i + L <= length; i += L) fold_block_rows<V<T>, S>(in, r, i);
  if constexpr (SYMCONV_BYTES == 64)
    for (; i + half <= length; i += half) fold_block_rows<HalfV<T>, S>(in, r, i);
  for (; i < length; ++i) fold_block_rows<T, S>(in, r, i);
}
