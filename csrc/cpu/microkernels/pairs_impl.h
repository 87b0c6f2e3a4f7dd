// Pairs of bfloat16: two rows of a contraction in one word. Included by microkernels/kernels_impl.h where the
// CPU has them.

// a0 b0 a1 b1 .. from 16-bit elements: the first half of a and b, or the second.
template <bool kSecond>
inline __m512i interleave_words(__m512i a, __m512i b) {
  Elements order;
#pragma GCC unroll 32
  for (int i = 0; i < 32; ++i) order[i] = (kSecond ? 16 : 0) + i / 2 + (i % 2) * 32;
  return _mm512_permutex2var_epi16(a, (__m512i)order, b);
}

// Folds two rows of weights and stores them as row `word` of pairs.
template <class T, int S>
inline void interleave_and_store(const WeightArgs<T>& w, V<float> (&first)[3][S], V<float> (&second)[3][S],
                                 int64_t word) {
  V<float> a[S][1], b[S][1];
  fold_vectors<T, S, Plain>(w, first, a);
  fold_vectors<T, S, Plain>(w, second, b);
  for (int s = 0; s < S; ++s) {
    const __m256i even = (__m256i)_mm512_cvtneps_pbh(a[s][0]), odd = (__m256i)_mm512_cvtneps_pbh(b[s][0]);
    BFloat16* out = w.out[s] + word * w.out_stride;
    __builtin_prefetch(out + 8 * w.out_stride, 1);
    _mm512_storeu_si512(out,
                        interleave_words<false>(_mm512_castsi256_si512(even), _mm512_castsi256_si512(odd)));
  }
}

inline void vnni_interleave(const VnniArgs& z) {
  for (int64_t row = 0; row < z.rows; row += 2) {
    const BFloat16* a = z.in + row * z.in_ld;
    const BFloat16* b = row + 1 < z.rows ? a + z.in_ld : nullptr;
    Pair* out = z.out + row / 2 * z.out_ld;
    int64_t c = 0;
    for (; c + 32 <= z.columns; c += 32) {
      const __m512i first = _mm512_loadu_si512(a + c);
      const __m512i second = b ? _mm512_loadu_si512(b + c) : _mm512_setzero_si512();
      _mm512_storeu_si512(out + c, interleave_words<false>(first, second));
      _mm512_storeu_si512(out + c + 16, interleave_words<true>(first, second));
    }
    for (; c < z.columns; ++c) out[c] = {{a[c], b ? b[c] : BFloat16{0}}};
  }
}
