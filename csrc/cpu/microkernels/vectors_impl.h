// Vectors: loads and stores, whole ones and parts; sums of several; shuffles and transposes. Included by
// microkernels/kernels_impl.h, inside its namespace.

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

// Of half the size.
template <class T>
struct HalfVec {
  typedef T type __attribute__((vector_size(SYMCONV_BYTES / 2), aligned(sizeof(T)), may_alias));
};
template <class T>
using HalfV = typename HalfVec<T>::type;

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

// Elements of a.
template <class T>
inline V<T> pick(V<T> a, Mask<T> order) {
#if defined(__clang__)
  constexpr int L = Vec<T>::lanes;
  V<T> v;
  for (int i = 0; i < L; ++i) v[i] = a[order[i]];
  return v;
#else
  return __builtin_shuffle(a, order);
#endif
}

// Vectors a and b, element by element in turn, in each part of N elements by itself: the first half of every
// part, or the second.
template <class T, bool kSecond, int N = Vec<T>::lanes>
inline V<T> interleave(V<T> a, V<T> b) {
  constexpr int L = Vec<T>::lanes, h = kSecond ? N / 2 : 0;
  Mask<T> order;
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) order[i] = i / N * N + h + i % N / 2 + (i % 2) * L;
  return pick<T>(a, b, order);
}

// The lower halves of a and b, or the upper ones.
template <class T, bool kUpper>
inline V<T> halves(V<T> a, V<T> b) {
  constexpr int L = Vec<T>::lanes, h = kUpper ? L / 2 : 0;
  Mask<T> order;
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) order[i] = h + i % (L / 2) + i / (L / 2) * L;
  return pick<T>(a, b, order);
}

// Transpose of the squares of N x N elements, side by side, that N vectors are: log2(N) perfect shuffles of
// row i with row i + N/2.
template <class T, int N>
SYMCONV_INLINE void transpose_parts(V<T>* v) {
#pragma GCC unroll 4
  for (int stage = 1; stage < N; stage *= 2) {
    V<T> next[N];
#pragma GCC unroll 8
    for (int i = 0; i < N / 2; ++i) {
      next[2 * i] = interleave<T, false, N>(v[i], v[i + N / 2]);
      next[2 * i + 1] = interleave<T, true, N>(v[i], v[i + N / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) v[i] = next[i];
  }
}

// Transpose of L vectors. With AVX2 only the halves of a vector are brought to the other one, once: its
// shuffles stay within 16 bytes, and a perfect one of 32 takes two instructions.
template <class T>
inline void transpose(V<T> (&v)[Vec<T>::lanes]) {
  constexpr int L = Vec<T>::lanes, N = 16 / sizeof(T);
  if constexpr (sizeof(V<T>) != 32) {
    transpose_parts<T, L>(v);
  } else {
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) {
      const V<T> a = v[i], b = v[i + N];
      v[i] = halves<T, false>(a, b), v[i + N] = halves<T, true>(a, b);
    }
    transpose_parts<T, N>(v), transpose_parts<T, N>(v + N);
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
