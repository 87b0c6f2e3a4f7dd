// Bodies of the depthwise inner loops; included by microkernels/kernels_impl.h, once for each instruction
// set. No standard header may be included here, for the reason given there.
//
// The windows keep the source positions of a chunk in registers, so that a position is loaded once a
// kernel line and the sums of mirrored positions run on the add pipes, beside the multiply-adds.

// F vectors, one for each plane, to F vectors in which the planes of a lane are neighbours.
template <class T, int F>
inline void interleave_planes(V<T> (&v)[F]) {
#pragma GCC unroll 4
  for (int stage = 1; stage < F; stage *= 2) {
    V<T> next[F];
#pragma GCC unroll 4
    for (int i = 0; i < F / 2; ++i) {
      next[2 * i] = interleave<T, false>(v[i], v[i + F / 2]);
      next[2 * i + 1] = interleave<T, true>(v[i], v[i + F / 2]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < F; ++i) v[i] = next[i];
  }
}

// Source positions of a chunk: one line, or the sum (kSign = 1) or difference of two.
template <class T, int kSign, int N>
inline void load_window(const T* source, const DepthwiseStep& step, int64_t position, V<T> (&c)[N]) {
  constexpr int L = Vec<T>::lanes;
  const T* a = source + (step.row[0] + position) * L;
  const T* b = source + (step.row[1] + position) * L;
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) {
    c[i] = load(a + i * L);
    if constexpr (kSign > 0) c[i] += load(b + i * L);
    if constexpr (kSign < 0) c[i] -= load(b + i * L);
  }
}

// Keeps the compiler from holding two windows at once, for which there are not enough registers.
inline void forget_loads() { asm volatile("" ::: "memory"); }

// Asks for the lines that the next chunk will write; they are not in the first-level cache.
template <class T, int P, int G>
inline void prefetch_next(const WindowArgs<T>& a, int64_t line, int64_t p) {
  constexpr int L = Vec<T>::lanes;
  if (p + P >= a.positions && ++line == a.end) return;
  const T* next = a.out[0] + a.offset[line] + (p + P < a.positions ? (p + P) * a.out_step : 0);
#pragma GCC unroll 8
  for (int i = 0; i < P; ++i, next += a.out_step)
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) __builtin_prefetch(next + g * L, 1);
}

// Where registers allow, the taps of one sum go to two sums in turn: P chains of multiply-adds would wait for
// each other (measured: 1.05 to 1.15 times the speed of an input gradient).
constexpr int kHalves = SYMCONV_BYTES == 64 ? 2 : 1;

// Both parities of a chunk for one kernel line; untied, the halves of the one result.
template <class T, int K, bool kTied, int P>
inline void window_forward(const V<T> (&c)[P + K - 1], const T* w, V<T> (&y)[2][P]) {
  constexpr int L = Vec<T>::lanes;
  if constexpr (kTied) {
#pragma GCC unroll 4
    for (int j = 0; j < K / 2; ++j) {
      const V<T> even = load(w + 2 * j * L), odd = load(w + (2 * j + 1) * L);
#pragma GCC unroll 8
      for (int i = 0; i < P; ++i) {
        y[0][i] += (c[i + j] + c[i + K - 1 - j]) * even;
        y[1][i] += (c[i + j] - c[i + K - 1 - j]) * odd;
      }
    }
    const V<T> centre = load(w + (K - 1) * L);
#pragma GCC unroll 8
    for (int i = 0; i < P; ++i) y[0][i] += c[i + K / 2] * centre;
  } else {
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) {
      const V<T> tap = load(w + k * L);
#pragma GCC unroll 8
      for (int i = 0; i < P; ++i) y[k % kHalves][i] += c[i + k] * tap;
    }
  }
}

template <class T, bool kTied, int P>
inline void add_halves(V<T> (&y)[2][P]) {
  if constexpr (!kTied) {
#pragma GCC unroll 16
    for (int i = 0; i < P; ++i) y[0][i] += y[1][i], y[1][i] = V<T>{};
  }
}

// The results of a chunk; those of the first lines of parities come from `kept`.
template <class T, int P, int H, int G>
inline void store_members(const WindowArgs<T>& a, int64_t line, int64_t p, const V<T>* kept,
                          V<T> (&y)[2][P]) {
  constexpr int L = Vec<T>::lanes;
#pragma GCC unroll 8
  for (int i = 0; i < P; ++i) {
    if (p + i >= a.positions) break;
    V<T> v[G];
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) v[g] = g < G - H ? kept[g * P + i] : y[g - (G - H)][i];
    butterfly(v);
    if (a.interleave) {
      interleave_planes<T, G>(v);
      T* out = a.out[0] + a.offset[line] + (p + i) * a.out_step;
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) save(out + g * L, a.bias ? v[g] + load(a.bias + g * L) : v[g]);
    } else {
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) save(a.out[g] + a.offset[line] + (p + i) * a.out_step, v[g]);
    }
  }
}

