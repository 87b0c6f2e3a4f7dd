// Depthwise: moving channels between memory and lanes, and sums of mirrored lines, planes and taps.
// Included by microkernels/kernels_impl.h after microkernels/depthwise_impl.h, with the same rule about
// headers.

template <class T, int S>
inline void combine_lines(const T* const* lines, const V<T> (&sign)[S], T* out, int64_t vectors) {
  constexpr int L = Vec<T>::lanes;
  for (int64_t i = 0; i < vectors; ++i) {
    V<T> v = load(lines[0] + i * L);
#pragma GCC unroll 4
    for (int s = 1; s < S; ++s) v += load(lines[s] + i * L) * sign[s];
    save(out + i * L, v);
  }
}

template <class T>
void combine(const T* const* lines, int log_lines, int parity, T* out, int64_t vectors) {
  V<T> sign[kMaxKernelLines];
  for (int s = 0; s < kMaxKernelLines; ++s) sign[s] = V<T>{} + (__builtin_parity(s & parity) ? T(-1) : T(1));
  if (log_lines == 2) return combine_lines<T, 4>(lines, sign, out, vectors);
  const V<T> two[2] = {sign[0], sign[1]};
  combine_lines<T, 2>(lines, two, out, vectors);
}

template <class T, int S>
inline void butterfly_planes(T* const* planes, int64_t vectors) {
  constexpr int L = Vec<T>::lanes;
  for (int64_t i = 0; i < vectors; ++i) {
    V<T> v[S];
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) v[s] = load(planes[s] + i * L);
    butterfly(v);
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) save(planes[s] + i * L, v[s]);
  }
}

template <class T>
void butterfly_by_log(T* const* planes, int log_planes, int64_t vectors) {
  if (log_planes == 1) butterfly_planes<T, 2>(planes, vectors);
  if (log_planes == 2) butterfly_planes<T, 4>(planes, vectors);
  if (log_planes == 3) butterfly_planes<T, 8>(planes, vectors);
}

template <class T, int S>
inline void fold_group(const int32_t* from_at, const int32_t* to_at, T scale, const T* from, T* to) {
  constexpr int L = Vec<T>::lanes;
  V<T> v[S];
#pragma GCC unroll 8
  for (int s = 0; s < S; ++s) v[s] = load(from + from_at[s] * L);
  butterfly(v);
#pragma GCC unroll 8
  for (int s = 0; s < S; ++s) save(to + to_at[s] * L, v[s] * (scale / S));
}

template <class T>
void fold_taps(const TapGroup* groups, int64_t count, const T* from, T* to, bool adjoint) {
  for (int64_t i = 0; i < count; ++i) {
    const TapGroup& g = groups[i];
    const int32_t *f = adjoint ? g.place : g.tap, *t = adjoint ? g.tap : g.place;
    const T sign = T(g.sign);
    if (g.log_taps == 0) fold_group<T, 1>(f, t, sign, from, to);
    if (g.log_taps == 1) fold_group<T, 2>(f, t, sign, from, to);
    if (g.log_taps == 2) fold_group<T, 4>(f, t, sign, from, to);
    if (g.log_taps == 3) fold_group<T, 8>(f, t, sign, from, to);
  }
}

// Even and odd elements of two vectors that lie one behind the other.
template <class T, bool kOdd>
inline V<T> deinterleave_half(V<T> a, V<T> b) {
  constexpr int L = Vec<T>::lanes;
#if defined(__clang__)
  V<T> v;
  for (int i = 0; i < L / 2; ++i) v[i] = a[2 * i + kOdd], v[L / 2 + i] = b[2 * i + kOdd];
  return v;
#else
  typedef decltype(V<T>{} < V<T>{}) Mask;
  Mask order;
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) order[i] = 2 * i + kOdd;
  return __builtin_shuffle(a, b, order);
#endif
}

