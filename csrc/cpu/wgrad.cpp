// The multiplication behind the weight gradient: positions are the contraction.
#include "wgrad.h"

#include <algorithm>
#include <memory>
#include <optional>

#include "convert.h"
#include "scratch.h"
#include "stage.h"

namespace symconv {

namespace {

constexpr int64_t kPixelsPerSplit = 1024;  // below it a private accumulator costs more than it gives,
constexpr int64_t kLeastPixels = 64;       // and below this a thread does, however few the channels are
constexpr int64_t kOrbitsPerPart = 16;
constexpr int64_t kTilePixels = 128;       // positions that one tile should have at least,
constexpr int64_t kTileBytes = 384 << 10;  // in a panel of this size

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
    axis_ = choose_offset_axis(p_, false, p_.segments.data(), p_.segments.size(), w_.planes);
    choose_split();
    for (int part = 0; part < parts_; ++part) add_part(part);
  }

  void operator()() {
    const int64_t tasks = p_.groups * parts_ * splits_;
    Scratch<Sum<T>> acc(elements_ * splits_ * p_.groups);
    const int64_t slices = std::min(tasks, thread_count(p_.macs()));
    const int64_t each = local_elements(), pixels = most_pixels_;
    Scratch<Sum<T>> memory(each * slices);
    Scratch<int64_t> offsets(pixels * slices);
    const auto sum = [&](bool add) {
      parallel_slices(tasks, slices, [&](int64_t begin, int64_t end, int64_t slice) {
        const Local local = local_memory(memory.data() + slice * each, offsets.data() + slice * pixels);
        for (int64_t task = begin; task < end; ++task) run_task(task, add, acc.data(), local);
      });
    };
    sum(false);
    while (w_.next && w_.next()) sum(true);
    const int64_t blocks = ceil_div(p_.channels, kBlock);
    parallel_slices(p_.groups * blocks, thread_count(p_.macs()), [&](int64_t begin, int64_t end, int64_t) {
      for (int64_t i = begin; i < end; ++i)
        reduce(acc.data() + i / blocks * splits_ * elements_, i / blocks, i % blocks * kBlock);
    });
  }

 private:
  static constexpr int64_t kBlock = 16;               // input channels reduced together
  static constexpr int64_t kBytes = sizeof(Word<T>);  // of the panel, and of what is made of it, an element

  static constexpr int kDepth = Format<T>::depth;

  // Is the input packed as [position][channel]? Beside planes it is the right side of the multiplication;
  // beside pixels it is the left one, which may lie either way unless words are pairs of positions.
  bool rows_of_channels() const { return w_.planes || kDepth == 1; }

  struct Local {
    Word<T>* zipped;  // the right side, where words are pairs of positions
    Stored<T>*panel, *rows;
    Element<T>*zeros, *stage;
    int64_t* offset;
  };

  Local local_memory(Sum<T>* memory, int64_t* offset) const {
    Local local;
    local.zipped = reinterpret_cast<Word<T>*>(memory);
    local.panel = reinterpret_cast<Stored<T>*>(local.zipped + zipped());
    local.rows = local.panel + most_panel_;
    local.zeros = reinterpret_cast<Element<T>*>(local.rows + most_rows_);
    local.stage = local.zeros + zeros();
    local.offset = offset;
    std::fill(local.zeros, local.zeros + zeros(), Element<T>{});
    return local;
  }

  void run_task(int64_t task, bool add, Sum<T>* acc, const Local& local) const {
    const int64_t split = task % splits_, part = task / splits_ % parts_, group = task / splits_ / parts_;
    Sum<T>* into = acc + (group * splits_ + split) * elements_;
    for (const PhaseWork& work : work_[part]) accumulate(*plans_[part], work, group, split, add, into, local);
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
    parts_ = static_cast<int>(std::clamp<int64_t>(parts, 1, most_parts));
  }