// Lines with a mirror image are summed first, then subtracted: the results of the sums wait in the
// first-level cache, so that a chunk may be as wide as without mirror images.
template <class T, int K, bool kTied, bool kPaired, int P>
void forward_window(const WindowArgs<T>& a) {
  constexpr int L = Vec<T>::lanes, H = kTied ? 2 : 1, G = kPaired ? 2 * H : H;
  V<T> kept[H * P];
  for (int64_t line = a.begin; line < a.end; ++line) {
    const DepthwiseStep *begin = a.steps + a.first[3 * line], *pairs = a.steps + a.first[3 * line + 1],
                        *end = a.steps + a.first[3 * line + 2];
    for (int64_t p = 0; p < a.positions; p += P) {
      if (a.interleave) prefetch_next<T, P, G>(a, line, p);
      V<T> y[2][P] = {};
      V<T> c[P + K - 1];
      for (const DepthwiseStep* s = begin; s < pairs; ++s) {
        load_window<T, 0>(a.source[0], *s, p, c);
        window_forward<T, K, kTied, P>(c, a.weights + s->weight * L, y);
      }
      if constexpr (kPaired) {
        for (const DepthwiseStep* s = pairs; s < end; ++s) {
          load_window<T, 1>(a.source[0], *s, p, c);
          window_forward<T, K, kTied, P>(c, a.weights + s->weight * L, y);
        }
        add_halves<T, kTied>(y);
#pragma GCC unroll 16
        for (int i = 0; i < H * P; ++i) kept[i] = y[i / P][i % P], y[i / P][i % P] = V<T>{};
        for (const DepthwiseStep* s = pairs; s < end; ++s) {
          load_window<T, -1>(a.source[0], *s, p, c);
          window_forward<T, K, kTied, P>(c, a.weights + (s->weight + K) * L, y);
        }
      }
      add_halves<T, kTied>(y);
      store_members<T, P, H, G>(a, line, p, kept, y);
    }
  }
}

// One parity of a chunk for one kernel line; the taps run backwards through the source.
template <class T, int K, bool kTied, bool kOddPart, int P>
inline void window_adjoint(const V<T> (&c)[P + K - 1], const T* w, V<T> (&y)[2][P]) {
  constexpr int L = Vec<T>::lanes;
  if constexpr (kTied) {
#pragma GCC unroll 4
    for (int j = 0; j < K / 2; ++j) {
      const V<T> tap = load(w + (2 * j + kOddPart) * L);
#pragma GCC unroll 16
      for (int i = 0; i < P; ++i)
        y[j % kHalves][i] += (kOddPart ? c[i + K - 1 - j] - c[i + j] : c[i + K - 1 - j] + c[i + j]) * tap;
    }
    if constexpr (!kOddPart) {
      const V<T> centre = load(w + (K - 1) * L);
#pragma GCC unroll 16
      for (int i = 0; i < P; ++i) y[kHalves - 1][i] += c[i + K / 2] * centre;
    }
  } else {
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) {
      const V<T> tap = load(w + k * L);
#pragma GCC unroll 16
      for (int i = 0; i < P; ++i) y[k % kHalves][i] += c[i + K - 1 - k] * tap;
    }
  }
}

// All kernel lines against the plane of one parity: kVertical over the lines, kOddPart along them.
template <class T, int K, bool kTied, bool kVertical, bool kOddPart, bool kPaired, int P>
inline void adjoint_plane(const WindowArgs<T>& a, int64_t line, int64_t p, V<T> (&y)[2][P]) {
  constexpr int L = Vec<T>::lanes;
  const T* source = a.source[kOddPart + (kVertical ? (kTied ? 2 : 1) : 0)];
  V<T> c[P + K - 1];
  if constexpr (!kVertical) {
    for (int32_t s = a.first[3 * line]; s < a.first[3 * line + 1]; ++s) {
      load_window<T, 0>(source, a.steps[s], p, c);
      window_adjoint<T, K, kTied, kOddPart, P>(c, a.weights + a.steps[s].weight * L, y);
    }
  }
  if constexpr (kPaired) {
    for (int32_t s = a.first[3 * line + 1]; s < a.first[3 * line + 2]; ++s) {
      load_window<T, kVertical ? -1 : 1>(source, a.steps[s], p, c);
      window_adjoint<T, K, kTied, kOddPart, P>(c, a.weights + (a.steps[s].weight + (kVertical ? K : 0)) * L,
                                               y);
    }
  }
}