template <class T, int F>
inline void deinterleave_planes(V<T> (&v)[F]) {
#pragma GCC unroll 4
  for (int stage = 1; stage < F; stage *= 2) {
    V<T> next[F];
#pragma GCC unroll 4
    for (int i = 0; i < F / 2; ++i) {
      next[i] = deinterleave_half<T, false>(v[2 * i], v[2 * i + 1]);
      next[i + F / 2] = deinterleave_half<T, true>(v[2 * i], v[2 * i + 1]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < F; ++i) v[i] = next[i];
  }
}

template <class T>
inline Sum<T>* lanes_of(const LaneArgs<T>& a, int plane, int64_t position) {
  return a.lanes + plane * a.plane_stride + (a.place ? a.place[position] : position) * Vec<Sum<T>>::lanes;
}

constexpr int kGatherAhead =
    16;  // positions: blocks of channels lie too far apart for the hardware to foresee

// Planes of a lane are neighbours in memory, and so are the lanes: whole vectors, shuffled.
template <class T, int F>
inline void gather_interleaved(const LaneArgs<T>& a) {
  constexpr int L = Vec<Sum<T>>::lanes;
  for (int64_t p = 0; p < a.positions; ++p) {
    V<Sum<T>> v[F];
#pragma GCC unroll 8
    for (int f = 0; f < F; ++f) {
      const T* from = a.memory + p * a.position_stride + f * L;
      __builtin_prefetch(from + kGatherAhead * a.position_stride);
      v[f] = read<V<Sum<T>>>(from);
    }
    deinterleave_planes<Sum<T>, F>(v);
    if (F <= 4 && a.butterfly) butterfly(v);
#pragma GCC unroll 8
    for (int f = 0; f < F; ++f) save(lanes_of(a, f, p), v[f]);
  }
}

template <class T, int F>
inline void scatter_interleaved(const LaneArgs<T>& a) {
  constexpr int L = Vec<Sum<T>>::lanes;
  V<Sum<T>> bias[F] = {};
  if (a.bias)
    for (int f = 0; f < F; ++f) bias[f] = load(a.bias + f * L);
  for (int64_t p = 0; p < a.positions; ++p) {
    V<Sum<T>> v[F];
#pragma GCC unroll 8
    for (int f = 0; f < F; ++f) v[f] = load(lanes_of(a, f, p)) + bias[f];
    interleave_planes<Sum<T>, F>(v);
#pragma GCC unroll 8
    for (int f = 0; f < F; ++f) write<V<Sum<T>>>(a.memory + p * a.position_stride + f * L, v[f]);
  }
}

template <class T>
inline bool whole_vectors(const LaneArgs<T>& a) {
  return !a.lane && a.channel_stride == 1 && a.channels == Vec<Sum<T>>::lanes && a.planes <= 8 &&
         (a.planes & (a.planes - 1)) == 0;
}

// --- lanes that share channels: vectors shuffled by a table ---

// Elements of S vectors, 1, 2 or 4, as if one lay behind the other.
template <class T, int S>
inline V<T> choose_lanes(const V<T> (&v)[S], Mask<T> at) {
  constexpr int L = Vec<T>::lanes;
  if constexpr (S == 1) return pick<T>(v[0], at);
  if constexpr (S == 2) return pick<T>(v[0], v[1], at);
  if constexpr (S == 4) {
    const Mask<T> order = at & (2 * L - 1);
    const V<T> first = pick<T>(v[0], v[1], order), second = pick<T>(v[2], v[3], order);
    return (at & (2 * L)) != 0 ? second : first;
  }
}

constexpr int kMostShared = 64;  // planes: the filters of a group

// Every position of the memory is S whole vectors, of which each plane has some elements. Planes of an orbit
// (G > 1) leave as its parities. A position makes all its planes at once: positions a KiB apart share four
// sets of the first-level cache, and would not stay there until the next plane.
template <class T, int S, int G>
inline void gather_shared(const LaneArgs<T>& args) {
  using A = Sum<T>;
  constexpr int L = Vec<A>::lanes;
  const LaneArgs<T> a = args;  // which no store can change
  const int orbits = a.planes / G;
  Mask<A> at[kMostShared];
  for (int f = 0; f < a.planes; ++f)
    for (int i = 0; i < L; ++i) at[f][i] = a.lane[i] + f * a.plane_channels;
  const T* from = a.memory;
  for (int64_t p = 0; p < a.positions; ++p, from += a.position_stride) {
    V<A> v[S];
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) {
      v[s] = read<V<A>>(from + s * L);
      __builtin_prefetch(from + kGatherAhead * a.position_stride + s * L);
    }
    A* to = lanes_of(a, 0, p);
    for (int u = 0; u < orbits; ++u, to += a.plane_stride) {
      V<A> y[G];
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) y[g] = choose_lanes<A, S>(v, at[g * orbits + u]);
      butterfly(y);
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) save(to + g * orbits * a.plane_stride, y[g]);
    }
  }
}

template <class T, int S>
inline bool gather_shared(const LaneArgs<T>& a) {
  const int members = a.butterfly ? a.planes / a.orbits : 1;
  if (members == 1) gather_shared<T, S, 1>(a);
  if (members == 2) gather_shared<T, S, 2>(a);
  if (members == 4) gather_shared<T, S, 4>(a);
  return true;
}

