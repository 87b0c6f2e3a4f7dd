// The multiplication behind the weight gradient: positions are the contraction.
#include "packed/wgrad.h"

#include <algorithm>
#include <type_traits>

#include "convert.h"
#include "microkernels/tiles.h"
#include "packed/wgrad_lines.h"
#include "packed/wgrad_store.h"
#include "workspace.h"

namespace symconv {

namespace {

template <class T>
class Accumulator : public WgradStore<T> {
 public:
  using WgradStore<T>::WgradStore;

  void operator()() {
    const int64_t tasks = p_.groups * parts_ * splits_;
    const int64_t slices = std::min(tasks, thread_count(p_.macs()));
    const int64_t each = local_elements(), pixels = most_pixels_,
                  room = WeightSums<T>::elements(kernel_taps(p_));
    Scratch<Sum<T>> acc(elements_ * (own_ ? slices : splits_ * p_.groups));
    Scratch<Sum<T>> memory(each * slices);
    Scratch<int64_t> offsets(pixels * slices);
    Scratch<Element<T>> rooms(room * slices);
    const auto sum = [&](bool add) {
      parallel_slices(tasks, slices, [&](int64_t begin, int64_t end, int64_t slice) {
        const TileScope tiles;
        Local local = local_memory(memory.data() + slice * each, offsets.data() + slice * pixels,
                                   rooms.data() + slice * room);
        for (int64_t task = begin; task < end; ++task)
          own_ ? run_part(task, acc.data() + slice * elements_, local)
               : run_split(task, add, acc.data(), local);
      });
    };
    sum(false);
    while (w_.next && w_.next()) sum(true);
    if (own_) return;
    const auto units = static_cast<int64_t>(orbits_.size());
    parallel_slices(p_.groups * units, slices, [&](int64_t begin, int64_t end, int64_t slice) {
      for (int64_t i = begin; i < end; ++i)
        store(orbits_[i % units], i / units, acc.data() + i / units * splits_ * elements_,
              rooms.data() + slice * room);
    });
  }

 private:
  using Base = WgradStore<T>;
  using Base::elements_, Base::most_pixels_;
  using Base::kDepth, Base::w_, Base::p_, Base::kernels_, Base::lanes_, Base::channels_;
  using Base::pack_gradient, Base::pack_input, Base::fold_input, Base::zip, Base::store;
  using Base::parities, Base::rows_of_channels, Base::split_chunk, Base::local_elements, Base::local_memory;
  using Base::splits_, Base::parts_, Base::plans_, Base::work_, Base::orbits_, Base::own_;
  using typename Base::Local, typename Base::Orbits;

  void run_split(int64_t task, bool add, Sum<T>* acc, Local& local) const {
    const int64_t split = task % splits_, part = task / splits_ % parts_, group = task / splits_ / parts_;
    Sum<T>* into = acc + (group * splits_ + split) * elements_;
    accumulate(part, group, split, add, into, local);
  }

  // All positions of a part: its sums are stored while they are in the cache.
  void run_part(int64_t task, Sum<T>* acc, Local& local) const {
    const int64_t part = task % parts_, group = task / parts_;
    accumulate(part, group, 0, false, acc, local);
    for (const Orbits& some : orbits_)
      if (some.part == part) store(some, group, acc, local.room);
  }

  // The positions of a split, of all phases: one after the other, or tile by tile where they read one stage.
  void accumulate(int64_t part, int64_t group, int64_t split, bool add, Sum<T>* into, Local& local) const {
    const std::vector<PhaseWork>& works = work_[part];
    const bool together = w_.staged && !works.empty() && works[0].phase.tiling.strip > 0;
    const auto first = [&](const PhaseWork& work, int64_t of_split) {
      return p_.batch * work.phase.tiling.tiles() * of_split / splits_;
    };
    for (const PhaseWork& work : works) {
      const int64_t begin = first(work, split), end = first(work, split + 1);
      const bool adds = add || work.shares;
      if (!adds && (together || begin == end)) clear(work, into);
      for (int64_t i = begin; i < end && !together; ++i)
        accumulate_tile(*plans_[part], work, i, group, adds || i > begin, into, local);
    }
    if (!together) return;
    for (int64_t i = first(works[0], split); i < first(works[0], split + 1); ++i)
      for (const PhaseWork& work : works) accumulate_tile(*plans_[part], work, i, group, true, into, local);
  }

  void clear(const PhaseWork& work, Sum<T>* into) const {
    const int64_t size = work.shift_stride * static_cast<int64_t>(work.taps.size());
    std::fill_n(into + work.offset, w_.planes ? size : work.acc_ld * channels_, Sum<T>(0));
  }

