// Copies of lines into a stage: contiguous positions for every channel. Included by
// microkernels/kernels_impl.h, inside its namespace.

// Element n of every N, from N vectors.
template <class T, int N>
inline V<T> every(const V<T> (&v)[N], int n) {
  constexpr int L = Vec<T>::lanes;
  V<T> found = v[0];
#pragma GCC unroll 9
  for (int part = 1; part < N; ++part) {
    Mask<T> order;
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) {
      const int at = N * i + n;
      const int before = part == 1 ? at : i;
      order[i] = at / L == part ? L + at % L : at / L < part ? before : 0;
    }
    found = pick<T>(found, v[part], order);
  }
  return found;
}

// out[n * stride + i] = source[N * i + n].
template <class T, int N>
void deinterleave(const T* source, int64_t count, T* out, int64_t stride) {
  constexpr int L = Vec<T>::lanes;
  int64_t i = 0;
  for (; i + L <= count; i += L) {
    V<T> v[N];
#pragma GCC unroll 9
    for (int n = 0; n < N; ++n) v[n] = load(source + N * i + n * L);
#pragma GCC unroll 9
    for (int n = 0; n < N; ++n) save(out + n * stride + i, every<T, N>(v, n));
  }
  for (; i < count; ++i)
    for (int n = 0; n < N; ++n) out[n * stride + i] = source[N * i + n];
}

// A square of positions and channels, transposed; `P` and `C`: are there as many as a vector has?
template <class T, bool P, bool C>
inline void transpose_square(const T* source, int64_t step, int64_t positions, int64_t channels, T* out,
                             int64_t stride) {
  constexpr int L = Vec<T>::lanes;
  V<T> v[L];
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) {
    if (!P && i >= positions)
      v[i] = V<T>{};
    else
      v[i] = C ? load(source + i * step) : load_part(source + i * step, channels);
  }
  transpose<T>(v);
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) {
    if (!C && i >= channels) break;
    P ? save(out + i * stride, v[i]) : save_part(out + i * stride, v[i], positions);
  }
}

// [position][channel] to [channel][position], through registers. The last square in either direction overlaps
// the one before it.
template <class T, bool P, bool C>
inline void transpose_squares(const T* source, int64_t step, int64_t positions, int64_t channels, T* out,
                              int64_t stride) {
  constexpr int64_t L = Vec<T>::lanes;
  for (int64_t p = 0; p < positions; p += L) {
    if (P && p + L > positions) p = positions - L;
    for (int64_t c = 0; c < channels; c += L) {
      if (C && c + L > channels) c = channels - L;
      transpose_square<T, P, C>(source + p * step + c, step, positions, channels, out + c * stride + p,
                                stride);
    }
  }
}

template <class T>
void transpose_lines(const T* source, int64_t step, int64_t positions, int64_t channels, T* out,
                     int64_t stride) {
  constexpr int64_t L = Vec<T>::lanes;
  const auto squares =
      positions >= L  ? channels >= L ? transpose_squares<T, true, true> : transpose_squares<T, true, false>
      : channels >= L ? transpose_squares<T, false, true>
                      : transpose_squares<T, false, false>;
  squares(source, step, positions, channels, out, stride);
}

// The same past the caches. The last columns are stored by themselves: a line is streamed once.
template <class T>
void stream_rows(const T* source, int64_t step, int64_t rows, int64_t columns, T* out, int64_t out_stride) {
  constexpr int64_t L = Vec<T>::lanes;
  for (int64_t c = 0; c < columns; c += L)
    for (int64_t r = 0; r < rows; r += L) {
      V<T> v[L];
      const int64_t count = columns - c < L ? columns - c : L;
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) {
        const T* from = source + (r + i) * step + c;
        v[i] = count == L ? load(from) : load_part(from, count);
      }
      transpose<T>(v);
      T* to = out + c * out_stride + r;
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) {
        if (i >= count) break;
        stream<T, V<T>>(to + i * out_stride, v[i]);
      }
    }
}

// All channels of a line: out[c * out_stride + i] = source[c * channel_stride + i * step].
template <class T>
void stage_line(const T* source, int64_t channel_stride, int64_t step, int64_t channels, int64_t positions,
                T* out, int64_t out_stride) {
  if (channel_stride == 1 && channels == step && channels == 3)
    return deinterleave<T, 3>(source, positions, out, out_stride);
  if (channel_stride == 1 && channels == step && channels == 2)
    return deinterleave<T, 2>(source, positions, out, out_stride);
  if (channel_stride == 1 && channels == step && channels == 4)
    return deinterleave<T, 4>(source, positions, out, out_stride);
  if (channel_stride == 1 && channels == step && channels == 9)  // taps of filters
    return deinterleave<T, 9>(source, positions, out, out_stride);
  if (channel_stride == 1 && channels > 1)
    return transpose_lines(source, step, positions, channels, out, out_stride);
  for (int64_t c = 0; c < channels; ++c, source += channel_stride, out += out_stride) {
    if (step == 1) {
      for (int64_t i = 0; i < positions; ++i) out[i] = source[i];
    } else {
      for (int64_t i = 0; i < positions; ++i) out[i] = source[i * step];
    }
  }
}

// Residue r of a line goes to out + r * pitch.
template <class T>
void split_line(const T* line, int64_t positions, int64_t residues, T* out, int64_t pitch) {
  if (residues == 2) {
    deinterleave<T, 2>(line, positions / 2, out, pitch);
    if (positions % 2) out[positions / 2] = line[positions - 1];
    return;
  }
  for (int64_t r = 0; r < residues; ++r)
    for (int64_t i = 0; i * residues + r < positions; ++i) out[r * pitch + i] = line[i * residues + r];
}

// Of 16-bit elements.
template <class T>
void stage_elements(const Element<T>* source, int64_t channel_stride, int64_t step, int64_t channels,
                    int64_t positions, Element<T>* out, int64_t out_stride) {
  stage_line<uint16_t>(reinterpret_cast<const uint16_t*>(source), channel_stride, step, channels, positions,
                       reinterpret_cast<uint16_t*>(out), out_stride);
}

template <class T>
void split_elements(const Element<T>* line, int64_t positions, int64_t residues, Element<T>* out,
                    int64_t pitch) {
  split_line<uint16_t>(reinterpret_cast<const uint16_t*>(line), positions, residues,
                       reinterpret_cast<uint16_t*>(out), pitch);
}

// Results may lie where a and b do.
template <class T>
void add_subtract(const T* a, const T* b, int64_t count, T* sum, T* difference) {
  constexpr int L = Vec<T>::lanes;
  int64_t i = 0;
  for (; i + L <= count; i += L) {
    const V<T> x = load(a + i), y = load(b + i);
    save(sum + i, x + y), save(difference + i, x - y);
  }
  for (; i < count; ++i) {
    const T x = a[i], y = b[i];
    sum[i] = x + y, difference[i] = x - y;
  }
}
