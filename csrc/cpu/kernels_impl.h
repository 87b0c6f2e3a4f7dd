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
inline V<T> load(const T* p) { return *reinterpret_cast<const V<T>*>(p); }

template <class T>
inline void save(T* p, V<T> v) { *reinterpret_cast<V<T>*>(p) = v; }

// Matrix tile. Row addresses are three bases and multiples of lda, so that fourteen rows need
// five registers and not fourteen.
template <class T, int R, int N>
void gemm_tile(const GemmArgs<T>& g) {
  constexpr int L = Vec<T>::lanes;
  V<T> acc[R][N];
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) acc[r][n] = g.add ? load(g.c + r * g.ldc + n * L) : V<T>{};
  const int64_t lda = g.lda, ldb = g.ldb;
  for (int64_t s = 0; s < g.segments; ++s) {
    const T* a0 = g.a + g.a_offset[s];
    const T* a5 = a0 + 5 * lda;
    const T* a10 = a0 + 10 * lda;
    const T* b = g.b + g.b_offset[s];
    const int64_t k_end = g.k[s];
    for (int64_t k = 0; k < k_end; ++k) {
      V<T> bv[N];
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) bv[n] = load(b + n * L);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const T* base = r < 5 ? a0 : r < 10 ? a5 : a10;
        const T x = base[(r % 5) * lda];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) acc[r][n] += x * bv[n];
      }
      ++a0, ++a5, ++a10, b += ldb;
    }
  }
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) save(g.c + r * g.ldc + n * L, acc[r][n]);
}

template <class T, int N, int R>
inline void gemm_rows(int rows, const GemmArgs<T>& g) {
  if (rows == R) return gemm_tile<T, R, N>(g);
  if constexpr (R > 1) gemm_rows<T, N, R - 1>(rows, g);
}

template <class T>
void gemm(int rows, int vectors, const GemmArgs<T>& g) {
  if (vectors == 1) return gemm_rows<T, 1, SYMCONV_ROWS1>(rows, g);
  if (vectors == 2) return gemm_rows<T, 2, SYMCONV_ROWS2>(rows, g);
  gemm_rows<T, 3, SYMCONV_ROWS3>(rows, g);
}

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

template <class T, int S, bool kFold, class X>
inline void reduce_and_save(X (&v)[S], T* const (&out)[S], int64_t at) {
  if constexpr (kFold) {
    butterfly(v);
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) *reinterpret_cast<X*>(out[s] + at) = v[s];
  } else {
    *reinterpret_cast<X*>(out[0] + at) = total(v);
  }
}

// Vectors over `count` contiguous elements; the last vector overlaps the one before it, which
// writes the same values twice and needs no mask.
template <class T, int S, bool kFold>
inline void reduce_line(const T* const (&in)[S], T* const (&out)[S], int64_t count) {
  constexpr int L = Vec<T>::lanes;
  if (count >= L) {
    for (int64_t c = 0;; c += L) {
      if (c > count - L) {
        if (c >= count) break;
        c = count - L;
      }
      V<T> v[S];
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) v[s] = load(in[s] + c);
      reduce_and_save<T, S, kFold>(v, out, c);
    }
    return;
  }
  for (int64_t c = 0; c < count; ++c) {
    T v[S];
    for (int s = 0; s < S; ++s) v[s] = in[s][c];
    reduce_and_save<T, S, kFold>(v, out, c);
  }
}

template <class T, int S, bool kFold>
void pack_pixels(const RunArgs<T>& r) {
  const T* in[S];
  T* out[S];
  for (int s = 0; s < S; ++s) in[s] = r.source[s], out[s] = r.out[s];
  for (int64_t p = 0; p < r.positions; ++p) {
    reduce_line<T, S, kFold>(in, out, r.channels);
    for (int s = 0; s < S; ++s) in[s] += r.position_step[s], out[s] += r.ld;
  }
}

template <class T, int S, bool kFold>
void pack_planes(const RunArgs<T>& r) {
  const T* in[S];
  T* out[S];
  bool unit = true;
  for (int s = 0; s < S; ++s) {
    in[s] = r.source[s], out[s] = r.out[s];
    unit = unit && r.position_step[s] == 1;
  }
  for (int64_t c = 0; c < r.channels; ++c) {
    if (unit) {
      reduce_line<T, S, kFold>(in, out, r.positions);
    } else {
      for (int64_t p = 0; p < r.positions; ++p) {
        T v[S];
        for (int s = 0; s < S; ++s) v[s] = in[s][p * r.position_step[s]];
        reduce_and_save<T, S, kFold>(v, out, p);
      }
    }
    for (int s = 0; s < S; ++s) in[s] += r.channel_step[s], out[s] += r.ld;
  }
}

