// Wrappers around the kernels of a table. They find it by its type: there is one a process.
#include "selection/counting.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <type_traits>

#include "blocking.h"

namespace symconv {
namespace {

std::atomic<int64_t> products{0}, panel_bytes{0};

struct Memory {
  std::map<const void*, int64_t> taken;  // by owner
  int64_t now = 0, most = 0;
};
Memory& memory() {
  static thread_local Memory own;
  return own;
}

// The functions of a table, each as that table has it. `kDry`: none of them is called.
template <class T, bool kDry>
struct Counted {
  using W = Word<T>;
  using S = Sum<T>;
  static inline const Kernels<T>* own = nullptr;

  static void multiplied(int64_t rows, int64_t vectors, int64_t contracted) {
    products += rows * vectors * own->lanes * contracted;
  }

  static void gemm(int rows, int vectors, const GemmArgs<W>& g) {
    int64_t words = g.half ? 1 : 0;
    for (int64_t s = 0; s < g.segments; ++s) words += g.k[s];
    multiplied(rows, vectors, words * Format<T>::depth);
    if (!kDry) own->gemm(rows, vectors, g);
  }
  static void gemm_mirrored(int rows, int vectors, const MirroredArgs<T>& g) {
    multiplied(rows, vectors, g.segments * g.k);
    if (!kDry) own->gemm_mirrored(rows, vectors, g);
  }
  static void taps(int rows, int vectors, const TapsArgs<T>& a) {
    multiplied(rows, vectors, a.taps);
    if (!kDry) own->taps(rows, vectors, a);
  }
  static void correlate(int rows, int vectors, const CorrelateArgs<T>& a) {
    multiplied(rows, vectors, a.positions);
    if (!kDry) own->correlate(rows, vectors, a);
  }
  template <int kPlanes, int kLog>
  static void folded(int rows, int vectors, const FoldedArgs<T>& a, const FoldedTile<T>& tile) {
    int64_t taps = 0;
    for (int parity = 0; parity < 1 << kLog; ++parity) taps += a.taps[parity];
    multiplied(rows, vectors, taps);
    if (!kDry) own->folded[kPlanes][kLog](rows, vectors, a, tile);
  }

  // Panels. Sums have one result, or both parities of a filtered axis; folds as many as sources.
  template <int kFiltering, int kLog, bool kFold, auto kField>
  static void pack(const RunArgs<T>& a) {
    const int64_t lines = kFold ? kLinesIn[kFiltering] << kLog : kProducts[kFiltering];
    panel_bytes += a.positions * a.channels * lines * static_cast<int64_t>(sizeof(Stored<T>));
    if (!kDry) (own->*kField)[kFiltering][kLog](a);
  }
  template <int kLog, int kOutputs, auto kField>
  static void pack_both(const RunArgs<T>& a) {
    panel_bytes += (a.positions * a.channels << kOutputs) * static_cast<int64_t>(sizeof(Stored<T>));
    if (!kDry) (own->*kField)[kLog][kOutputs](a);
  }
  template <int kLog>
  static void fold_blocks(const BlocksArgs<T>& a) {
    panel_bytes += (a.rows * a.length << kLog) * static_cast<int64_t>(sizeof(Stored<T>));
    if (!kDry) own->fold_blocks[kLog](a);
  }
  template <int kFiltering>
  static void gather(const GatherArgs<T>& a) {
    panel_bytes += a.positions * a.channels * kLinesIn[kFiltering] * static_cast<int64_t>(sizeof(Stored<T>));
    if (!kDry) own->gather[kFiltering](a);
  }

  // Everything else moves what was counted, or will be.
  static void nothing_stored(const StoreArgs<T>&) {}
  static void nothing_scattered(const ScatterArgs<T>&) {}
  static void nothing_weighed(const WeightArgs<T>&) {}
  static void nothing_staged(const Element<T>*, int64_t, int64_t, int64_t, int64_t, Element<T>*, int64_t) {}
  static void nothing_split(const Element<T>*, int64_t, int64_t, Element<T>*, int64_t) {}
  static void nothing_combined(const CombineArgs<T>&) {}
  static void nothing_added(const T*, const T*, int64_t, T*, T*) {}
  static void nothing_interleaved(const VnniArgs&) {}

  // --- depthwise: every kernel line, and each of its images, is as many products as it has taps ---

