// Bodies of the inner loops. Included by one file for each instruction set and element type, which defines
// SYMCONV_OF (the type), SYMCONV_ISA (a namespace), SYMCONV_BYTES (of a vector), SYMCONV_ROWS2 and
// SYMCONV_ROWS3 (rows of a matrix tile with 2 and 3 vectors: as many as the registers hold) and SYMCONV_SUMS
// (vectors of a tile that the registers hold beside all else). No standard header may be included here:
// inline functions compiled for a wide instruction set could be kept by the linker for everybody.

#define SYMCONV_INLINE __attribute__((always_inline)) inline

namespace symconv::SYMCONV_ISA {

template <class T>
struct Vec {
  typedef T type __attribute__((vector_size(SYMCONV_BYTES), aligned(sizeof(T)), may_alias));
  static constexpr int lanes = SYMCONV_BYTES / sizeof(T);
};

// 16-bit elements, moved as they are: as many as a vector of their sums has.
template <>
struct Vec<uint16_t> {
  typedef uint16_t type __attribute__((vector_size(SYMCONV_BYTES / 2), aligned(2), may_alias));
  static constexpr int lanes = SYMCONV_BYTES / 4;
};

template <class T>
using V = typename Vec<T>::type;

template <class T>
using Mask = decltype(V<T>{} < V<T>{});

template <class T>
inline V<T> load(const T* p) {
  return *reinterpret_cast<const V<T>*>(p);
}

template <class T>
inline void save(T* p, V<T> v) {
  *reinterpret_cast<V<T>*>(p) = v;
}

// Element type of a value, for constants; never called.
float scalar(float);
float scalar(V<float>);
double scalar(double);
double scalar(V<double>);

#include "elements_impl.h"

#include "winograd.h"

#include "gemm_impl.h"

#ifdef SYMCONV_MIRROR_ROWS
#include "mirror_impl.h"
#endif

// In-place Walsh-Hadamard transform of S values, S a power of two.
template <int S, class X>
[[gnu::always_inline]] inline void butterfly(X (&v)[S]) {
#pragma GCC unroll 4
  for (int h = 1; h < S; h *= 2)
#pragma GCC unroll 8
    for (int i = 0; i < S; ++i)
      if (!(i & h)) {
        const X a = v[i], b = v[i | h];
        v[i] = a + b, v[i | h] = a - b;
      }
}

template <int S, class X>
[[gnu::always_inline]] inline X total(X (&v)[S]) {
#pragma GCC unroll 4
  for (int h = S / 2; h > 0; h /= 2)
#pragma GCC unroll 4
    for (int i = 0; i < h; ++i) v[i] += v[i + h];
  return v[0];
}

#include "pack_impl.h"

// A whole vector at an address that is a multiple of its size, past the caches where the CPU can: the old
// line is not read first.
template <class E, class X>
inline void stream(E* to, X v) {
  write<X>(to, v);
}
#ifdef SYMCONV_STREAM
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
    if (a.stream) {
      for (int64_t c = 0; c < a.cols; c += L) store_at<T, V<A>, G, F, true>(a, out, tile, r, c, c);
      continue;
    }
    for (int64_t c = 0; c + L <= a.cols; c += L) store_at<T, V<A>, G, F>(a, out, tile, r, c, c);
    if (a.cols % L) store_at<T, V<A>, G, F>(a, out, tile, r, a.cols - L, a.cols - L);
  }
}

// Elements of a and b, as if one lay behind the other.
template <class T>
inline V<T> pick(V<T> a, V<T> b, Mask<T> order) {
#if defined(__clang__)
  constexpr int L = Vec<T>::lanes;
  V<T> v;
  for (int i = 0; i < L; ++i) v[i] = order[i] < L ? a[order[i]] : b[order[i] - L];
  return v;
#else
  return __builtin_shuffle(a, b, order);
#endif
}

// Vectors a and b, element by element in turn: the first half of the result, or the second.
template <class T, bool kSecond>
inline V<T> zip(V<T> a, V<T> b) {
  constexpr int L = Vec<T>::lanes, h = kSecond ? L / 2 : 0;
  Mask<T> order;
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) order[i] = h + i / 2 + (i % 2) * L;
  return pick<T>(a, b, order);
}

