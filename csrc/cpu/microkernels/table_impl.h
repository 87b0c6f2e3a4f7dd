// The table of one element type: kernels by their names. Included by microkernels/kernels_impl.h, inside its
// namespace.

// Is there minimal filtering? It is float32's: 16-bit types would be rounded before it, and float64 is asked
// for where errors matter.
template <class T>
constexpr bool kFilters = Same<T, float>::value;

// Slots by filtering, and by log2 of the number S of sources or members. `of` names the function for F and S.
// With eight no axis is left to filter along.
template <class F, class Slots, class Of>
constexpr void fill_sizes(Slots& slots, Of of) {
  slots[0] = of.template operator()<F, 1>();
  slots[1] = of.template operator()<F, 2>();
  slots[2] = of.template operator()<F, 4>();
  if constexpr (Same<F, Plain>::value) slots[3] = of.template operator()<F, 8>();
}
template <class T, class Slots, class Of>
constexpr void fill(Slots& slots, Of of) {
  fill_sizes<Plain>(slots[kPlain], of);
  if constexpr (kFilters<T>) {
    fill_sizes<F2>(slots[kF2], of);
    fill_sizes<F4>(slots[kF4], of);
  }
}

template <class T>
constexpr void fill_packing(Kernels<T>& k) {
  fill<T>(k.fold_pixels, []<class F, int S>() { return pack_pixels<T, S, S, F>; });
  fill<T>(k.fold_planes, []<class F, int S>() { return pack_planes<T, S, S, F>; });
  fill<T>(k.sum_pixels, []<class F, int S>() { return pack_pixels<T, S, 1, F>; });
  fill<T>(k.sum_planes, []<class F, int S>() { return pack_planes<T, S, 1, F>; });
  k.fold_line = pack_staged_line<T, false>, k.sum_line = pack_staged_line<T, true>;
  k.both_pixels[2][1] = pack_pixels<T, 4, 2, Plain>, k.both_planes[2][1] = pack_planes<T, 4, 2, Plain>;
  k.both_pixels[3][1] = pack_pixels<T, 8, 2, Plain>, k.both_planes[3][1] = pack_planes<T, 8, 2, Plain>;
  k.both_pixels[3][2] = pack_pixels<T, 8, 4, Plain>, k.both_planes[3][2] = pack_planes<T, 8, 4, Plain>;
  fill<T>(k.fold_weights, []<class F, int S>() { return fold_weights<T, S, F>; });
  k.gather[kPlain] = gather<T, Plain>;
  if constexpr (kFilters<T>) {
    k.gather[kF2] = gather<T, F2>, k.gather[kF4] = gather<T, F4>;
    // Along a tied axis: of one source, and of both members of a pair beside another tied axis.
    k.fold_pixels[kF4Parities][0] = pack_pixels<T, 1, 1, F4Parities>;
    k.fold_planes[kF4Parities][0] = pack_planes<T, 1, 1, F4Parities>;
    k.sum_pixels[kF4Parities][2] = pack_pixels<T, 4, 1, F4Parities>;
    k.sum_planes[kF4Parities][2] = pack_planes<T, 4, 1, F4Parities>;
    k.fold_weights[kF4Parities][0] = fold_weights<T, 1, F4Parities>;
    k.fold_weights[kF4Parities][1] = fold_weights<T, 2, F4Textbook>;
  }
}

template <class T>
constexpr void fill_stores(Kernels<T>& k) {
  fill<T>(k.store, []<class F, int S>() { return store<T, S, F>; });
  fill<T>(k.store_transposed, []<class F, int S>() { return store_transposed<T, S, F>; });
  if constexpr (kFilters<T>) {
    k.store[kF4Parities][0] = store<T, 1, F4Textbook>;
    k.store_transposed[kF4Parities][0] = store_transposed<T, 1, F4Textbook>;
  }
}

// K: taps, 0 for any number.
template <class T, int K, class Slots>
constexpr void fill_scatter(Slots& slots) {
  slots[0][kPlain] = scatter_store<T, K, 2, Plain>;
  slots[1][kPlain] = scatter_store<T, K, 4, Plain>;
  if constexpr (kFilters<T>) {
    slots[0][kF2] = scatter_store<T, K, 2, F2>;
    slots[0][kF4] = scatter_store<T, K, 2, F4>;
    slots[1][kF4Parities] = scatter_store<T, K, 4, F4Parities>;
  }
}