  void accumulate_tile(const Plan& plan, const PhaseWork& work, int64_t index, int64_t group, bool add,
                       Sum<T>* into, Local& local) const {
    const Tile tile = tile_at(work.phase.tiling, index);
    if (tile.is_empty()) return;
    Sum<T>* acc = into + work.offset;
    pack_gradient(plan, work, tile, group, split_chunk(plan), local);
    for (int block = 0; block < parities(); ++block) pack_input(work, tile, group, block, local);
    fold_input(work, local);
    int64_t zipped_from = -1;
    for (size_t j = 0; j < work.taps.size(); ++j) {
      int64_t shift = 0, p0 = 0, p1 = tile.pixels();
      const int64_t product = plan.filtering ? static_cast<int64_t>(j) : 0;
      if (plan.offset_axis >= 0 && !plan.filtering) {
        const AxisMap& map = *work.phase.axis[plan.offset_axis];
        const int64_t b = map.b[work.taps[j]];
        shift = (b - work.phase.tiling.b_min) * tile.line();
        p0 = std::clamp<int64_t>(-b - tile.begin[0], 0, tile.size[0]) * tile.line();
        p1 = std::clamp<int64_t>(map.extent - b - tile.begin[0], 0, tile.size[0]) * tile.line();
      }
      if constexpr (kDepth > 1) zip(work, local, (w_.planes ? p0 : shift + p0) % 2, tile, zipped_from);
      for (int parity = 0; parity < parities(); ++parity)
        multiply(work, local, parity, product, acc + static_cast<int64_t>(j) * work.shift_stride, shift, p0,
                 p1, add);
    }
  }

  // Elements as words: the left side may start at any of them.
  static const Word<T>* as_words(const Stored<T>* p) { return reinterpret_cast<const Word<T>*>(p); }

  void multiply(const PhaseWork& work, const Local& local, int parity, int64_t product, Sum<T>* acc,
                int64_t shift, int64_t p0, int64_t p1, bool add) const {
    const int64_t slot = work.begin[parity], slots = work.begin[parity + 1] - slot;
    const int64_t rows = w_.planes ? slots : channels_, columns = w_.planes ? channels_ : slots;
    acc += slot * (w_.planes ? work.acc_ld : 1);
    const int64_t zero = 0, positions = std::max<int64_t>(0, p1 - p0), k = positions / kDepth;
    // Pieces of about one length: the first one also clears the accumulator where there are no positions.
    const bool few = p_.batch * p_.in[0] * p_.in[1] * p_.in[2] <= kFewPositions;
    const int64_t longest = std::is_same_v<T, float> ? (few ? kShortChain : kLongChain) : k;
    const int64_t pieces = std::max<int64_t>(1, ceil_div(k, std::max<int64_t>(1, longest)));
    int64_t chain = 0;
    GemmArgs<Word<T>> g{};
    g.a_offset = g.b_offset = &zero;
    g.k = &chain, g.segments = positions > 0 ? 1 : 0;
    g.half = positions % kDepth != 0;
    const bool transposed = !w_.planes && rows_of_channels();
    g.lda = transposed ? 1 : (w_.planes ? work.panel_ld : work.row_ld) / kDepth;
    g.a_step = transposed ? work.row_ld : 1;
    g.ldb = w_.planes ? work.row_ld : work.panel_ld;
    g.ldc = work.acc_ld;
    const Stored<T>* panel =
        local.panel + product * work.panel_stride + slot * (w_.planes ? work.panel_ld : 1);
    const Stored<T>* input = local.rows + parity * work.block_stride + product * work.row_stride;
    const Word<T>* a = as_words(w_.planes ? panel + shift + p0 : input + p0 * g.a_step);
    const int64_t at = w_.planes ? p0 : shift + p0;
    const Word<T>* zipped = local.zipped + (w_.planes ? parity * work.zipped_stride : slot);
    const Word<T>* b =
        kDepth > 1 ? zipped + at / kDepth * g.ldb : as_words((w_.planes ? input : panel) + at * g.ldb);
    for (const ColumnBlock& block : column_blocks(columns, lanes_)) {
      for_pieces(rows, kernels_.max_rows[block.vectors], [&](int64_t r0, int64_t count) {
        g.c = acc + r0 * g.ldc + block.vector * lanes_;
        for (int64_t i = 0; i < pieces; ++i) {
          const int64_t first = k * i / pieces;
          chain = k * (i + 1) / pieces - first;
          g.a = a + r0 * g.lda + first * g.a_step;
          g.b = b + block.vector * lanes_ + first * g.ldb;
          g.add = add || i > 0;
          kernels_.gemm(static_cast<int>(count), block.vectors, g);
        }
      });
    }
  }
};

}  // namespace

template <class T>
void wgrad(const Wgrad<T>& w) {
  if constexpr (!kNarrow<T>)
    if (w.by_lines) return wgrad_by_lines<T>(w);
  Accumulator<T>{w}();
}

#define SYMCONV_INSTANTIATE(T) template void wgrad<T>(const Wgrad<T>&);
SYMCONV_FOR_ALL_TYPES(SYMCONV_INSTANTIATE)

}  // namespace symconv