template <class T, int G>
inline void store_row(const StoreArgs<T>& a, int64_t r) {
  constexpr int L = Vec<T>::lanes;
  const T* tile = a.tile + r * a.ld;
  T* out[G];
  for (int g = 0; g < G; ++g) out[g] = a.out[g] + a.row_offset[r];
  const bool bias = a.bias[0] != nullptr;
  int64_t c = 0;
  if (!a.col_offset && a.cols >= L) {
    for (;; c += L) {
      if (c > a.cols - L) {
        if (c >= a.cols) return;
        c = a.cols - L;
      }
      V<T> v[G];
#pragma GCC unroll 8
      for (int g = 0; g < G; ++g) v[g] = load(tile + g * a.parity_stride + c);
      butterfly(v);
#pragma GCC unroll 8
      for (int g = 0; g < G; ++g) {
        if (bias) v[g] += a.bias_of_row ? a.bias[g][r] - V<T>{} : load(a.bias[g] + c);
        save(out[g] + c, v[g]);
      }
    }
  }
  for (; c < a.cols; ++c) {
    T v[G];
    for (int g = 0; g < G; ++g) v[g] = tile[g * a.parity_stride + c];
    butterfly(v);
    const int64_t at = a.col_offset ? a.col_offset[c] : c;
    for (int g = 0; g < G; ++g) out[g][at] = bias ? v[g] + a.bias[g][a.bias_of_row ? r : c] : v[g];
  }
}

template <class T, int G>
void store(const StoreArgs<T>& a) {
  for (int64_t r = 0; r < a.rows; ++r) store_row<T, G>(a, r);
}

template <class T, int S>
void fold_weights(const WeightArgs<T>& w) {
  constexpr int L = Vec<T>::lanes;
  for (int64_t o = 0; o < w.others; ++o) {
    const T* source = w.source + o * w.other_stride;
    T raw[S][L] = {};
    for (int s = 0; s < S; ++s)
      for (int l = 0; l < w.lanes; ++l) raw[s][l] = source[l * w.lane_stride + w.tap[s]];
    V<T> v[S];
    for (int s = 0; s < S; ++s) v[s] = load(raw[s]) * w.scale;
    butterfly(v);
    for (int s = 0; s < S; ++s) {
      T* out = w.out[s] + o * w.out_stride;
      if (w.stored == L) {
        save(out, v[s]);
      } else {
        for (int l = 0; l < w.stored; ++l) out[l] = v[s][l];
      }
    }
  }
}

// Blocks of one vector of positions: channel by channel the reads of a block hit the same lines.
template <class T>
void gather_rows(const T* source, const int64_t* offset, int64_t positions, int64_t channel_stride,
                 int64_t channels, T* out, int64_t ld) {
  constexpr int L = Vec<T>::lanes;
  for (int64_t p0 = 0; p0 < positions; p0 += L) {
    const int64_t n = positions - p0 < L ? positions - p0 : L;
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t p = p0; p < p0 + n; ++p) out[c * ld + p] = source[offset[p] + c * channel_stride];
  }
}

template <class T>
constexpr Kernels<T> kTable = {
    Vec<T>::lanes,
    {0, SYMCONV_ROWS1, SYMCONV_ROWS2, SYMCONV_ROWS3},
    gemm<T>,
    {pack_pixels<T, 1, true>, pack_pixels<T, 2, true>, pack_pixels<T, 4, true>, pack_pixels<T, 8, true>},
    {pack_planes<T, 1, true>, pack_planes<T, 2, true>, pack_planes<T, 4, true>, pack_planes<T, 8, true>},
    {pack_pixels<T, 1, false>, pack_pixels<T, 2, false>, pack_pixels<T, 4, false>, pack_pixels<T, 8, false>},
    {pack_planes<T, 1, false>, pack_planes<T, 2, false>, pack_planes<T, 4, false>, pack_planes<T, 8, false>},
    {store<T, 1>, store<T, 2>, store<T, 4>, store<T, 8>},
    {fold_weights<T, 1>, fold_weights<T, 2>, fold_weights<T, 4>, fold_weights<T, 8>},
    gather_rows<T>,
};

const Kernels<float>& table(float) { return kTable<float>; }
const Kernels<double>& table(double) { return kTable<double>; }

}  // namespace symconv::SYMCONV_ISA
