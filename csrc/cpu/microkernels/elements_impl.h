// Elements as they lie in memory, to and from the type that sums have: `read<X>` and `write`, with X a vector
// or a scalar. Included by microkernels/kernels_impl.h, inside its namespace.
//
// 16-bit types are widened without loss and narrowed to nearest, ties to even. The bfloat16 instructions of
// AVX-512 flush denormals (below 1.2e-38) to zero; everything else here keeps them.

template <class To, class From>
inline To as_bits(From v) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To t;
  __builtin_memcpy(&t, &v, sizeof t);
  return t;
}

// Type of the sums of elements; never called.
float widen_type(float);
float widen_type(Half);
float widen_type(BFloat16);
double widen_type(double);

typedef uint16_t Shorts __attribute__((vector_size(SYMCONV_BYTES / 2), aligned(2), may_alias));

// F is float or a vector of floats, U as many 32-bit words: each with 16 bits of an element below.
template <class F, class U>
inline F widen(U u, BFloat16) {
  return as_bits<F>(U(u << 16));
}

template <class F, class U>
inline U narrow(F v, BFloat16) {
  const U u = as_bits<U>(v);
  const U nan = U{} + 0x7fc0u, rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return v == v ? rounded : nan;
}

template <class F, class U>
inline F widen(U u, Half) {
  const U magnitude = (u & 0x7fffu) << 13;
  const U finite = as_bits<U>(F(as_bits<F>(magnitude) * 0x1p112f));  // exponents 112 apart; denormals too
  const U wide = magnitude < 0x0f800000u ? finite : U(finite | 0x7f800000u);
  return as_bits<F>(U(wide | (u & 0x8000u) << 16));
}

template <class F, class U>
inline U narrow(F v, Half) {
  const U u = as_bits<U>(v), magnitude = u & 0x7fffffffu;
  const U normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const U tiny =
      as_bits<U>(F(as_bits<F>(magnitude) + 0.5f)) - 0x3f000000u;  // the sum rounds where denormals do
  const U infinite = U{} + 0x7c00u, nan = U{} + 0x7e00u;
  U h = magnitude < 0x38800000u ? tiny : normal;
  h = magnitude < 0x477ff000u ? h : infinite;
  h = magnitude <= 0x7f800000u ? h : nan;
  return h | (u & 0x80000000u) >> 16;
}

// Vectors of elements. Instructions for it come before the general way, which works everywhere.
template <class E>
inline V<float> widened(const E* p) {
  const Shorts s = *reinterpret_cast<const Shorts*>(p);
  return widen<V<float>, V<uint32_t>>(__builtin_convertvector(s, V<uint32_t>), E{});
}
template <class E>
inline void narrowed(E* p, V<float> v) {
  *reinterpret_cast<Shorts*>(p) = __builtin_convertvector((narrow<V<float>, V<uint32_t>>(v, E{})), Shorts);
}
#ifdef SYMCONV_HALF_INSTRUCTIONS
constexpr __mmask16 kAll = 0xffff;  // GCC 12 warns inside of the forms without a mask
inline V<float> widened(const Half* p) {
  return _mm512_maskz_cvtph_ps(kAll, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void narrowed(Half* p, V<float> v) {
  const __m256i h = _mm512_maskz_cvtps_ph(kAll, v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), h);
}
#endif
#ifdef SYMCONV_PAIR_INSTRUCTIONS
inline void narrowed(BFloat16* p, V<float> v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(v));
}
#endif

// Sums of which types take a dozen instructions to be narrowed.
template <class E>
constexpr bool kNarrowedByHand = sizeof(E) == 2;
#ifdef SYMCONV_HALF_INSTRUCTIONS
template <>
constexpr bool kNarrowedByHand<Half> = false;
#endif
#ifdef SYMCONV_PAIR_INSTRUCTIONS
template <>
constexpr bool kNarrowedByHand<BFloat16> = false;
#endif

template <class A, class B>
struct Same {
  static constexpr bool value = false;
};
template <class A>
struct Same<A, A> {
  static constexpr bool value = true;
};

// Elements in a value of sums: a vector, or one.
template <class X, class E>
constexpr int elements() {
  return sizeof(X) / sizeof(decltype(widen_type(E{})));
}

// As many values as are packed at a time.
template <class E, class A>
struct Block {
  using type = V<A>;
  static constexpr int lanes = Vec<A>::lanes;
};

#ifdef SYMCONV_PAIR_INSTRUCTIONS
// 32 elements of bfloat16: those at even places, and those at odd ones.
struct Wide {
  V<float> even, odd;
  friend Wide operator+(Wide a, Wide b) { return {a.even + b.even, a.odd + b.odd}; }
  friend Wide operator-(Wide a, Wide b) { return {a.even - b.even, a.odd - b.odd}; }
  Wide& operator+=(Wide b) { return *this = *this + b; }
};
template <>
struct Block<BFloat16, float> {
  using type = Wide;
  static constexpr int lanes = 2 * Vec<float>::lanes;
};
typedef uint16_t Elements __attribute__((vector_size(SYMCONV_BYTES)));

inline Wide read_wide(const BFloat16* p) {
  const V<uint32_t> u = (V<uint32_t>)_mm512_loadu_si512(p);  // pairs need not be aligned as one
  return {as_bits<V<float>>(V<uint32_t>(u << 16)), as_bits<V<float>>(V<uint32_t>(u & 0xffff0000u))};
}
inline void write_wide(BFloat16* p, Wide v) {
  Elements order;
#pragma GCC unroll 32
  for (int i = 0; i < 32; ++i) order[i] = i / 2 + (i % 2) * 16;
  const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(v.odd, v.even);
  _mm512_storeu_si512(p, _mm512_permutexvar_epi16((__m512i)order, halves));
}
#endif

template <class X>
inline X read(const float* p) {
  return *reinterpret_cast<const X*>(p);
}
template <class X>
inline X read(const double* p) {
  return *reinterpret_cast<const X*>(p);
}
template <class X, class E>
inline X read(const E* p) {
  if constexpr (sizeof(X) == sizeof(float)) return widen<float, uint32_t>(p->bits, E{});
#ifdef SYMCONV_PAIR_INSTRUCTIONS
  else if constexpr (sizeof(X) == sizeof(Wide))
    return read_wide(p);
#endif
  else
    return widened(p);
}

template <class X>
inline void write(float* p, X v) {
  *reinterpret_cast<X*>(p) = v;
}
template <class X>
inline void write(double* p, X v) {
  *reinterpret_cast<X*>(p) = v;
}
template <class X, class E>
inline void write(E* p, X v) {
  if constexpr (sizeof(X) == sizeof(float)) p->bits = static_cast<uint16_t>(narrow<float, uint32_t>(v, E{}));
#ifdef SYMCONV_PAIR_INSTRUCTIONS
  else if constexpr (sizeof(X) == sizeof(Wide))
    write_wide(p, v);
#endif
  else
    narrowed(p, v);
}