// By log2 of the number of members.
template <class T, bool kPlanes, class Slots>
constexpr void fill_folded(Slots& slots) {
  slots[1] = folded<T, kPlanes, 2>, slots[2] = folded<T, kPlanes, 4>, slots[3] = folded<T, kPlanes, 8>;
}

// What sees elements; float and double have sums of their own beside it.
template <class T>
constexpr Kernels<T> make_table() {
  Kernels<T> k{};
  k.lanes = Vec<Sum<T>>::lanes;
  k.max_rows[1] = SYMCONV_ROWS1, k.max_rows[2] = SYMCONV_ROWS2, k.max_rows[3] = SYMCONV_ROWS3;
  fill_folded<T, false>(k.folded[0]), fill_folded<T, true>(k.folded[1]);
  k.folded_rows[1] = kFoldedRows<1>, k.folded_rows[2] = kFoldedRows<2>, k.folded_rows[3] = kFoldedRows<3>;
  fill_packing(k);
  fill_stores(k);
  k.scatter_lines[0] = scatter_lines<T, 3>, k.scatter_lines[1] = scatter_lines<T, 0>;
  fill_scatter<T, 3>(k.scatter_store[0]), fill_scatter<T, 0>(k.scatter_store[1]);
  k.combine = combine<T>;
  if constexpr (kNarrow<T>) {
    k.stage_line = stage_elements<T>, k.split_line = split_elements<T>;
  } else {
    k.stage_line = stage_line<T>, k.split_line = split_line<T>, k.stream_rows = stream_rows<T>;
    k.fold_blocks[1] = fold_blocks<T, 2>, k.fold_blocks[2] = fold_blocks<T, 4>;
    k.fold_blocks[3] = fold_blocks<T, 8>;
    k.gemm_mirrored = gemm_mirrored<T>;
    k.mirrored_rows[1] = k.mirrored_rows[2] = SYMCONV_ROWS2, k.mirrored_rows[3] = SYMCONV_ROWS3;
    k.taps = taps<T>, k.add_subtract = add_subtract<T>, k.correlate = correlate<T>;
    k.correlate_rows[1] = kCorrelateRowsOf<1>, k.correlate_rows[2] = kCorrelateRowsOf<2>;
    k.correlate_rows[3] = kCorrelateRowsOf<3>;
  }
  return k;
}

#ifdef SYMCONV_PAIR_INSTRUCTIONS

constexpr Kernels<Pair> make_pair_table() {
  Kernels<Pair> k = make_table<Pair>();
  k.gemm = gemm<Pair>, k.vnni_interleave = vnni_interleave;
  return k;
}
constexpr Kernels<Pair> kPairTable = make_pair_table();

const Kernels<Pair>& table(Pair) { return kPairTable; }

#else

template <class T>
constexpr Kernels<T> make_sums_table() {
  Kernels<T> k = make_table<T>();
  k.gemm = gemm<T>;
  k.depthwise = {kDepthwiseSums<T>, gather_lanes<T>, scatter_lanes<T>};
  return k;
}

// 16-bit types are widened while they are packed: what sees sums alone is that of float.
template <class T>
Kernels<T> make_wide_table(const Kernels<float>& sums) {
  Kernels<T> k = make_table<T>();
  k.gemm = sums.gemm;
  k.depthwise = {sums.depthwise, gather_lanes<T>, scatter_lanes<T>};
  return k;
}

const Kernels<float>& table(float);  // in the file of its type

template <class T>
SYMCONV_INLINE const Kernels<T>& made_table(T) {
  if constexpr (kNarrow<T>) {
    static const Kernels<T> made = make_wide_table<T>(table(float()));
    return made;
  } else {
    static constexpr Kernels<T> made = make_sums_table<T>();
    return made;
  }
}

const Kernels<SYMCONV_OF>& table(SYMCONV_OF type) { return made_table(type); }

#endif