// Transpose of L vectors: log2(L) perfect shuffles of row i with row i + L/2.
template <class T>
inline void transpose(V<T> (&v)[Vec<T>::lanes]) {
  constexpr int L = Vec<T>::lanes;
#pragma GCC unroll 4
  for (int stage = 1; stage < L; stage *= 2) {
    V<T> next[L];
#pragma GCC unroll 8
    for (int i = 0; i < L / 2; ++i) {
      next[2 * i] = zip<T, false>(v[i], v[i + L / 2]);
      next[2 * i + 1] = zip<T, true>(v[i], v[i + L / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) v[i] = next[i];
  }
}

// The first elements of a vector, fewer than it has; the others are zeros.
template <class T>
inline V<T> load_part(const T* from, int64_t count) {
  T whole[Vec<T>::lanes] = {};
  T* to = whole;
#pragma GCC unroll 4
  for (int part = Vec<T>::lanes / 2; part > 0; part /= 2)
    if (count & part) __builtin_memcpy(to, from, part * sizeof(T)), to += part, from += part;
  return load(whole);
}
template <class T>
inline void save_part(T* to, V<T> v, int64_t count) {
  T whole[Vec<T>::lanes];
  save(whole, v);
  const T* from = whole;
#pragma GCC unroll 4
  for (int part = Vec<T>::lanes / 2; part > 0; part /= 2)
    if (count & part) __builtin_memcpy(to, from, part * sizeof(T)), to += part, from += part;
}
#ifdef SYMCONV_MASKED_STORES
template <>
inline V<float> load_part<float>(const float* from, int64_t count) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from);
}
template <>
inline void save_part<float>(float* to, V<float> v, int64_t count) {
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), v);
}
template <>
inline V<double> load_part<double>(const double* from, int64_t count) {
  return _mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1), from);
}
template <>
inline void save_part<double>(double* to, V<double> v, int64_t count) {
  _mm512_mask_storeu_pd(to, static_cast<__mmask8>((1u << count) - 1), v);
}
template <>
inline V<uint16_t> load_part<uint16_t>(const uint16_t* from, int64_t count) {
  return (V<uint16_t>)_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << count) - 1), from);
}
template <>
inline void save_part<uint16_t>(uint16_t* to, V<uint16_t> v, int64_t count) {
  _mm256_mask_storeu_epi16(to, static_cast<__mmask16>((1u << count) - 1), (__m256i)v);
}
#endif

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

#include "folded_impl.h"

#include "turn_impl.h"

#include "scatter_impl.h"

#include "weights_impl.h"

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

#include "stage_impl.h"

#ifndef SYMCONV_PAIR_INSTRUCTIONS
#include "depthwise_impl.h"
#include "depthwise_lanes_impl.h"
#endif

