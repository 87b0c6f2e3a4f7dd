// Packing of the weights: taps folded by parity, filtered and stored lane by lane. Included by
// microkernels/kernels_impl.h, inside its namespace.

// Is the second source the first one, mirrored along the filtered axis? Then its three taps come backwards.
template <class F>
constexpr bool kMirrors = Same<F, F4Textbook>::value;

// Vectors of weights for each source and product, out of those for each source and tap.
template <class T, int S, class F>
inline void fold_vectors(const WeightArgs<T>& w, V<Sum<T>> (&raw)[3][S],
                         V<Sum<T>> (&products)[S][F::products]) {
  constexpr int taps = F::in > 1 ? 3 : 1;
  V<Sum<T>> g[S][3] = {};
#pragma GCC unroll 3
  for (int t = 0; t < taps; ++t) {
    butterfly(raw[t]);
    for (int s = 0; s < S; ++s) g[s][t] = raw[t][s] * w.scale;
  }
  for (int s = 0; s < S; ++s) F::filter(g[s], products[s]);
}

template <class T, int S, class F>
inline void fold_and_store(const WeightArgs<T>& w, V<Sum<T>> (&raw)[3][S], int64_t o) {
  constexpr int L = Vec<Sum<T>>::lanes;
  V<Sum<T>> products[S][F::products];
  fold_vectors<T, S, F>(w, raw, products);
  for (int s = 0; s < S; ++s)
    for (int i = 0; i < F::products; ++i) {
      Stored<T>* out = w.out[s] + o * w.out_stride + i * w.product_stride[s];
      __builtin_prefetch(out + L * w.out_stride, 1);
      if (w.stored == L) {
        write<V<Sum<T>>>(out, products[s][i]);
      } else {
        for (int l = 0; l < w.stored; ++l) write<Sum<T>>(out + l, products[s][i][l]);
      }
    }
}

// The vectors of `other` o, one for each source and tap; zero past the last one.
template <class T, int S, class F>
inline void gather_weights(const WeightArgs<T>& w, int64_t o, V<Sum<T>> (&raw)[3][S]) {
  constexpr int L = Vec<Sum<T>>::lanes;
  constexpr int taps = F::in > 1 ? 3 : 1;
  for (int t = 0; t < taps; ++t)
    for (int s = 0; s < S; ++s) {
      const int64_t tap = w.tap[s] + (kMirrors<F> && s ? -t : t) * w.tap_stride;
      const Element<T>* source = w.source + o * w.other_stride + tap;
      if (w.lane_stride == 1 && w.lanes == L && o < w.others) {
        raw[t][s] = read<V<Sum<T>>>(source);
        continue;
      }
      Sum<T> lanes[L] = {};
      for (int l = 0; o < w.others && l < w.lanes; ++l) lanes[l] = read<Sum<T>>(source + l * w.lane_stride);
      raw[t][s] = load(lanes);
    }
}

#ifdef SYMCONV_PAIR_INSTRUCTIONS
#include "microkernels/pairs_impl.h"
#endif

// Weights that are contiguous along `others` come in whole vectors and are transposed in registers;
// all else is gathered one by one.
template <class T, int S, class F>
void fold_weights(const WeightArgs<T>& w) {
  constexpr int L = Vec<Sum<T>>::lanes;
  constexpr int taps = F::in > 1 ? 3 : 1;
  constexpr bool pairs = Format<T>::depth == 2;
  int64_t o = 0;
  if (w.other_stride == 1 && w.lanes == L) {
    for (; o + L <= w.others; o += L) {
      V<Sum<T>> block[3][S][L];
      for (int t = 0; t < taps; ++t)
        for (int s = 0; s < S; ++s) {
          const Element<T>* source = w.source + o + w.tap[s] + (kMirrors<F> && s ? -t : t) * w.tap_stride;
          V<Sum<T>> v[L];
#pragma GCC unroll 16
          for (int l = 0; l < L; ++l) {
            __builtin_prefetch(source + l * w.lane_stride + 2 * L);
            v[l] = read<V<Sum<T>>>(source + l * w.lane_stride);
          }
          transpose<Sum<T>>(v);
#pragma GCC unroll 16
          for (int l = 0; l < L; ++l) block[t][s][l] = v[l];
        }
      const auto at = [&](int l, V<Sum<T>>(&raw)[3][S]) {
        for (int t = 0; t < taps; ++t)
          for (int s = 0; s < S; ++s) raw[t][s] = block[t][s][l];
      };
      for (int l = 0; l < L; ++l) {
        V<Sum<T>> raw[3][S];
        at(l, raw);
        if constexpr (pairs) {
          if (w.vnni) {
            V<Sum<T>> second[3][S];
            at(++l, second);
            interleave_and_store<T, S>(w, raw, second, (o + l) / 2);
            continue;
          }
        }
        fold_and_store<T, S, F>(w, raw, o + l);
      }
    }
  }
  for (; o < w.others; ++o) {
    V<Sum<T>> raw[3][S];
    gather_weights<T, S, F>(w, o, raw);
    if constexpr (pairs) {
      if (w.vnni) {
        V<Sum<T>> second[3][S];
        gather_weights<T, S, F>(w, ++o, second);
        interleave_and_store<T, S>(w, raw, second, o / 2);
        continue;
      }
    }
    fold_and_store<T, S, F>(w, raw, o);
  }
}
