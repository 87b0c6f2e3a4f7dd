// Bodies of the inner loops. Included by one file for each instruction set, which defines
// SYMCONV_ISA (a namespace), SYMCONV_BYTES (of a vector), SYMCONV_ROWS2 and SYMCONV_ROWS3
// (rows of a matrix tile with 2 and 3 vectors: as many as the registers hold).
// No standard header may be included here: inline functions compiled for a wide instruction set
// could be kept by the linker for everybody.

namespace symconv::SYMCONV_ISA {

template <class T>
struct Vec {
  typedef T type __attribute__((vector_size(SYMCONV_BYTES), aligned(sizeof(T)), may_alias));
  static constexpr int lanes = SYMCONV_BYTES / sizeof(T);
};

template <class T>
using V = typename Vec<T>::type;

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

#include "winograd.h"

#include "gemm_impl.h"

// In-place Walsh-Hadamard transform of S values, S a power of two.
template <int S, class X>
inline void butterfly(X (&v)[S]) {
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
inline X total(X (&v)[S]) {
#pragma GCC unroll 4
  for (int h = S / 2; h > 0; h /= 2)
#pragma GCC unroll 4
    for (int i = 0; i < h; ++i) v[i] += v[i + h];
  return v[0];
}

// One value of every output: sources of each line reduced, then the lines transformed. `step` of the
// input is 1 or 0. The panel lives in the second-level cache: lines are asked for `ahead` of the stores,
// which would otherwise wait for each of them (measured: 1.3 times the speed of a whole forward).
template <class T, class X, int S, bool kFold, class F>
inline void reduce_at(const T* const (&in)[F::in][S], T* const (&out)[S], int64_t product_stride, int64_t at,
                      int64_t step, int64_t ahead) {
  constexpr int O = kFold ? S : 1;
  X folded[O][F::in];
#pragma GCC unroll 6
  for (int l = 0; l < F::in; ++l) {
    X v[S];
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) v[s] = *reinterpret_cast<const X*>(in[l][s] + at * step);
    if constexpr (kFold) {
      butterfly(v);
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) folded[s][l] = v[s];
    } else {
      folded[0][l] = total(v);
    }
  }
#pragma GCC unroll 8
  for (int o = 0; o < O; ++o) {
    F::data(folded[o]);
#pragma GCC unroll 6
    for (int l = 0; l < F::in; ++l) {
      T* to = out[o] + l * product_stride + at;
      __builtin_prefetch(to + ahead, 1);
      *reinterpret_cast<X*>(to) = folded[o][l];
    }
  }
}

// Vectors over `count` contiguous elements; the last vector overlaps the one before it, which
// writes the same values twice and needs no mask.
template <class T, int S, bool kFold, class F>
inline void reduce_line(const T* const (&in)[F::in][S], T* const (&out)[S], int64_t product_stride,
                        int64_t count, int64_t ahead) {
  constexpr int L = Vec<T>::lanes;
  if (count >= L) {
    for (int64_t c = 0; c + L <= count; c += L)
      reduce_at<T, V<T>, S, kFold, F>(in, out, product_stride, c, 1, ahead);
    if (count % L) reduce_at<T, V<T>, S, kFold, F>(in, out, product_stride, count - L, 1, ahead);
    return;
  }
  for (int64_t c = 0; c < count; ++c) reduce_at<T, T, S, kFold, F>(in, out, product_stride, c, 1, ahead);
}

template <class T, int S, bool kFold, class F>
void pack_pixels(const RunArgs<T>& r) {
  const T* in[F::in][S];
  T* out[S];
  for (int s = 0; s < S; ++s) {
    out[s] = r.out[s];
    for (int l = 0; l < F::in; ++l) in[l][s] = r.source[l][s];
  }
  for (int64_t p = 0; p < r.positions; ++p) {
    reduce_line<T, S, kFold, F>(in, out, r.product_stride, r.channels, 2 * r.ld);
    for (int s = 0; s < S; ++s) {
      out[s] += r.ld;
      for (int l = 0; l < F::in; ++l) in[l][s] += r.position_step[l][s];
    }
  }
}