  template <int kWindow, int kTied, int kVertical, auto kField>
  static void window(const WindowArgs<S>& a) {
    const int64_t width = (own->depthwise.*kField)[kWindow][kTied][kVertical].width;
    int64_t lines = 0;
    for (int64_t l = a.begin; l < a.end; ++l)
      for (int images = 0; images < 3; ++images)
        lines += static_cast<int64_t>(a.first[3 * l + images + 1] - a.first[3 * l + images]) << images;
    multiplied(lines, (a.positions + width - 1) / width * width, 3 + 2 * kWindow);
    if (!kDry) (own->depthwise.*kField)[kWindow][kTied][kVertical].run(a);
  }
  template <int kWindow, int kTied, int kImages>
  static void weight_window(const WindowGradArgs<S>& a) {
    const int64_t width = own->depthwise.weight_grad[kWindow][kTied][kImages].width;
    multiplied(a.step_count << kImages, (a.positions + width - 1) / width * width, 3 + 2 * kWindow);
    if (!kDry) own->depthwise.weight_grad[kWindow][kTied][kImages].run(a);
  }
  // Of one parity: images are one line.
  template <int kWindow, int kAcross, int kUp>
  static void parity_window(const WindowArgs<S>& a) {
    const Window<S>& kernel = own->depthwise.parity[kWindow][kAcross][kUp];
    const auto lines = static_cast<int64_t>(a.first[3 * a.end] - a.first[3 * a.begin]);
    multiplied(lines, round_up(a.positions, kernel.width), parity_taps(kWindow, kAcross));
    if (!kDry) kernel.run(a);
  }
  template <int kWindow, int kAcross, int kUp>
  static void parity_weight_window(const WindowGradArgs<S>& a) {
    const WindowGrad<S>& kernel = own->depthwise.parity_grad[kWindow][kAcross][kUp];
    multiplied(a.step_count, round_up(a.positions, kernel.width), parity_taps(kWindow, kAcross));
    if (!kDry) kernel.run(a);
  }
  static int64_t parity_taps(int window, int across) {
    const int taps = 3 + 2 * window;
    return across == kBothParities ? taps : across == kEvenParity ? (taps + 1) / 2 : taps / 2;
  }
  static int64_t taps_of(const LineTaps& t, int parity) {
    return t.plain_count + (parity == kBothParities ? 2 : 1) * t.pair_count + t.left_count + t.right_count;
  }
  template <int kParity>
  static void line(const LineArgs<S>& a) {
    multiplied(a.line_count, a.positions, taps_of(a.taps, kParity));
    if (!kDry) own->depthwise.line[kParity](a);
  }
  template <int kParity>
  static void line_grad(const LineGradArgs<S>& a) {
    multiplied(1, a.positions, taps_of(a.taps, kParity));
    if (!kDry) own->depthwise.line_grad[kParity](a);
  }
  static void nothing_line(const S* const*, int, int, S*, int64_t) {}
  static void nothing_butterfly(S* const*, int, int64_t) {}
  static void nothing_taps(const TapGroup*, int64_t, const S*, S*, bool) {}
  static void nothing_lanes(const LaneArgs<T>&) {}
};

// Sets `to` where there is a kernel.
template <class F>
void put(F*& to, F* from) {
  if (to) to = from;
}

// Calls f.operator()<0>() .. f.operator()<n - 1>().
template <int n, class F>
void each(const F& f) {
  if constexpr (n > 0) {
    each<n - 1>(f);
    f.template operator()<n - 1>();
  }
}

template <class T, bool kDry>
void count_multiplications(Kernels<T>& k) {
  using C = Counted<T, kDry>;
  put(k.gemm, &C::gemm);
  if constexpr (!kNarrow<T>)
    put(k.taps, &C::taps), put(k.correlate, &C::correlate), put(k.gemm_mirrored, &C::gemm_mirrored);
  each<4>([&]<int log>() {
    put(k.folded[0][log], &C::template folded<0, log>), put(k.folded[1][log], &C::template folded<1, log>);
  });
}

template <class T, bool kDry>
void count_panels(Kernels<T>& k) {
  using C = Counted<T, kDry>;
  using K = Kernels<T>;
  each<kFilterings>([&]<int f>() {
    each<4>([&]<int log>() {
      put(k.fold_pixels[f][log], &C::template pack<f, log, true, &K::fold_pixels>);
      put(k.fold_planes[f][log], &C::template pack<f, log, true, &K::fold_planes>);
      put(k.sum_pixels[f][log], &C::template pack<f, log, false, &K::sum_pixels>);
      put(k.sum_planes[f][log], &C::template pack<f, log, false, &K::sum_planes>);
    });
    put(k.gather[f], &C::template gather<f>);
  });
  if constexpr (!kNarrow<T>)
    each<4>([&]<int log>() { put(k.fold_blocks[log], &C::template fold_blocks<log>); });
  each<3>([&]<int outputs>() {
    put(k.both_pixels[2][outputs], &C::template pack_both<2, outputs, &K::both_pixels>);
    put(k.both_planes[2][outputs], &C::template pack_both<2, outputs, &K::both_planes>);
    put(k.both_pixels[3][outputs], &C::template pack_both<3, outputs, &K::both_pixels>);
    put(k.both_planes[3][outputs], &C::template pack_both<3, outputs, &K::both_planes>);
  });
}

template <class T, bool kDry>
void count_depthwise(DepthwiseKernels<T>& k) {
  using C = Counted<T, kDry>;
  using D = DepthwiseSums<Sum<T>>;
  each<kWindows>([&]<int w>() {
    each<4>([&]<int i>() {
      put(k.forward[w][i / 2][i % 2].run, &C::template window<w, i / 2, i % 2, &D::forward>);
      put(k.input_grad[w][i / 2][i % 2].run, &C::template window<w, i / 2, i % 2, &D::input_grad>);
      put(k.weight_grad[w][i / 2][i % 2].run, &C::template weight_window<w, i / 2, i % 2>);
    });
  });
  each<kWindows>([&]<int w>() {
    each<kLineParities * kLineParities>([&]<int i>() {
      constexpr int across = i / kLineParities, up = i % kLineParities;
      put(k.parity[w][across][up].run, &C::template parity_window<w, across, up>);
      put(k.parity_grad[w][across][up].run, &C::template parity_weight_window<w, across, up>);
    });
  });
  each<kLineParities>([&]<int parity>() {
    put(k.line[parity], &C::template line<parity>);
    put(k.line_grad[parity], &C::template line_grad<parity>);
  });
}

// Has nothing else happen.
template <class T>
void silence(Kernels<T>& k) {
  using C = Counted<T, true>;
  for (auto& row : k.store)
    for (auto& one : row) put(one, &C::nothing_stored);
  for (auto& row : k.store_transposed)
    for (auto& one : row) put(one, &C::nothing_stored);
  for (auto& one : k.scatter_lines) put(one, &C::nothing_scattered);
  for (auto& by_taps : k.scatter_store)
    for (auto& by_members : by_taps)
      for (auto& one : by_members) put(one, &C::nothing_scattered);
  for (auto& row : k.fold_weights)
    for (auto& one : row) put(one, &C::nothing_weighed);
  put(k.stage_line, &C::nothing_staged), put(k.split_line, &C::nothing_split);
  put(k.combine, &C::nothing_combined), put(k.vnni_interleave, &C::nothing_interleaved);
  put(k.add_subtract, &C::nothing_added);
  DepthwiseKernels<T>& d = k.depthwise;
  put(d.combine, &C::nothing_line), put(d.butterfly, &C::nothing_butterfly);
  put(d.fold_taps, &C::nothing_taps), put(d.gather, &C::nothing_lanes), put(d.scatter, &C::nothing_lanes);
}

template <class T, bool kDry>
Kernels<T> make_table(const Kernels<T>& own) {
  Counted<T, kDry>::own = &own;
  Kernels<T> k = own;
  count_multiplications<T, kDry>(k);
  count_panels<T, kDry>(k);
  if constexpr (!std::is_same_v<T, Pair>) count_depthwise<T, kDry>(k.depthwise);
  if constexpr (kDry) silence(k);
  return k;
}

}  // namespace

Counting& counting() {
  static thread_local Counting how = Counting::off;
  return how;
}

Done take_done() {
  Memory& m = memory();
  const Done done{products.exchange(0), panel_bytes.exchange(0), m.most};
  m.most = m.now;
  return done;
}

template <class T>
const Kernels<T>& counting_kernels(const Kernels<T>& own, Counting how) {
  static const Kernels<T> counted = make_table<T, false>(own), dry = make_table<T, true>(own);
  return how == Counting::dry ? dry : counted;
}

#define SYMCONV_INSTANTIATE(T) template const Kernels<T>& counting_kernels<T>(const Kernels<T>&, Counting);
SYMCONV_FOR_ALL_TYPES(SYMCONV_INSTANTIATE)

void count_taken(const void* owner, int64_t bytes) {
  Memory& m = memory();
  m.taken[owner] = bytes;
  m.now += bytes;
  m.most = std::max(m.most, m.now);
}

void count_given_back(const void* owner) {
  Memory& m = memory();
  const auto found = m.taken.find(owner);
  if (found == m.taken.end()) return;
  m.now -= found->second;
  m.taken.erase(found);
}

}  // namespace symconv
