// The store of a tile into memory where its rows are contiguous and its lanes are not: finished rows go to a
// buffer, which is transposed in registers. Rows are channels, and so is the bias; lanes are positions.
// Included by microkernels/kernels_impl.h, inside its namespace.

// `rows` rows of the buffer, L elements each, to contiguous channels at L positions of which `positions`
// exist.
template <class A, class E>
inline void transpose_rows(const A* rows, int count, E* out, const int64_t* offset, int64_t positions) {
  constexpr int L = Vec<A>::lanes;
  for (int r0 = 0; r0 < count; r0 += L) {
    const int n = count - r0 < L ? count - r0 : L;
    V<A> v[L];
    for (int i = 0; i < L; ++i) v[i] = i < n ? load(rows + (r0 + i) * L) : V<A>{};
    transpose<A>(v);
    for (int64_t p = 0; p < L && p < positions; ++p) {
      E* to = out + r0 + offset[p];
      n < L ? write_part<A>(to, v[p], n) : write<V<A>>(to, v[p]);
    }
  }
}

// Places of the members by their order in the output. False if they do not follow each other there, one run
// of `rows` channels each; then every member has its own place.
template <class T, int G>
inline bool order_members(const StoreArgs<T>& a, int rows, int (&place)[G]) {
  int first = 0, taken = 0;
  for (int g = 1; g < G; ++g)
    if (a.out[g] < a.out[first]) first = g;
  bool together = true;
  for (int g = 0; g < G; ++g) {
    const int64_t apart = a.out[g] - a.out[first];
    together = together && apart % rows == 0 && apart / rows < G;
    place[g] = together ? static_cast<int>(apart / rows) : 0;
    taken |= 1 << place[g];
  }
  together = together && taken == (1 << G) - 1;
  for (int g = 0; g < G && !together; ++g) place[g] = g;
  return together;
}

// Results of all members for one row and L positions, one buffer row a member and line.
template <class T, int G, class F>
inline void finish_row(const StoreArgs<T>& a, const Sum<T>* tile, int64_t r, const int (&place)[G],
                       Sum<T>* buffer, int64_t rows, int64_t line) {
  using A = Sum<T>;
  constexpr int L = Vec<A>::lanes;
  V<A> y[F::out][G];
  for (int g = 0; g < G; ++g) {
    V<A> m[F::in], lines[F::out];
    for (int i = 0; i < F::in; ++i) m[i] = load(tile + g * a.parity_stride + i * a.product_stride);
    F::result(m, lines);
    for (int i = 0; i < F::out; ++i) y[i][g] = lines[i];
  }
  for (int i = 0; i < F::out; ++i) {
    butterfly(y[i]);
    for (int g = 0; g < G; ++g) {
      if (a.bias[0]) y[i][g] += V<A>{} + read<A>(a.bias[g] + r);
      save(buffer + i * line + (place[g] * rows + r) * L, y[i][g]);
    }
  }
}

// As `store`, where rows are contiguous in the output and have the bias, and columns lie at col_offset.
template <class T, int G, class F>
void store_transposed(const StoreArgs<T>& a) {
  using A = Sum<T>;
  constexpr int L = Vec<A>::lanes, kRows = 16;
  A buffer[F::out * G * kRows * L];
  for (int64_t r0 = 0; r0 < a.rows; r0 += kRows) {
    const int rows = static_cast<int>(a.rows - r0 < kRows ? a.rows - r0 : kRows);
    int place[G];
    const bool together = order_members<T, G>(a, rows, place);  // stored as one run of channels
    const int count = together ? G * rows : rows;
    Element<T>* out[G];
    for (int g = 0; g < G; ++g) out[place[g]] = a.out[g] + r0;
    StoreArgs<T> part = a;
    for (int g = 0; g < G; ++g) part.bias[g] = a.bias[0] ? a.bias[g] + r0 : nullptr;
    for (int64_t c = 0; c < a.cols; c += L) {
      const A* tile = a.tile + r0 * a.ld + c;
      for (int64_t r = 0; r < rows; ++r)
        finish_row<T, G, F>(part, tile + r * a.ld, r, place, buffer, rows, G * kRows * L);
      for (int i = 0; i < a.lines && i < F::out; ++i)
        for (int g = 0; g < (together ? 1 : G); ++g)
          transpose_rows(buffer + (i * G * kRows + g * rows) * L, count, out[g] + i * a.line_stride,
                         a.col_offset + c, a.cols - c);
    }
  }
}