template <class T, int S, bool kFold, class F>
void pack_planes(const RunArgs<T>& r) {
  const T* in[F::in][S];
  T* out[S];
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
      reduce_line<T, S, kFold, F>(in, out, r.product_stride, r.positions, r.ld);
    } else {
      const T* at[F::in][S];
      for (int l = 0; l < F::in; ++l)
        for (int s = 0; s < S; ++s) at[l][s] = in[l][s];
      for (int64_t p = 0; p < r.positions; ++p) {
        reduce_at<T, T, S, kFold, F>(at, out, r.product_stride, p, 0, r.ld);
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

// Result lines of all members for the columns at `c` of row `r`.
template <class T, class X, int G, class F>
inline void store_at(const StoreArgs<T>& a, T* const (&out)[G], const T* tile, int64_t r, int64_t c,
                     int64_t at) {
  X y[F::out][G];
#pragma GCC unroll 8
  for (int g = 0; g < G; ++g) {
    X m[F::in], lines[F::out];
#pragma GCC unroll 6
    for (int i = 0; i < F::in; ++i)
      m[i] = *reinterpret_cast<const X*>(tile + g * a.parity_stride + i * a.product_stride + c);
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
          y[i][g] += a.bias[g][r];
        else
          y[i][g] += *reinterpret_cast<const X*>(a.bias[g] + c);
      }
      *reinterpret_cast<X*>(out[g] + i * a.line_stride + at) = y[i][g];
    }
  }
}

template <class T, int G, class F>
void store(const StoreArgs<T>& a) {
  constexpr int L = Vec<T>::lanes;
  for (int64_t r = 0; r < a.rows; ++r) {
    const T* tile = a.tile + r * a.ld;
    T* out[G];
    for (int g = 0; g < G; ++g) out[g] = a.out[g] + a.row_offset[r];
    if (a.col_offset || a.cols < L) {
      for (int64_t c = 0; c < a.cols; ++c)
        store_at<T, T, G, F>(a, out, tile, r, c, a.col_offset ? a.col_offset[c] : c);
      continue;
    }
    for (int64_t c = 0; c + L <= a.cols; c += L) store_at<T, V<T>, G, F>(a, out, tile, r, c, c);
    if (a.cols % L) store_at<T, V<T>, G, F>(a, out, tile, r, a.cols - L, a.cols - L);
  }
}

// Vectors a and b, element by element in turn: the first half of the result, or the second.
template <class T, bool kSecond>
inline V<T> zip(V<T> a, V<T> b) {
  constexpr int L = Vec<T>::lanes, h = kSecond ? L / 2 : 0;
  typedef decltype(V<T>{} < V<T>{}) Mask;
#if defined(__clang__)
  V<T> v;
  for (int i = 0; i < L / 2; ++i) v[2 * i] = a[h + i], v[2 * i + 1] = b[h + i];
  return v;
#else
  Mask order;
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) order[i] = h + i / 2 + (i % 2) * L;
  return __builtin_shuffle(a, b, order);
#endif
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

// Folds one vector of weights for each source and tap, and stores every product.
template <class T, int S, class F>
inline void fold_and_store(const WeightArgs<T>& w, V<T> (&raw)[3][S], int64_t o) {
  constexpr int L = Vec<T>::lanes;
  constexpr int taps = F::in > 1 ? 3 : 1;
  V<T> g[S][3] = {};
#pragma GCC unroll 3
  for (int t = 0; t < taps; ++t) {
    butterfly(raw[t]);
    for (int s = 0; s < S; ++s) g[s][t] = raw[t][s] * w.scale;
  }
  for (int s = 0; s < S; ++s) {
    V<T> products[F::in];
    F::filter(g[s], products);
    for (int i = 0; i < F::in; ++i) {
      T* out = w.out[s] + o * w.out_stride + i * w.product_stride[s];
      __builtin_prefetch(out + L * w.out_stride, 1);
      if (w.stored == L) {
        save(out, products[i]);
      } else {
        for (int l = 0; l < w.stored; ++l) out[l] = products[i][l];
      }
    }
  }
}

// Weights that are contiguous along `others` come in whole vectors and are transposed in registers;
// all else is gathered one by one.
template <class T, int S, class F>
void fold_weights(const WeightArgs<T>& w) {
  constexpr int L = Vec<T>::lanes;
  constexpr int taps = F::in > 1 ? 3 : 1;
  int64_t o = 0;
  if (w.other_stride == 1 && w.lanes == L) {
    for (; o + L <= w.others; o += L) {
      V<T> block[3][S][L];
      for (int t = 0; t < taps; ++t)
        for (int s = 0; s < S; ++s) {
          const T* source = w.source + o + w.tap[s] + t * w.tap_stride;
          V<T> v[L];
#pragma GCC unroll 16
          for (int l = 0; l < L; ++l) {
            __builtin_prefetch(source + l * w.lane_stride + 2 * L);
            v[l] = load(source + l * w.lane_stride);
          }
          transpose<T>(v);
#pragma GCC unroll 16
          for (int l = 0; l < L; ++l) block[t][s][l] = v[l];
        }
      for (int l = 0; l < L; ++l) {
        V<T> raw[3][S];
        for (int t = 0; t < taps; ++t)
          for (int s = 0; s < S; ++s) raw[t][s] = block[t][s][l];
        fold_and_store<T, S, F>(w, raw, o + l);
      }
    }
  }
  for (; o < w.others; ++o) {
    V<T> raw[3][S];
    for (int t = 0; t < taps; ++t)
      for (int s = 0; s < S; ++s) {
        const T* source = w.source + o * w.other_stride + w.tap[s] + t * w.tap_stride;
        if (w.lane_stride == 1 && w.lanes == L) {
          raw[t][s] = load(source);
          continue;
        }
        T lanes[L] = {};
        for (int l = 0; l < w.lanes; ++l) lanes[l] = source[l * w.lane_stride];
        raw[t][s] = load(lanes);
      }
    fold_and_store<T, S, F>(w, raw, o);
  }
}

