// From a tile of sums to the results: minimal filtering, butterfly, bias, and the store to each orbit member.
// Included by microkernels/kernels_impl.h, inside its namespace.

// The same of elements that are narrower than their sums.
template <class A, class E>
inline void write_part(E* to, V<A> v, int64_t count) {
  if constexpr (Same<A, E>::value) {
    save_part<A>(to, v, count);
  } else {
    uint16_t whole[Vec<A>::lanes];
    write<V<A>>(reinterpret_cast<E*>(whole), v);
    save_part<uint16_t>(reinterpret_cast<uint16_t*>(to), load(whole), count);
  }
}

// A whole vector at an address that is a multiple of its size, past the caches where the CPU can: the old
// line is not read first.
template <class E, class X>
inline void stream(E* to, X v) {
  write<X>(to, v);
}
template <class E>
constexpr bool kStreams = false;
#ifdef SYMCONV_STREAM
template <>
constexpr bool kStreams<float> = true;
template <>
constexpr bool kStreams<double> = true;
template <>
inline void stream<float, V<float>>(float* to, V<float> v) {
  SYMCONV_STREAM(reinterpret_cast<SYMCONV_STREAMED*>(to), (SYMCONV_STREAMED)v);
}
template <>
inline void stream<double, V<double>>(double* to, V<double> v) {
  SYMCONV_STREAM(reinterpret_cast<SYMCONV_STREAMED*>(to), (SYMCONV_STREAMED)v);
}
#endif

// Result lines of all members for the columns at `c` of row `r`.
template <class T, class X, int G, class F, bool kStream = false>
inline void store_at(const StoreArgs<T>& a, Element<T>* const (&out)[G], const Sum<T>* tile, int64_t r,
                     int64_t c, int64_t at) {
  X y[F::out][G];
#pragma GCC unroll 8
  for (int g = 0; g < G; ++g) {
    X m[F::in], lines[F::out];
#pragma GCC unroll 6
    for (int i = 0; i < F::in; ++i) m[i] = read<X>(tile + g * a.parity_stride + i * a.product_stride + c);
    F::result(m, lines);
#pragma GCC unroll 4
    for (int i = 0; i < F::out; ++i) y[i][g] = lines[i];
  }
#pragma GCC unroll 4
  for (int i = 0; i < F::out; ++i) {
    if (i >= a.lines) break;
    butterfly(y[i]);
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) {
      if (a.bias[0]) {
        if (a.bias_of_row)
          y[i][g] += read<Sum<T>>(a.bias[g] + r);
        else
          y[i][g] += read<X>(a.bias[g] + c);
      }
      Element<T>* const to = out[g] + i * a.line_stride + at;
      kStream ? stream<Element<T>, X>(to, y[i][g]) : write<X>(to, y[i][g]);
    }
  }
}

// A field of arguments, loaded by itself. The compiler joins loads of neighbours to vectors, which cannot be
// had from the fields' own stores before all stores in front of those are done, of results among them.
template <class X>
SYMCONV_INLINE X alone(const X& field) {
  X value = field;
  asm volatile("" : "+r"(value));
  return value;
}

// Of our own: what is stored cannot change them.
template <class T, int G>
SYMCONV_INLINE StoreArgs<T> own_copy(const StoreArgs<T>& args) {
  StoreArgs<T> a;
  a.tile = alone(args.tile);
  a.parity_stride = alone(args.parity_stride), a.product_stride = alone(args.product_stride);
  a.ld = alone(args.ld), a.rows = alone(args.rows), a.cols = alone(args.cols);
  a.line_stride = alone(args.line_stride), a.lines = alone(args.lines);
  a.row_offset = alone(args.row_offset), a.col_offset = alone(args.col_offset);
  a.bias_of_row = args.bias_of_row, a.stream = args.stream;
#pragma GCC unroll 8
  for (int g = 0; g < G; ++g) a.out[g] = alone(args.out[g]), a.bias[g] = alone(args.bias[g]);
  return a;
}

template <class T, int G, class F>
void store(const StoreArgs<T>& args) {
  using A = Sum<T>;
  constexpr int L = Vec<A>::lanes;
  const StoreArgs<T> a = own_copy<T, G>(args);
  for (int64_t r = 0; r < a.rows; ++r) {
    const A* tile = a.tile + r * a.ld;
    Element<T>* out[G];
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) out[g] = alone(a.out[g]) + a.row_offset[r];
    if (a.col_offset || a.cols < L) {
      for (int64_t c = 0; c < a.cols; ++c)
        store_at<T, A, G, F>(a, out, tile, r, c, a.col_offset ? a.col_offset[c] : c);
      continue;
    }
    if constexpr (kStreams<Element<T>>) {
      if (a.stream) {
        for (int64_t c = 0; c < a.cols; c += L) store_at<T, V<A>, G, F, true>(a, out, tile, r, c, c);
        continue;
      }
    }
    for (int64_t c = 0; c + L <= a.cols; c += L) store_at<T, V<A>, G, F>(a, out, tile, r, c, c);
    if (a.cols % L) store_at<T, V<A>, G, F>(a, out, tile, r, a.cols - L, a.cols - L);
  }
}