template <class T, int K, bool kTied, bool kPaired, int P>
void adjoint_window(const WindowArgs<T>& a) {
  for (int64_t line = a.begin; line < a.end; ++line)
    for (int64_t p = 0; p < a.positions; p += P) {
      T* out = a.out[0] + a.offset[line] + p * a.out_step;
      prefetch_next<T, P, 1>(a, line, p);
      V<T> y[2][P] = {};
      adjoint_plane<T, K, kTied, false, false, kPaired, P>(a, line, p, y);
      if constexpr (kTied) adjoint_plane<T, K, kTied, false, true, kPaired, P>(a, line, p, y);
      if constexpr (kPaired) adjoint_plane<T, K, kTied, true, false, true, P>(a, line, p, y);
      if constexpr (kPaired && kTied) adjoint_plane<T, K, kTied, true, true, true, P>(a, line, p, y);
#pragma GCC unroll 16
      for (int i = 0; i < P; ++i) {
        if (p + i >= a.positions) break;
        const V<T> sum = y[0][i] + y[1][i];
        save(out + i * a.out_step, a.add ? load(out + i * a.out_step) + sum : sum);
      }
    }
}

// Of filters that are their own images: one parity of the lines (kUp) and along them (kAcross).
template <class T, int K, int kAcross, int kUp, int P>
void parity_window(const WindowArgs<T>& a) {
  for (int64_t line = a.begin; line < a.end; ++line)
    for (int64_t p = 0; p < a.positions; p += P) {
      T* out = a.out[0] + a.offset[line] + p * a.out_step;
      prefetch_next<T, P, 1>(a, line, p);
      V<T> y[2][P] = {};
      adjoint_plane<T, K, kAcross != kBothParities, kUp == kOddParity, kAcross == kOddParity,
                    kUp != kBothParities, P>(a, line, p, y);
      const V<T> bias = a.bias ? load(a.bias) : V<T>{};
#pragma GCC unroll 16
      for (int i = 0; i < P; ++i) {
        if (p + i >= a.positions) break;
        const V<T> sum = y[0][i] + y[1][i] + bias;
        save(out + i * a.out_step, a.add ? load(out + i * a.out_step) + sum : sum);
      }
    }
}

// Positions take turns between so many sums of a tap: few taps are too few chains of multiply-adds.
template <int N>
constexpr int kTurns = N <= 4 ? 2 : 1;

// Every tap of one kernel line against a chunk, or against the `count` positions of the last one: a NaN of
// the source must not meet the zeros past the end.
template <class T, int K, bool kTied, int P, int first, int R, int N>
inline void window_correlate(const V<T> (&c)[P + K - 1], const T* even, const T* odd, int64_t count,
                             V<T> (&acc)[R][N]) {
  constexpr int L = Vec<T>::lanes;
#pragma GCC unroll 8
  for (int i = 0; i < P; ++i) {
    if (i >= count) break;
    V<T>(&sum)[N] = acc[i % R];
    const V<T> e = load(even + i * L);
    if constexpr (kTied) {
      const V<T> o = load(odd + i * L);
#pragma GCC unroll 4
      for (int j = 0; j < K / 2; ++j) {
        sum[first + 2 * j] += (c[i + j] + c[i + K - 1 - j]) * e;
        sum[first + 2 * j + 1] += (c[i + j] - c[i + K - 1 - j]) * o;
      }
      sum[first + K - 1] += c[i + K / 2] * e;
    } else {
#pragma GCC unroll 8
      for (int k = 0; k < K; ++k) sum[first + k] += c[i + k] * e;
    }
  }
}