// Products of one value: the lines that exist, spread as the adjoint of `result` does.
template <class T, class X, class F>
inline void spread_at(const GatherArgs<T>& g, const T* source, X (&products)[F::in]) {
  X lines[F::out];
#pragma GCC unroll 4
  for (int i = 0; i < F::out; ++i)
    lines[i] = i < g.lines ? *reinterpret_cast<const X*>(source + i * g.line_stride) : X{};
  F::spread(lines, products);
}

template <class T, class F>
void gather(const GatherArgs<T>& g) {
  constexpr int L = Vec<T>::lanes;
  for (int64_t p0 = 0; p0 < g.positions; p0 += L) {
    const int64_t n = g.positions - p0 < L ? g.positions - p0 : L;
    int64_t c = 0;
    if (g.channel_stride == 1 && n == L) {
      for (; c + L <= g.channels; c += L) {
        V<T> block[F::in][L];
        for (int p = 0; p < L; ++p) {
          V<T> products[F::in];
          spread_at<T, V<T>, F>(g, g.source + g.offset[p0 + p] + c, products);
#pragma GCC unroll 6
          for (int i = 0; i < F::in; ++i) block[i][p] = products[i];
        }
        for (int i = 0; i < F::in; ++i) {
          V<T> v[L];
#pragma GCC unroll 16
          for (int p = 0; p < L; ++p) v[p] = block[i][p];
          transpose<T>(v);
#pragma GCC unroll 16
          for (int p = 0; p < L; ++p) save(g.out + i * g.product_stride + (c + p) * g.ld + p0, v[p]);
        }
      }
    }
    for (; c < g.channels; ++c)
      for (int64_t p = p0; p < p0 + n; ++p) {
        T products[F::in];
        spread_at<T, T, F>(g, g.source + g.offset[p] + c * g.channel_stride, products);
        for (int i = 0; i < F::in; ++i) g.out[i * g.product_stride + c * g.ld + p] = products[i];
      }
  }
}

#include "depthwise_impl.h"
#include "depthwise_lanes_impl.h"

#define SYMCONV_ROW4(f, F, ...) \
  {f<T, 1, ##__VA_ARGS__, F>, f<T, 2, ##__VA_ARGS__, F>, f<T, 4, ##__VA_ARGS__, F>, f<T, 8, ##__VA_ARGS__, F>}
#define SYMCONV_ROW3(f, F, ...) \
  {f<T, 1, ##__VA_ARGS__, F>, f<T, 2, ##__VA_ARGS__, F>, f<T, 4, ##__VA_ARGS__, F>, nullptr}
#define SYMCONV_ROWS(f, ...)                                                  \
  {SYMCONV_ROW4(f, Plain, ##__VA_ARGS__), SYMCONV_ROW3(f, F2, ##__VA_ARGS__), \
   SYMCONV_ROW3(f, F4, ##__VA_ARGS__)}

template <class T>
constexpr Kernels<T> kTable = {
    Vec<T>::lanes,
    {0, SYMCONV_ROWS1, SYMCONV_ROWS2, SYMCONV_ROWS3},
    gemm<T>,
    SYMCONV_ROWS(pack_pixels, true),
    SYMCONV_ROWS(pack_planes, true),
    SYMCONV_ROWS(pack_pixels, false),
    SYMCONV_ROWS(pack_planes, false),
    SYMCONV_ROWS(store),
    SYMCONV_ROWS(fold_weights),
    {gather<T, Plain>, gather<T, F2>, gather<T, F4>},
    kDepthwise<T>,
};

const Kernels<float>& table(float) { return kTable<float>; }
const Kernels<double>& table(double) { return kTable<double>; }

}  // namespace symconv::SYMCONV_ISA