// The other way: F planes fill F vectors of a position.
template <class T, int F>
inline bool scatter_shared(const LaneArgs<T>& a) {
  using A = Sum<T>;
  constexpr int L = Vec<A>::lanes;
  int place[F * L];
  for (int f = 0; f < F; ++f)
    for (int i = 0; i < L; ++i) place[a.lane[i] + f * a.plane_channels] = f * L + i;
  V<A> bias[F] = {};
  if (a.bias)
    for (int f = 0; f < F; ++f) bias[f] = load(a.bias + f * L);
  Mask<A> at[F];
  for (int f = 0; f < F; ++f)
    for (int i = 0; i < L; ++i) at[f][i] = place[f * L + i];
  for (int64_t p = 0; p < a.positions; ++p) {
    V<A> v[F];
#pragma GCC unroll 4
    for (int f = 0; f < F; ++f) v[f] = load(lanes_of(a, f, p)) + bias[f];
#pragma GCC unroll 4
    for (int f = 0; f < F; ++f)
      write<V<A>>(a.memory + p * a.position_stride + f * L, choose_lanes<A, F>(v, at[f]));
  }
  return true;
}

// False where positions are not whole vectors.
template <class T, bool kScatter>
inline bool move_shared(const LaneArgs<T>& a) {
  constexpr int L = Vec<Sum<T>>::lanes;
  if (!a.lane || a.channel_stride != 1 || a.channels != L || a.span % L || a.planes > kMostShared)
    return false;
  const auto vectors = a.span / L;
  if constexpr (kScatter) {
    if (vectors != a.planes) return false;
    if (vectors == 1) return scatter_shared<T, 1>(a);
    if (vectors == 2) return scatter_shared<T, 2>(a);
    return vectors == 4 && scatter_shared<T, 4>(a);
  } else {
    if (vectors == 1) return gather_shared<T, 1>(a);
    if (vectors == 2) return gather_shared<T, 2>(a);
    return vectors == 4 && gather_shared<T, 4>(a);
  }
}

// Of a lane and a plane, in the memory.
template <class T>
inline int64_t channel_offset(const LaneArgs<T>& a, int lane, int plane) {
  const int64_t channel = a.lane ? a.lane[lane] + plane * a.plane_channels : int64_t{lane} * a.planes + plane;
  return channel * a.channel_stride;
}

// Positions are contiguous in memory: squares of lanes x positions, the last one overlapping. Returns
// false where there are too few positions for one.
template <class T, bool kScatter>
inline bool move_transposed(const LaneArgs<T>& a, int plane) {
  constexpr int L = Vec<Sum<T>>::lanes;
  if (a.position_stride != 1 || a.positions < L) return false;
  const V<Sum<T>> bias = kScatter && a.bias ? load(a.bias + plane * L) : V<Sum<T>>{};
  for (int64_t p0 = 0; p0 < a.positions; p0 += L) {
    const int64_t p = p0 + L <= a.positions ? p0 : a.positions - L;
    V<Sum<T>> v[L];
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) {
      if constexpr (kScatter)
        v[i] = load(lanes_of(a, plane, p + i)) + bias;
      else
        v[i] = i < a.channels ? read<V<Sum<T>>>(a.memory + channel_offset(a, i, plane) + p) : V<Sum<T>>{};
    }
    transpose<Sum<T>>(v);
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) {
      if constexpr (kScatter) {
        if (i < a.channels) write<V<Sum<T>>>(a.memory + channel_offset(a, i, plane) + p, v[i]);
      } else {
        save(lanes_of(a, plane, p + i), v[i]);
      }
    }
  }
  return true;
}

template <class T>
void gather_lanes(const LaneArgs<T>& a) {
  if (whole_vectors(a)) {
    if (a.planes == 1) return gather_interleaved<T, 1>(a);
    if (a.planes == 2) return gather_interleaved<T, 2>(a);
    if (a.planes == 4) return gather_interleaved<T, 4>(a);
    return gather_interleaved<T, 8>(a);
  }
  if (move_shared<T, false>(a)) return;
  for (int f = 0; f < a.planes; ++f) {
    if (move_transposed<T, false>(a, f)) continue;
    for (int64_t p = 0; p < a.positions; ++p) {
      const T* memory = a.memory + p * a.position_stride;
      Sum<T>* lanes = lanes_of(a, f, p);
      save(lanes, V<Sum<T>>{});
      for (int l = 0; l < a.channels; ++l) lanes[l] = read<Sum<T>>(memory + channel_offset(a, l, f));
    }
  }
  if (!a.butterfly) return;
  const int members = a.planes / a.orbits;
  for (int64_t p = 0; p < a.positions; ++p)
    for (int u = 0; u < a.orbits; ++u) {
      Sum<T>* planes[4];
      for (int g = 0; g < members; ++g) planes[g] = lanes_of(a, g * a.orbits + u, p);
      butterfly_by_log<Sum<T>>(planes, members / 2, 1);
    }
}

