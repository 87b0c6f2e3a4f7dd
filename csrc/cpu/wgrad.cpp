// The multiplication behind the weight gradient: positions are the contraction.
#include "wgrad.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <type_traits>

#include "convert.h"
#include "scratch.h"
#include "stage.h"
#include "wgrad_sums.h"

namespace symconv {

namespace {

constexpr int64_t kPixelsPerSplit = 1024;  // below it a private accumulator costs more than it gives,
constexpr int64_t kLeastPixels = 64;       // and below this a thread does, however few the channels are
constexpr int64_t kOrbitsPerPart = 16, kOrbitsTogether = 16;
constexpr int64_t kTilePixels = 128;       // positions that one tile should have at least,
constexpr int64_t kTileBytes = 384 << 10;  // in a panel of this size
// Positions summed one after the other in float32, of few positions in all and of more: errors grow with the
// root, and torch's are small where positions are few.
constexpr int64_t kShortChain = 64, kLongChain = 192, kFewPositions = 512;
constexpr int64_t kOwnBytes = 4 << 20;  // accumulators of a part that a thread stores itself: the smaller,
                                        // the nearer they still are, and the more often inputs are packed

// One phase of one part of the orbits, with the place of its accumulator.
struct PhaseWork {
  Phase phase;
  PanelLayout layout;
  std::vector<int64_t> taps;  // of the offset axis, those present; with minimal filtering its products
  int64_t offset;             // of the accumulator, elements
  int64_t panel_ld, row_ld, acc_ld, shift_stride;
  int64_t panel_stride, row_stride;  // from one product to the next; in elements, as panel_ld and row_ld are
  std::optional<Stage> stage;
};

template <class T>
class Accumulator {
 public:
  explicit Accumulator(const Wgrad<T>& w)
      : w_(w), p_(w.problem), kernels_(select_kernels<T>()), lanes_(kernels_.lanes) {
    for (int64_t c = 0; c < p_.channels; ++c) channel_.push_back(c * w_.input.channel_stride);
    for (const int64_t taps : p_.kernel) taps_ *= taps;
    axis_ = choose_offset_axis(p_, false, p_.segments.data(), p_.segments.size(), w_.planes);
    choose_split();
    for (int part = 0; part < parts_; ++part) add_part(part);
  }