template <class T, int K, bool kTied, bool kPaired, int P>
void grad_window(const WindowGradArgs<T>& a) {
  constexpr int L = Vec<T>::lanes, H = kTied ? 2 : 1, N = kPaired ? 2 * K : K;
  V<T> acc[kTurns<N>][N] = {};
  for (int64_t s = 0; s < a.step_count; ++s) {
    const DepthwiseStep& step = a.steps[s];
    for (int64_t p = 0; p < a.positions; p += P) {
      const int64_t at = step.line * a.still_pitch + p * L;
      V<T> c[P + K - 1];
      load_window<T, kPaired ? 1 : 0>(a.source, step, p, c);
      window_correlate<T, K, kTied, P, 0>(c, a.still[0] + at, a.still[H - 1] + at, a.positions - p, acc);
      if constexpr (kPaired) {
        forget_loads();
        load_window<T, -1>(a.source, step, p, c);
        window_correlate<T, K, kTied, P, K>(c, a.still[H] + at, a.still[2 * H - 1] + at, a.positions - p,
                                            acc);
      }
    }
  }
#pragma GCC unroll 16
  for (int k = 0; k < N; ++k) {
    V<T> sum = acc[0][k];
    if constexpr (kTurns<N> > 1) sum += acc[1][k];
    save(a.acc + k * L, load(a.acc + k * L) + sum);
  }
}

// Sums of one parity: of every pair of taps, and of the tap in the middle, which an odd filter has not.
template <int K, int kAcross>
constexpr int kParityTaps = kAcross == kBothParities ? K
                            : kAcross == kEvenParity ? (K + 1) / 2
                                                     : K / 2;

template <class T, int K, int kAcross, int P, int R, int N>
inline void parity_correlate(const V<T> (&c)[P + K - 1], const T* still, int64_t count, V<T> (&acc)[R][N]) {
  constexpr int L = Vec<T>::lanes;
#pragma GCC unroll 8
  for (int i = 0; i < P; ++i) {
    if (i >= count) break;
    V<T>(&sum)[N] = acc[i % R];
    const V<T> s = load(still + i * L);
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) {
      const V<T>&left = c[i + j], &right = c[i + K - 1 - j];
      if constexpr (kAcross == kBothParities)
        sum[j] += left * s;
      else if constexpr (kAcross == kOddParity)
        sum[j] += (left - right) * s;
      else
        sum[j] += (j == K / 2 ? left : left + right) * s;
    }
  }
}