template <class T>
void scatter_lanes(const LaneArgs<T>& a) {
  constexpr int L = Vec<Sum<T>>::lanes;
  if (whole_vectors(a)) {
    if (a.planes == 1) return scatter_interleaved<T, 1>(a);
    if (a.planes == 2) return scatter_interleaved<T, 2>(a);
    if (a.planes == 4) return scatter_interleaved<T, 4>(a);
    return scatter_interleaved<T, 8>(a);
  }
  if (move_shared<T, true>(a)) return;
  for (int f = 0; f < a.planes; ++f) {
    if (move_transposed<T, true>(a, f)) continue;
    for (int64_t p = 0; p < a.positions; ++p) {
      T* memory = a.memory + p * a.position_stride;
      const Sum<T>* lanes = lanes_of(a, f, p);
      for (int l = 0; l < a.channels; ++l)
        write<Sum<T>>(memory + channel_offset(a, l, f), lanes[l] + (a.bias ? a.bias[f * L + l] : 0));
    }
  }
}

// Widths of the chunks: as wide as the registers hold, and dividing the usual maps of 7, 14, 28 and 56.
#if SYMCONV_BYTES == 64
#define SYMCONV_WINDOW_SIZES 7, 7, 7, 7
#else
#define SYMCONV_WINDOW_SIZES 4, 4, 3, 2
#endif
constexpr int kParityWidth = SYMCONV_BYTES == 64 ? 7 : 4;
#define SYMCONV_WINDOW(f, K, free, paired, tied, both)                               \
  {                                                                                  \
    {{f<T, K, false, false, free>, free}, {f<T, K, false, true, paired>, paired}}, { \
      {f<T, K, true, false, tied>, tied}, { f<T, K, true, true, both>, both }        \
    }                                                                                \
  }
// By parity along the line and of its images; without either a filter is not its own image.
#define SYMCONV_PARITIES(f, K, across, P)                                           \
  {                                                                                 \
    {f<T, K, across, kBothParities, P>, P}, {f<T, K, across, kEvenParity, P>, P}, { \
      f<T, K, across, kOddParity, P>, P                                             \
    }                                                                               \
  }
#define SYMCONV_PARITY_WINDOW(f, K, P)                                               \
  {SYMCONV_PARITIES(f, K, kBothParities, P), SYMCONV_PARITIES(f, K, kEvenParity, P), \
   SYMCONV_PARITIES(f, K, kOddParity, P)}
#define SYMCONV_PARITY_WINDOWS(f, P) \
  {SYMCONV_PARITY_WINDOW(f, 3, P), SYMCONV_PARITY_WINDOW(f, 5, P), SYMCONV_PARITY_WINDOW(f, 7, P)}
#define SYMCONV_WINDOWS_(f, ...) \
  {SYMCONV_WINDOW(f, 3, __VA_ARGS__), SYMCONV_WINDOW(f, 5, __VA_ARGS__), SYMCONV_WINDOW(f, 7, __VA_ARGS__)}
#define SYMCONV_WINDOWS(f, ...) SYMCONV_WINDOWS_(f, __VA_ARGS__)

template <class T>
constexpr DepthwiseSums<T> kDepthwiseSums = {
    kLineWidth,
    SYMCONV_WINDOWS(forward_window, SYMCONV_WINDOW_SIZES),
    SYMCONV_WINDOWS(adjoint_window, 7, 7, 7, 7),
    SYMCONV_WINDOWS(grad_window, SYMCONV_WINDOW_SIZES),
    SYMCONV_PARITY_WINDOWS(parity_window, kParityWidth),
    SYMCONV_PARITY_WINDOWS(parity_grad_window, kParityWidth),
    {line<T, kBothParities>, line<T, kEvenParity>, line<T, kOddParity>},
    {line_grad<T, kBothParities>, line_grad<T, kEvenParity>, line_grad<T, kOddParity>},
    combine<T>,
    butterfly_by_log<T>,
    fold_taps<T>,
};