  void add_part(int part) {
    const int axis = axis_;
    plans_.push_back(std::make_unique<Plan>(sum_plan(p_, part, parts_, axis, w_.filtering)));
    const Plan& plan = *plans_.back();
    int64_t widest = 0;
    for (const Slot& slot : plan.slots) widest += slot.channels;
    std::vector<PhaseWork> works;
    for (const Phase& phase :
         make_phases(plan, p_, widest * kBytes, {kTileBytes, kTile.pixels}, 1, w_.planes)) {
      PhaseWork work{phase, panel_layout(plan, phase, {0, 0}, 1), {}, elements_, 0, 0, 0, 0, 0, 0, {}};
      if (w_.staged) work.stage.emplace(plan, phase, p_.filters, lanes_);
      const int64_t taps = plan.filtering ? kLinesIn[plan.filtering] : axis >= 0 ? p_.kernel[axis] : 1;
      for (int64_t k = 0; k < taps; ++k)
        if (plan.filtering || axis < 0 || phase.axis[axis]->present[k]) work.taps.push_back(k);
      set_sizes(work);
      works.push_back(work);
    }
    work_.push_back(works);
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
    elements_ +=
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

  struct Term {
    const Sum<T>* data;
    int64_t orbit_stride, channel_stride;
    Sum<T> scale;
  };

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
    GemmArgs<Word<T>> g{};
    g.a_offset = g.b_offset = &zero;
    g.k = &k, g.segments = positions > 0 ? 1 : 0;
    g.half = positions % kDepth != 0;
    const bool transposed = !w_.planes && rows_of_channels();
    g.lda = transposed ? 1 : (w_.planes ? work.panel_ld : work.row_ld) / kDepth;
    g.a_step = transposed ? work.row_ld : 1;
    g.ldb = w_.planes ? work.row_ld : work.panel_ld;
    g.ldc = work.acc_ld;
    g.add = add;
    const Stored<T>* panel = local.panel + product * work.panel_stride;
    const Stored<T>* input = local.rows + product * work.row_stride;
    const Word<T>* a = as_words(w_.planes ? panel + shift + p0 : input + p0 * g.a_step);
    const int64_t at = w_.planes ? p0 : shift + p0;
    const Word<T>* b =
        kDepth > 1 ? local.zipped + at / kDepth * g.ldb : as_words((w_.planes ? input : panel) + at * g.ldb);
    for (const ColumnBlock& block : column_blocks(columns, lanes_)) {
      g.b = b + block.vector * lanes_;
      for_pieces(rows, kernels_.max_rows[block.vectors], [&](int64_t r0, int64_t count) {
        g.a = a + r0 * g.lda;
        g.c = acc + r0 * g.ldc + block.vector * lanes_;
        kernels_.gemm(static_cast<int>(count), block.vectors, g);
      });
    }
  }

  // out[m, c, k] = sum over splits and phases, in fixed order, for a block of input channels.
  void reduce(const Sum<T>* acc, int64_t group, int64_t c0) const {
    const int64_t c1 = std::min(p_.channels, c0 + kBlock);
    std::vector<Term> terms;
    for (int part = 0; part < parts_; ++part) {
      const Plan& plan = *plans_[part];
      const int64_t shifts = plan.offset_axis >= 0 ? p_.kernel[plan.offset_axis] : 1;
      for (size_t i = 0; i < plan.slots.size(); ++i)
        for (int64_t shift = 0; shift < shifts; ++shift)
          reduce_slot(acc, part, i, shift, group, c0, c1, terms);
    }
  }

  void reduce_slot(const Sum<T>* acc, int part, size_t i, int64_t shift, int64_t group, int64_t c0,
                   int64_t c1, std::vector<Term>& terms) const {
    const Plan& plan = *plans_[part];
    const Slot& slot = plan.slots[i];
    Element<T>* out = w_.out.data + group * w_.out_group_stride +
                      (p_.segments[slot.segment].first + slot.row) * w_.out.orbit_stride;
    for (int axis = 0; axis < kAxes; ++axis)
      out += (axis == plan.offset_axis ? shift : slot.tap[axis]) * w_.out.tap_stride[axis];
    terms.clear();
    for (const PhaseWork& work : work_[part]) {
      if (work.layout.offset[i] < 0) continue;
      const int64_t m_stride = w_.planes ? work.acc_ld : 1, c_stride = w_.planes ? 1 : work.acc_ld;
      for (size_t j = 0; j < work.taps.size(); ++j) {
        const double scale = coefficient(plan, work.taps[j], shift);
        if (scale == 0) continue;
        const Sum<T>* base = acc + work.offset + static_cast<int64_t>(j) * work.shift_stride +
                             work.layout.offset[i] * m_stride;
        for (int64_t s = 0; s < splits_; ++s)
          terms.push_back({base + s * elements_, m_stride, c_stride, static_cast<Sum<T>>(scale)});
      }
    }
    const int64_t count = c1 - c0;
    for (int64_t m = 0; m < slot.channels; ++m) {
      Sum<T> sum[kBlock] = {};
      for (const Term& t : terms) add_term(t, m, c0, count, sum);
      Element<T>* to = out + m * w_.out.orbit_stride + c0 * w_.out.channel_stride;
      for (int64_t c = 0; c < count; ++c) assign(to[c * w_.out.channel_stride], sum[c]);
    }
  }

  static void add_term(const Term& t, int64_t m, int64_t c0, int64_t count, Sum<T> (&sum)[kBlock]) {
    const Sum<T>* from = t.data + m * t.orbit_stride + c0 * t.channel_stride;
    if (t.channel_stride == 1) {
      for (int64_t c = 0; c < count; ++c) sum[c] += t.scale * from[c];
    } else {
      for (int64_t c = 0; c < count; ++c) sum[c] += t.scale * from[c * t.channel_stride];
    }
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
  int64_t elements_ = 0;
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