template <class T, int K, int kAcross, int kUp, int P>
void parity_grad_window(const WindowGradArgs<T>& a) {
  constexpr int L = Vec<T>::lanes, N = kParityTaps<K, kAcross>;
  V<T> acc[kTurns<N>][N] = {};
  for (int64_t s = 0; s < a.step_count; ++s) {
    const DepthwiseStep& step = a.steps[s];
    for (int64_t p = 0; p < a.positions; p += P) {
      V<T> c[P + K - 1];
      load_window<T, kUp == kBothParities ? 0 : kUp == kEvenParity ? 1 : -1>(a.source, step, p, c);
      parity_correlate<T, K, kAcross, P>(c, a.still[0] + step.line * a.still_pitch + p * L, a.positions - p,
                                         acc);
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < N; ++j) {
    constexpr int step = kAcross == kBothParities ? 1 : 2;
    V<T> sum = acc[0][j];
    if constexpr (kTurns<N> > 1) sum += acc[1][j];
    T* at = a.acc + (step * j + (kAcross == kOddParity)) * L;
    save(at, load(at) + sum);
  }
}

constexpr int kLineWidth = SYMCONV_BYTES == 64 ? 8 : 4;

// acc += source at a tap, or the sum or difference of a tap and its image, times a weight.
template <class T, int kSign, int P>
inline void line_tap(const T* left, const T* right, int64_t advance, V<T> w, V<T> (&acc)[P]) {
#pragma GCC unroll 8
  for (int i = 0; i < P; ++i) {
    V<T> v = load(left + i * advance);
    if constexpr (kSign > 0) v += load(right + i * advance);
    if constexpr (kSign < 0) v -= load(right + i * advance);
    acc[i] += v * w;
  }
}

template <class T, int kParity, int P>
inline void line_taps(const LineTaps& t, const T* line, const T* w, int64_t advance, V<T> (&even)[P],
                      V<T> (&odd)[P]) {
  constexpr int L = Vec<T>::lanes;
  constexpr bool kE = kParity != kOddParity, kO = kParity != kEvenParity;
  for (int64_t j = 0; kE && j < t.plain_count; ++j)
    line_tap<T, 0>(line + t.plain[j].left * L, line, advance, load(w + t.plain[j].weight * L), even);
  for (int64_t j = 0; j < t.pair_count; ++j) {
    const T *l = line + t.pairs[j].left * L, *r = line + t.pairs[j].right * L,
            *at = w + t.pairs[j].weight * L;
    if constexpr (kE && kO) {
      const V<T> we = load(at), wo = load(at + L);
#pragma GCC unroll 8
      for (int i = 0; i < P; ++i) {
        const V<T> a = load(l + i * advance), b = load(r + i * advance);
        even[i] += (a + b) * we;
        odd[i] += (a - b) * wo;
      }
    } else if constexpr (kE) {
      line_tap<T, 1>(l, r, advance, load(at), even);
    } else {
      line_tap<T, -1>(l, r, advance, load(at + L), odd);
    }
  }
  for (int64_t j = 0; j < t.left_count; ++j) {
    const T *l = line + t.lefts[j].left * L, *at = w + t.lefts[j].weight * L;
    if constexpr (kE) line_tap<T, 0>(l, l, advance, load(at), even);
    if constexpr (kO) line_tap<T, 0>(l, l, advance, load(at + L), odd);
  }
  for (int64_t j = 0; j < t.right_count; ++j) {
    const T *r = line + t.rights[j].right * L, *at = w + t.rights[j].weight * L;
    if constexpr (kE) line_tap<T, 0>(r, r, advance, load(at), even);
    if constexpr (kO) line_tap<T, 0>(r, r, advance, -load(at + L), odd);
  }
}

template <class T, int kParity>
void line(const LineArgs<T>& a) {
  constexpr int L = Vec<T>::lanes, P = kLineWidth;
  constexpr bool kE = kParity != kOddParity, kO = kParity != kEvenParity;
  for (int64_t p = 0; p < a.positions; p += P) {
    V<T> even[P] = {}, odd[P] = {};
    for (int64_t s = 0; s < a.line_count; ++s)
      line_taps<T, kParity>(a.taps, a.lines[s] + p * a.advance, a.weights[s], a.advance, even, odd);
#pragma GCC unroll 8
    for (int i = 0; i < P; ++i) {
      T *e = a.acc[0] + (p + i) * L, *o = a.acc[kE ? 1 : 0] + (p + i) * L;
      if constexpr (kE) save(e, a.add ? load(e) + even[i] : even[i]);
      if constexpr (kO) save(o, a.add ? load(o) + odd[i] : odd[i]);
    }
  }
}

// N taps of the kernel line at a time: that many accumulators, twice as many with both parities.
template <class T, int kParity, int kSides, int N>
inline void correlate_taps(const LineGradArgs<T>& a, const LineTap* taps) {
  constexpr int L = Vec<T>::lanes;
  constexpr bool kE = kParity != kOddParity, kO = kParity != kEvenParity && kSides != 0;
  V<T> even[N] = {}, odd[N] = {};
  for (int64_t p = 0; p < a.positions; ++p) {
    const T* at = a.line + p * a.advance;
    V<T> e = {}, o = {};
    if constexpr (kE) e = load(a.still[0] + p * L);
    if constexpr (kO) o = load(a.still[kE ? 1 : 0] + p * L);
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) {
      V<T> l = {}, r = {};
      if constexpr (kSides != 2) l = load(at + taps[j].left * L);
      if constexpr (kSides >= 2) r = load(at + taps[j].right * L);
      if constexpr (kE) even[j] += (l + r) * e;
      if constexpr (kO) odd[j] += (l - r) * o;
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < N; ++j) {
    T* acc = a.acc + taps[j].weight * L;
    if constexpr (kE) save(acc, load(acc) + even[j]);
    if constexpr (kO) save(acc + L, load(acc + L) + odd[j]);
  }
}

// kSides: 0 taps without parity, 1 the left one of a pair only, 2 the right one only, 3 both.
template <class T, int kParity, int kSides, int N>
inline void correlate(const LineGradArgs<T>& a, const LineTap* taps, int64_t count) {
  int64_t j = 0;
  for (; j + N <= count; j += N) correlate_taps<T, kParity, kSides, N>(a, taps + j);
  for (; j < count; ++j) correlate_taps<T, kParity, kSides, 1>(a, taps + j);
}

template <class T, int kParity>
void line_grad(const LineGradArgs<T>& a) {
  constexpr int N = SYMCONV_BYTES == 64 ? 4 : 2;
  if constexpr (kParity != kOddParity) correlate<T, kParity, 0, 2 * N>(a, a.taps.plain, a.taps.plain_count);
  correlate<T, kParity, 3, N>(a, a.taps.pairs, a.taps.pair_count);
  correlate<T, kParity, 1, N>(a, a.taps.lefts, a.taps.left_count);
  correlate<T, kParity, 2, N>(a, a.taps.rights, a.taps.right_count);
}