#define SYMCONV_ROW4(f, F, ...) \
  {f<T, 1, ##__VA_ARGS__, F>, f<T, 2, ##__VA_ARGS__, F>, f<T, 4, ##__VA_ARGS__, F>, f<T, 8, ##__VA_ARGS__, F>}
#define SYMCONV_ROW3(f, F, ...) \
  {f<T, 1, ##__VA_ARGS__, F>, f<T, 2, ##__VA_ARGS__, F>, f<T, 4, ##__VA_ARGS__, F>, nullptr}
#define SYMCONV_ROWS(f, ...)                                                  \
  {SYMCONV_ROW4(f, Plain, ##__VA_ARGS__), SYMCONV_ROW3(f, F2, ##__VA_ARGS__), \
   SYMCONV_ROW3(f, F4, ##__VA_ARGS__)}
// And what there is where a tied axis is filtered.
#define SYMCONV_ROWS_AND(parities, f, ...)                                    \
  {SYMCONV_ROW4(f, Plain, ##__VA_ARGS__), SYMCONV_ROW3(f, F2, ##__VA_ARGS__), \
   SYMCONV_ROW3(f, F4, ##__VA_ARGS__), parities}
#define SYMCONV_ONLY(...) {__VA_ARGS__}
#define SYMCONV_PLAIN_ROWS(f, ...)                \
  {                                               \
    SYMCONV_ROW4(f, Plain, ##__VA_ARGS__), {}, {} \
  }

#define SYMCONV_SCATTER_LINES {scatter_lines<T, 3>, scatter_lines<T, 0>}
#define SYMCONV_SCATTER(K)                                                                              \
  {                                                                                                     \
    {scatter_store<T, K, 2, Plain>, scatter_store<T, K, 2, F2>, scatter_store<T, K, 2, F4>, nullptr}, { \
      scatter_store<T, K, 4, Plain>, nullptr, nullptr, scatter_store<T, K, 4, F4Parities>               \
    }                                                                                                   \
  }
#define SYMCONV_PLAIN_SCATTER(K)                                       \
  {                                                                    \
    {scatter_store<T, K, 2, Plain>}, { scatter_store<T, K, 4, Plain> } \
  }

#define SYMCONV_FOLDED_LAYOUT(planes) \
  {nullptr, folded<T, planes, 2>, folded<T, planes, 4>, folded<T, planes, 8>}
#define SYMCONV_FOLDED                                           \
  {SYMCONV_FOLDED_LAYOUT(false), SYMCONV_FOLDED_LAYOUT(true)}, { \
    0, kFoldedRows<1>, kFoldedRows<2>, kFoldedRows<3>            \
  }

#ifdef SYMCONV_MIRROR_ROWS
#define SYMCONV_MIRROR(W) SYMCONV_MIRROR_ROWS, SYMCONV_MIRROR_VECTORS, mirror<W>
#else
#define SYMCONV_MIRROR(W) 0, 0, nullptr
#endif

#ifdef SYMCONV_PAIR_INSTRUCTIONS

template <class T>
constexpr Kernels<T> kPairTable = {
    Vec<Sum<T>>::lanes,
    {0, SYMCONV_ROWS1, SYMCONV_ROWS2, SYMCONV_ROWS3},
    gemm<Word<T>>,
    nullptr,
    SYMCONV_FOLDED,
    nullptr,
    {},
    0,
    0,
    nullptr,
    SYMCONV_PLAIN_ROWS(pack_pixels, true),
    SYMCONV_PLAIN_ROWS(pack_planes, true),
    SYMCONV_PLAIN_ROWS(pack_pixels, false),
    SYMCONV_PLAIN_ROWS(pack_planes, false),
    SYMCONV_PLAIN_ROWS(store),
    SYMCONV_PLAIN_ROWS(store_turned),
    SYMCONV_SCATTER_LINES,
    {SYMCONV_PLAIN_SCATTER(3), SYMCONV_PLAIN_SCATTER(0)},
    SYMCONV_PLAIN_ROWS(fold_weights),
    {gather<T, Plain>, nullptr, nullptr},
    stage_elements<T>,
    split_elements<T>,
    combine<T>,
    nullptr,
    zip,
    {},
};

const Kernels<Pair>& table(Pair) { return kPairTable<Pair>; }

#else

template <class T>
constexpr Kernels<T> kTable = {
    Vec<T>::lanes,
    {0, SYMCONV_ROWS1, SYMCONV_ROWS2, SYMCONV_ROWS3},
    gemm<T>,
    taps<T>,
    SYMCONV_FOLDED,
    correlate<T>,
    {0, kCorrelateRowsOf<1>, kCorrelateRowsOf<2>, kCorrelateRowsOf<3>},
    SYMCONV_MIRROR(T),
    SYMCONV_ROWS_AND(SYMCONV_ONLY(pack_pixels<T, 1, true, F4Parities>), pack_pixels, true),
    SYMCONV_ROWS_AND(SYMCONV_ONLY(pack_planes<T, 1, true, F4Parities>), pack_planes, true),
    SYMCONV_ROWS_AND(SYMCONV_ONLY(nullptr, nullptr, pack_pixels<T, 4, false, F4Parities>), pack_pixels,
                     false),
    SYMCONV_ROWS_AND(SYMCONV_ONLY(nullptr, nullptr, pack_planes<T, 4, false, F4Parities>), pack_planes,
                     false),
    SYMCONV_ROWS_AND(SYMCONV_ONLY(store<T, 1, F4Textbook>), store),
    SYMCONV_ROWS_AND(SYMCONV_ONLY(store_turned<T, 1, F4Textbook>), store_turned),
    SYMCONV_SCATTER_LINES,
    {SYMCONV_SCATTER(3), SYMCONV_SCATTER(0)},
    SYMCONV_ROWS_AND(SYMCONV_ONLY(fold_weights<T, 1, F4Parities>, fold_weights<T, 2, F4Textbook>),
                     fold_weights),
    {gather<T, Plain>, gather<T, F2>, gather<T, F4>, nullptr},
    stage_line<T>,
    split_line<T>,
    combine<T>,
    add_subtract<T>,
    nullptr,
    {kDepthwiseSums<T>, gather_lanes<T>, scatter_lanes<T>},
};

// 16-bit types, widened while they are packed. What sees sums alone is that of float.
template <class T>
Kernels<T> wide_table(const Kernels<float>& sums) {
  return {
      sums.lanes,
      {0, SYMCONV_ROWS1, SYMCONV_ROWS2, SYMCONV_ROWS3},
      sums.gemm,
      nullptr,
      SYMCONV_FOLDED,
      nullptr,
      {},
      sums.mirror_rows,
      sums.mirror_vectors,
      sums.mirror,
      SYMCONV_PLAIN_ROWS(pack_pixels, true),
      SYMCONV_PLAIN_ROWS(pack_planes, true),
      SYMCONV_PLAIN_ROWS(pack_pixels, false),
      SYMCONV_PLAIN_ROWS(pack_planes, false),
      SYMCONV_PLAIN_ROWS(store),
      SYMCONV_PLAIN_ROWS(store_turned),
      SYMCONV_SCATTER_LINES,
      {SYMCONV_PLAIN_SCATTER(3), SYMCONV_PLAIN_SCATTER(0)},
      SYMCONV_PLAIN_ROWS(fold_weights),
      {gather<T, Plain>, nullptr, nullptr},
      stage_elements<T>,
      split_elements<T>,
      combine<T>,
      nullptr,
      nullptr,
      {sums.depthwise, gather_lanes<T>, scatter_lanes<T>},
  };
}

const Kernels<float>& table(float);  // in the file of its type

template <class T>
SYMCONV_INLINE const Kernels<T>& made_table(T) {
  if constexpr (Same<T, Sum<T>>::value) {
    return kTable<T>;
  } else {
    static const Kernels<T> made = wide_table<T>(table(float()));
    return made;
  }
}

const Kernels<SYMCONV_OF>& table(SYMCONV_OF type) { return made_table(type); }

#endif

}  // namespace symconv::SYMCONV_ISA