  void operator()() {
    const int64_t tasks = p_.groups * parts_ * splits_;
    const int64_t slices = std::min(tasks, thread_count(p_.macs()));
    const int64_t each = local_elements(), pixels = most_pixels_, room = WeightSums<T>::elements(taps_);
    Scratch<Sum<T>> acc(elements_ * (own_ ? slices : splits_ * p_.groups));
    Scratch<Sum<T>> memory(each * slices);
    Scratch<int64_t> offsets(pixels * slices);
    Scratch<Element<T>> rooms(room * slices);
    const auto sum = [&](bool add) {
      parallel_slices(tasks, slices, [&](int64_t begin, int64_t end, int64_t slice) {
        const Local local = local_memory(memory.data() + slice * each, offsets.data() + slice * pixels,
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
  static constexpr int64_t kBytes = sizeof(Word<T>);  // of the panel, and of what is made of it, an element

  static constexpr int kDepth = Format<T>::depth;

  // Is the input packed as [position][channel]? Beside planes it is the right side of the multiplication;
  // beside pixels it is the left one, which may lie either way unless words are pairs of positions.
  bool rows_of_channels() const { return w_.planes || kDepth == 1; }

  struct Local {
    Word<T>* zipped;  // the right side, where words are pairs of positions
    Stored<T>*panel, *rows;
    Element<T>*zeros, *stage, *room;
    int64_t* offset;
  };

  Local local_memory(Sum<T>* memory, int64_t* offset, Element<T>* room) const {
    Local local;
    local.zipped = reinterpret_cast<Word<T>*>(memory);
    local.panel = reinterpret_cast<Stored<T>*>(local.zipped + zipped());
    local.rows = local.panel + most_panel_;
    local.zeros = reinterpret_cast<Element<T>*>(local.rows + most_rows_);
    local.stage = local.zeros + zeros();
    local.offset = offset, local.room = room;
    std::fill(local.zeros, local.zeros + zeros(), Element<T>{});
    return local;
  }

  void run_split(int64_t task, bool add, Sum<T>* acc, const Local& local) const {
    const int64_t split = task % splits_, part = task / splits_ % parts_, group = task / splits_ / parts_;
    Sum<T>* into = acc + (group * splits_ + split) * elements_;
    for (const PhaseWork& work : work_[part]) accumulate(*plans_[part], work, group, split, add, into, local);
  }

  // All positions of a part: its sums are stored while they are in the cache.
  void run_part(int64_t task, Sum<T>* acc, const Local& local) const {
    const int64_t part = task % parts_, group = task / parts_;
    for (const PhaseWork& work : work_[part]) accumulate(*plans_[part], work, group, 0, false, acc, local);
    for (const Orbits& some : orbits_)
      if (some.part == part) store(some, group, acc, local.room);
  }

  // Splitting positions costs an accumulator and its reduction; splitting orbits costs reading the
  // input again. Large maps split positions, small maps orbits. Many orbits are split in any case: the
  // accumulator is read and written once for each tile, so that a tile must have many positions.
  void choose_split() {
    const int64_t want = std::max<int64_t>(1, thread_count(p_.macs()) / p_.groups);
    const int64_t positions = p_.batch * p_.in[0] * p_.in[1] * p_.in[2];
    int64_t most = 1, slots = p_.orbits * kBytes;
    for (const Segment& s : p_.segments) most = std::max(most, s.rows);
    const int64_t most_parts = std::max<int64_t>(1, most / kOrbitsPerPart);
    splits_ = std::clamp<int64_t>(positions / kPixelsPerSplit, 1, want);
    if (splits_ * most_parts < want) {  // the panel is still larger than another accumulator
      const int64_t least = std::clamp<int64_t>(4 * p_.channels, kLeastPixels, kPixelsPerSplit);
      splits_ = std::clamp<int64_t>(positions / least, splits_, want);
    }
    while (want % splits_) --splits_;
    for (int axis = 0; axis < kAxes; ++axis)
      if (axis != axis_) slots *= p_.kernel[axis];
    if (can_filter(p_, axis_)) slots *= kLinesIn[w_.filtering];
    const int64_t least = ceil_div(slots * kTilePixels, kTileBytes);
    const int64_t per_split = want / splits_;
    int64_t parts = std::max(per_split, round_up(least, per_split));
    own_ = splits_ == 1 && !w_.next;
    const int64_t sums = p_.orbits * p_.channels * taps_ * static_cast<int64_t>(sizeof(Sum<T>));
    if (own_) parts = std::max(parts, round_up(ceil_div(sums, kOwnBytes), per_split));
    parts_ = static_cast<int>(std::clamp<int64_t>(parts, 1, most_parts));
  }

  void add_part(int part) {
    const int axis = axis_;
    plans_.push_back(std::make_unique<Plan>(sum_plan(p_, part, parts_, axis, w_.filtering)));
    const Plan& plan = *plans_.back();
    int64_t widest = 0;
    for (const Slot& slot : plan.slots) widest += slot.channels;
    std::vector<PhaseWork> works;
    if (own_) part_elements_ = 0;
    for (const Phase& phase :
         make_phases(plan, p_, widest * kBytes, {kTileBytes, kTile.pixels}, 1, w_.planes)) {
      PhaseWork work{phase, panel_layout(plan, phase, {0, 0}, 1), {}, part_elements_, 0, 0, 0, 0, 0, 0, {}};
      if (w_.staged) work.stage.emplace(plan, phase, p_.filters, lanes_);
      const int64_t taps = plan.filtering ? kLinesIn[plan.filtering] : axis >= 0 ? p_.kernel[axis] : 1;
      for (int64_t k = 0; k < taps; ++k)
        if (plan.filtering || axis < 0 || phase.axis[axis]->present[k]) work.taps.push_back(k);
      set_sizes(work);
      works.push_back(work);
    }
    work_.push_back(works);
    elements_ = std::max(elements_, part_elements_);
    add_orbits(part);
  }

  // Rows a KiB apart would fall into few sets of the first-level cache.
  int64_t apart(int64_t ld) const { return ld % 256 < lanes_ ? ld + lanes_ : ld; }

  void set_sizes(PhaseWork& work) {
    const Tiling& t = work.phase.tiling;
    const int64_t pixels = t.block[0] * t.block[1] * t.block[2];
    const int64_t halo = (t.block[0] + t.span) * t.block[1] * t.block[2];
    // Lines from a stage are written in whole vectors, past their end.
    const int64_t total = work.layout.total, padded = round_up(halo + (w_.staged ? lanes_ - 1 : 0), lanes_);
    if (w_.planes) {
      work.panel_ld = t.products * padded + lanes_;
      work.panel_stride = padded;
      work.acc_ld = apart(round_up(p_.channels, lanes_));
      work.shift_stride = total * work.acc_ld;
    } else {
      work.panel_ld = odd_lines<Stored<T>>(total);
      work.panel_stride = halo * work.panel_ld;
      work.shift_stride = round_up(total, lanes_);
      work.acc_ld = apart(work.shift_stride * static_cast<int64_t>(work.taps.size()));
    }
    const bool channels = rows_of_channels();
    work.row_ld = channels ? odd_lines<Stored<T>>(p_.channels) : round_up(pixels, lanes_) + lanes_;
    work.row_stride = (channels ? pixels : p_.channels) * work.row_ld;
    part_elements_ +=
        w_.planes ? work.shift_stride * static_cast<int64_t>(work.taps.size()) : work.acc_ld * p_.channels;
    most_pixels_ = std::max(most_pixels_, pixels);
    most_ld_ = std::max(most_ld_, w_.planes ? work.row_ld : work.panel_ld);
    most_panel_ = std::max(most_panel_, (w_.planes ? total : t.products * halo) * work.panel_ld + lanes_);
    most_rows_ = std::max(most_rows_, t.products * work.row_stride);
    if (work.stage) most_stage_ = std::max(most_stage_, work.stage->elements());
  }

  int64_t zeros() const { return std::max(p_.orbits, most_pixels_) + lanes_; }
  // Pairs: the right side once more, in half as many words as elements and one row for an odd number.
  int64_t zipped() const { return kDepth > 1 ? (w_.planes ? most_rows_ : most_panel_) / 2 + most_ld_ : 0; }
  int64_t local_elements() const {
    return round_up(zipped() + most_panel_ + most_rows_ + zeros() + most_stage_, lanes_);
  }

  void accumulate(const Plan& plan, const PhaseWork& work, int64_t group, int64_t split, bool add,
                  Sum<T>* into, const Local& local) const {
    const int64_t tiles = p_.batch * work.phase.tiling.tiles();
    const int64_t begin = tiles * split / splits_, end = tiles * (split + 1) / splits_;
    Sum<T>* acc = into + work.offset;
    if (begin == end && !add) {
      const int64_t size = work.shift_stride * static_cast<int64_t>(work.taps.size());
      std::fill(acc, acc + (w_.planes ? size : work.acc_ld * p_.channels), Sum<T>(0));
    }
    for (int64_t i = begin; i < end; ++i) {
      const Tile tile = tile_at(work.phase.tiling, i);
      pack_gradient(plan, work, tile, group, local);
      pack_input(work, tile, group, local);
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
        multiply(work, local, product, acc + static_cast<int64_t>(j) * work.shift_stride, shift, p0, p1,
                 add || i > begin);
      }
    }
  }

  void pack_gradient(const Plan& plan, const PhaseWork& work, const Tile& tile, int64_t group,
                     const Local& local) const {
    View<const Element<T>> source = w_.grad;
    int64_t first = group * p_.filters;
    const Stage* stage = work.stage ? &*work.stage : nullptr;
    if (stage) {
      stage->fill(kernels_, work.phase, tile, w_.grad, first, p_.filters, local.stage);
      source = {local.stage, 0, stage->channel_stride(), {}};
      first = 0;
    }
    pack_panel(kernels_, plan, work.phase, tile, work.layout, source, stage, first, 0, w_.planes, local.zeros,
               local.panel, work.panel_ld, work.panel_stride);
  }

  // What an accumulated tap, or product of minimal filtering, gives to the gradient of a tap.
  static double coefficient(const Plan& plan, int64_t have, int64_t tap) {
    if (!plan.filtering) return have == tap ? 1 : 0;
    return filter_coefficient(plan.filtering, static_cast<int>(have),
                              static_cast<int>(plan.reversed ? 2 - tap : tap));
  }

  // The input of the tile: [position][channel], or [channel][position].
  void pack_input(const PhaseWork& work, const Tile& tile, int64_t group, const Local& local) const {
    destination_offsets(work.phase, tile, w_.input.batch_stride, w_.input.stride, local.offset);
    const Tiling& tiling = work.phase.tiling;
    const int last = tile.lines_of_last(tiling);
    const int64_t full = tile.full_pixels(tiling), pixels = tile.pixels();
    GatherArgs<T> g{};
    const int outer = tiling.order[0];
    g.line_stride = work.phase.axis[outer]->step * w_.input.stride[outer];
    g.product_stride = work.row_stride;
    g.ld = work.row_ld;
    const Element<T>* input = w_.input.data + group * p_.channels * w_.input.channel_stride;
    if (!rows_of_channels()) {
      g.channel_stride = w_.input.channel_stride, g.channels = p_.channels, g.source = input;
      for (const auto& [from, to] : {std::pair{int64_t{0}, full}, std::pair{full, pixels}}) {
        g.offset = local.offset + from, g.positions = to - from, g.out = local.rows + from;
        g.lines = to == full ? tiling.lines_out : last;
        kernels_.gather[plans_[0]->filtering](g);
      }
      return;
    }
    const int inner = tiling.order[2];
    g.channel_stride = work.phase.axis[inner]->step * w_.input.stride[inner];
    g.positions = p_.channels, g.channels = tile.size[2];
    g.offset = w_.input.channel_stride == 1 ? nullptr : channel_.data();
    for (int64_t p = 0; p < pixels; p += tile.size[2]) {
      g.source = input + local.offset[p], g.out = local.rows + p * work.row_ld;
      g.lines = p < full ? tiling.lines_out : last;
      kernels_.gather[plans_[0]->filtering](g);
    }
  }

  // Pairs are made of the right side's positions, from the first one that is wanted: lines of an odd length
  // shift it by single positions. `from` is where those that are there begin.
  void zip(const PhaseWork& work, const Local& local, int64_t first, const Tile& tile, int64_t& from) const {
    if (from == first) return;
    from = first;
    const int64_t halo = w_.planes ? 0 : work.phase.tiling.span * tile.line();
    const int64_t ld = w_.planes ? work.row_ld : work.panel_ld;
    const Stored<T>* rows = w_.planes ? local.rows : local.panel;
    kernels_.zip({rows + first * ld, local.zipped, ld, ld, tile.pixels() + halo - first,
                  w_.planes ? p_.channels : work.layout.total});
  }

  // Elements as words: the left side may start at any of them.
  static const Word<T>* as_words(const Stored<T>* p) { return reinterpret_cast<const Word<T>*>(p); }

  void multiply(const PhaseWork& work, const Local& local, int64_t product, Sum<T>* acc, int64_t shift,
                int64_t p0, int64_t p1, bool add) const {
    const int64_t rows = w_.planes ? work.layout.total : p_.channels;
    const int64_t columns = w_.planes ? p_.channels : work.layout.total;
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
    const Stored<T>* panel = local.panel + product * work.panel_stride;
    const Stored<T>* input = local.rows + product * work.row_stride;
    const Word<T>* a = as_words(w_.planes ? panel + shift + p0 : input + p0 * g.a_step);
    const int64_t at = w_.planes ? p0 : shift + p0;
    const Word<T>* b =
        kDepth > 1 ? local.zipped + at / kDepth * g.ldb : as_words((w_.planes ? input : panel) + at * g.ldb);
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

  // Orbits of one part and segment whose gradients are stored together.
  struct Orbits {
    int part;
    size_t slot;  // the first one with these orbits
    int64_t begin, count;
  };

  // Slots of the same orbits, one for each tap, have their accumulators a slot apart.
  void add_orbits(int part) {
    const Plan& plan = *plans_[part];
    for (size_t i = 0; i < plan.slots.size(); ++i) {
      const Slot& slot = plan.slots[i];
      bool known = false;
      for (size_t j = 0; j < i; ++j) known = known || same_orbits(plan.slots[j], slot);
      for (int64_t m = 0; !known && m < slot.channels; m += kOrbitsTogether)
        orbits_.push_back({part, i, m, std::min(kOrbitsTogether, slot.channels - m)});
    }
  }

  static bool same_orbits(const Slot& a, const Slot& b) { return a.segment == b.segment && a.row == b.row; }

  // gw[m, c, k] = sum over splits and phases, in fixed order.
  void store(const Orbits& some, int64_t group, const Sum<T>* acc, Element<T>* room) const {
    const Plan& plan = *plans_[some.part];
    const Slot& first = plan.slots[some.slot];
    const int64_t shifts = plan.offset_axis >= 0 ? p_.kernel[plan.offset_axis] : 1;
    std::vector<WeightTap<T>> taps;
    for (size_t i = some.slot; i < plan.slots.size(); ++i)
      for (int64_t shift = 0; shift < shifts && same_orbits(first, plan.slots[i]); ++shift)
        taps.push_back(tap(some, i, shift, acc));
    std::sort(taps.begin(), taps.end(), [](const auto& a, const auto& b) { return a.offset < b.offset; });
    const int64_t row = p_.segments[first.segment].first + first.row + some.begin;
    const WeightSums<T> sums(w_.out, !w_.planes, taps_, p_.channels);
    sums.store(taps, some.count, w_.out.data + group * w_.out_group_stride + row * w_.out.orbit_stride, room);
  }

  WeightTap<T> tap(const Orbits& some, size_t slot, int64_t shift, const Sum<T>* acc) const {
    const Plan& plan = *plans_[some.part];
    WeightTap<T> tap{0, {}};
    for (int axis = 0; axis < kAxes; ++axis)
      tap.offset += (axis == plan.offset_axis ? shift : plan.slots[slot].tap[axis]) * w_.out.tap_stride[axis];
    for (const PhaseWork& work : work_[some.part]) {
      if (work.layout.offset[slot] < 0) continue;
      for (size_t j = 0; j < work.taps.size(); ++j) {
        const double scale = coefficient(plan, work.taps[j], shift);
        if (scale == 0) continue;
        const int64_t first = work.offset + static_cast<int64_t>(j) * work.shift_stride +
                              (work.layout.offset[slot] + some.begin) * (w_.planes ? work.acc_ld : 1);
        for (int64_t s = 0; s < (own_ ? 1 : splits_); ++s)
          tap.terms.push_back({acc + s * elements_ + first, work.acc_ld, static_cast<Sum<T>>(scale)});
      }
    }
    return tap;
  }

  const Wgrad<T>& w_;
  const Problem& p_;
  const Kernels<T>& kernels_;
  int lanes_;
  int axis_ = -1;
  int64_t splits_ = 1;
  int parts_ = 1;
  std::vector<std::unique_ptr<Plan>> plans_;
  std::vector<std::vector<PhaseWork>> work_;
  std::vector<Orbits> orbits_;
  bool own_ = false;  // accumulators of a part are a thread's own, stored as soon as they are complete
  int64_t taps_ = 1;
  int64_t part_elements_ = 0, elements_ = 0;  // of accumulators: up to a part, and of all that are kept
  int64_t most_pixels_ = 0, most_panel_ = 0, most_rows_ = 0, most_ld_ = 0, most_stage_ = 0;
  std::vector<int64_t> channel_;  // offsets of the input's channels
};

}  // namespace

template <class T>
void wgrad(const Wgrad<T>& w) {
  Accumulator<T> run(w);
  run();
}

#define SYMCONV_INSTANTIATE(T) template void wgrad<T>(const Wgrad<T>&);
SYMCONV_FOR_ALL_TYPES(SYMCONV_INSTANTIATE)

}  // namespace symconv
