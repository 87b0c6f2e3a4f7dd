// The multiplication behind the weight gradient: positions are the contraction.
#include "packed/wgrad.h"

#include <algorithm>
#include <array>
#include <bit>
#include <map>
#include <memory>
#include <optional>
#include <type_traits>

#include "convert.h"
#include "microkernels/tiles.h"
#include "packed/sliced_wgrad.h"
#include "packed/stage.h"
#include "packed/wgrad_sums.h"
#include "workspace.h"

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
  std::array<int64_t, (1 << kAxes) + 1> begin;  // rows of the panel, by parity
  std::vector<int64_t> taps;  // of the offset axis, those present; with minimal filtering its products
  int64_t offset;             // of the accumulator, elements
  int64_t panel_ld, row_ld, acc_ld, shift_stride;
  int64_t panel_stride, row_stride;  // from one product to the next; in elements, as panel_ld and row_ld are
  int64_t block_stride;              // from one block of the input to the next
  int64_t zipped_stride;             // the same of its pairs
  std::optional<Stage> stage;
  bool shares;  // the accumulator of an earlier phase
};

template <class T>
class Accumulator {
 public:
  explicit Accumulator(const Wgrad<T>& w)
      : w_(w),
        p_(w.problem),
        kernels_(select_kernels<T>()),
        lanes_(kernels_.lanes),
        axis_(w.offset_axis),
        segment_(p_.segments[w.segment]),
        blocks_(segment_.inputs[w.part]),
        left_(w.of_input ? Side{w.input, p_.channels} : Side{w.grad, p_.filters}),
        right_(w.of_input ? Side{w.grad, p_.filters} : Side{w.input, p_.channels}),
        rows_(w.of_input ? p_.channels
              : folds()  ? segment_.rows
                         : p_.orbits),
        channels_(w.of_input ? segment_.rows : blocks_.size) {
    for (int block = 0; block < parities(); ++block)
      for (int64_t c = 0; c < channels_; ++c)
        channel_.push_back(right_channel(block, c) * right_.view.channel_stride);
    choose_split();
    for (int part = 0; part < parts_; ++part) add_part(part);
  }

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
  static constexpr int64_t kWhole = 64;               // elements: blocks of vectors of all types

  static constexpr int kDepth = Format<T>::depth;

  // A side, and its channels in a group.
  struct Side {
    View<const Element<T>> view;
    int64_t channels;
  };

  // Inside its group, of a block of the right side.
  int64_t right_channel(int block, int64_t c) const {
    if (w_.of_input) return member_channel(segment_, block) + c;
    const int64_t place = blocks_.at[block] + c;
    return p_.order.empty() ? place : p_.order[place];
  }

  // Is the right side packed as [position][channel]? Beside planes it is the right side of the
  // multiplication; beside pixels it is the left one, which may lie either way unless words are pairs of
  // positions.
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
    int64_t most = 1, slots = rows_ * parities() * kBytes;
    for (const Segment& s : p_.segments) most = std::max(most, folds() ? rows_ : s.rows);
    if (w_.of_input) most = 1;  // a panel of few channels is made once
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
    const int64_t sums = rows_ * p_.channels * kernel_taps(p_) * static_cast<int64_t>(sizeof(Sum<T>));
    if (own_) parts = std::max(parts, round_up(ceil_div(sums, kOwnBytes), per_split));
    parts_ = static_cast<int>(std::clamp<int64_t>(parts, 1, most_parts));
  }

  void add_part(int part) {
    const int axis = axis_;
    const Chunk chunk{rows_ * part / parts_, rows_ * (part + 1) / parts_};  // of a fold
    plans_.push_back(std::make_unique<Plan>(plan_of(part, chunk)));
    const Plan& plan = *plans_.back();
    int64_t widest = 0;
    for (const Slot& slot : plan.slots) widest += slot.channels;
    std::vector<PhaseWork> works;
    if (own_) part_elements_ = 0;
    for (const Phase& phase :
         make_phases(plan, p_, widest * kBytes, {kTileBytes, kTile.pixels}, 1, w_.planes)) {
      PhaseWork work{phase, {}, {}, {}, 0, 0, 0, 0, 0, 0, 0, 0, 0, {}, false};
      set_layout(plan, chunk, work);
      const bool sorted = w_.of_input && !p_.order.empty();
      if (w_.staged) work.stage.emplace(plan, phase, left_.channels, lanes_, sorted ? &p_.order : nullptr);
      const int64_t taps = plan.filtering ? kLinesIn[plan.filtering] : axis >= 0 ? p_.kernel[axis] : 1;
      for (int64_t k = 0; k < taps; ++k)
        if (plan.filtering || axis < 0 || phase.axis[axis]->present[k]) work.taps.push_back(k);
      set_sizes(work);
      place_sums(work, works);
      works.push_back(work);
    }
    work_.push_back(works);
    elements_ = std::max(elements_, part_elements_);
    add_orbits(part);
  }

  // With blocks of input channels both sides are folded, and the sums are those of each parity. Filters that
  // are their own images have one.
  bool folds() const { return p_.folds_gradients(); }
  int parities() const { return w_.of_input ? segment_.members() : blocks_.count(); }

  Plan plan_of(int part, const Chunk& chunk) const {
    if (w_.of_input) return fold_plan(p_, w_.segment, axis_, w_.filtering);
    if (!folds()) return sum_plan(p_, part, parts_, axis_, w_.filtering, w_.sums_depth);
    Plan plan = gradient_plan(p_, w_.segment, w_.part, axis_, w_.filtering);
    for (Slot& slot : plan.slots) slot.row = chunk.begin, slot.channels = chunk.end - chunk.begin;
    return plan;
  }

  // Parities begin at whole vectors: those that are multiplied last are stored whole.
  void set_layout(const Plan& plan, const Chunk& chunk, PhaseWork& work) const {
    const Chunk own{0, chunk.end - chunk.begin};
    PanelLayout& layout = work.layout;
    layout = panel_layout(plan, work.phase, own, 1);
    work.begin = {0, layout.total};
    if (!folds()) return;
    int64_t total = 0;
    int parity = 0;
    const auto end_parities = [&](int next) {
      while (parity < next) work.begin[++parity] = total = round_up(total, lanes_);
    };
    for (size_t i = 0; i < plan.slots.size(); ++i) {
      end_parities(plan.slots[i].parity);
      if (layout.offset[i] < 0) continue;
      layout.offset[i] = total;
      total += own.width(plan, plan.slots[i]);
    }
    end_parities(plan.parities);
    layout.total = total;
  }

  void set_sizes(PhaseWork& work) {
    const Tiling& t = work.phase.tiling;
    const int64_t pixels = t.block[0] * t.block[1] * t.block[2];
    const int64_t halo = (t.block[0] + t.span) * t.block[1] * t.block[2];
    // Lines from a stage are written in whole vectors, past their end.
    const int64_t total = work.layout.total, padded = round_up(halo + (w_.staged ? lanes_ - 1 : 0), lanes_);
    if (w_.planes) {
      work.panel_ld = t.products * padded + lanes_;
      work.panel_stride = padded;
      work.acc_ld = apart<Sum<T>>(round_up(channels_, lanes_));
      work.shift_stride = total * work.acc_ld;
    } else {
      work.panel_ld = odd_lines<Stored<T>>(total);
      work.panel_stride = halo * work.panel_ld;
      work.shift_stride = round_up(total, lanes_);
      work.acc_ld = apart<Sum<T>>(work.shift_stride * static_cast<int64_t>(work.taps.size()));
    }
    const bool channels = rows_of_channels();
    work.row_ld = channels ? odd_lines<Stored<T>>(channels_) : round_up(pixels, lanes_) + lanes_;
    work.row_stride = (channels ? pixels : channels_) * work.row_ld;
    work.block_stride = round_up(t.products * work.row_stride, kWhole);
    work.zipped_stride = work.block_stride / kDepth + work.row_ld;
    most_pixels_ = std::max(most_pixels_, pixels);
    most_ld_ = std::max(most_ld_, w_.planes ? work.row_ld : work.panel_ld);
    most_panel_ = std::max(most_panel_, (w_.planes ? total : t.products * halo) * work.panel_ld + lanes_);
    most_rows_ = std::max(most_rows_, parities() * work.block_stride);
    if (work.stage) most_stage_ = std::max(most_stage_, work.stage->elements());
  }

  // Phases with the same taps add to the same sums.
  void place_sums(PhaseWork& work, const std::vector<PhaseWork>& earlier) {
    for (const PhaseWork& other : earlier)
      if (other.taps == work.taps && other.layout.offset == work.layout.offset) {
        work.offset = other.offset, work.shares = true;
        return;
      }
    work.offset = part_elements_;
    part_elements_ +=
        w_.planes ? work.shift_stride * static_cast<int64_t>(work.taps.size()) : work.acc_ld * channels_;
  }

  int64_t zeros() const { return std::max(rows_, most_pixels_) + lanes_; }
  // Pairs: the right side once more, in half as many words as elements and one row for an odd number.
  int64_t zipped() const {
    const int64_t rows = w_.planes ? most_rows_ : most_panel_, sides = w_.planes ? parities() : 1;
    return kDepth > 1 ? rows / kDepth + sides * most_ld_ : 0;
  }
  int64_t local_elements() const {
    return round_up(zipped() + most_panel_ + most_rows_ + zeros() + most_stage_, lanes_);
  }

  void accumulate(const Plan& plan, const PhaseWork& work, int64_t group, int64_t split, bool add,
                  Sum<T>* into, const Local& local) const {
    add = add || work.shares;
    const int64_t tiles = p_.batch * work.phase.tiling.tiles();
    const int64_t begin = tiles * split / splits_, end = tiles * (split + 1) / splits_;
    Sum<T>* acc = into + work.offset;
    if (begin == end && !add) {
      const int64_t size = work.shift_stride * static_cast<int64_t>(work.taps.size());
      std::fill(acc, acc + (w_.planes ? size : work.acc_ld * channels_), Sum<T>(0));
    }
    for (int64_t i = begin; i < end; ++i) {
      const Tile tile = tile_at(work.phase.tiling, i);
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
                   p1, add || i > begin);
      }
    }
  }

  // The orbits of a plan that folds, or its channels.
  Chunk split_chunk(const Plan& plan) const {
    const Slot& slot = plan.slots[0];
    if (w_.of_input) return {0, rows_};
    return plan.fold ? Chunk{slot.row, slot.row + slot.channels} : Chunk{0, 0};
  }

  void pack_gradient(const Plan& plan, const PhaseWork& work, const Tile& tile, int64_t group,
                     const Chunk& chunk, const Local& local) const {
    View<const Element<T>> source = left_.view;
    int64_t first = group * left_.channels;
    const Stage* stage = work.stage ? &*work.stage : nullptr;
    if (stage) {
      stage->fill(kernels_, work.phase, tile, left_.view, first, left_.channels, local.stage);
      source = {local.stage, 0, stage->channel_stride(), {}};
      first = 0;
    }
    pack_panel(kernels_, plan, work.phase, tile, work.layout, source, stage, first + chunk.begin,
               {0, chunk.end - chunk.begin}, w_.planes, local.zeros, local.panel, work.panel_ld,
               work.panel_stride);
  }

  // What an accumulated tap, or product of minimal filtering, gives to the gradient of a tap.
  static double coefficient(const Plan& plan, int64_t have, int64_t tap) {
    if (!plan.filtering) return have == tap ? 1 : 0;
    return filter_coefficient(plan.filtering, static_cast<int>(have),
                              static_cast<int>(plan.reversed ? 2 - tap : tap));
  }

  // Blocks of the input become its parities, where they are: in whole vectors, none of which is read again.
  void fold_input(const PhaseWork& work, const Local& local) const {
    if (parities() == 1) return;
    using Folded = std::conditional_t<kDepth == 1, Stored<T>, T>;
    RunArgs<Folded> r{};
    r.positions = work.block_stride, r.channels = 1;
    for (int block = 0; block < parities(); ++block) {
      r.out[block] = local.rows + block * work.block_stride;
      r.source[0][block] = r.out[block];
      r.position_step[0][block] = 1;
    }
    select_kernels<Folded>().fold_planes[kPlain][std::countr_zero(static_cast<unsigned>(parities()))](r);
  }

  // A block of the input of the tile: [position][channel], or [channel][position].
  void pack_input(const PhaseWork& work, const Tile& tile, int64_t group, int block,
                  const Local& local) const {
    const View<const Element<T>>& view = right_.view;
    destination_offsets(work.phase, tile, view.batch_stride, view.stride, local.offset);
    const Tiling& tiling = work.phase.tiling;
    const int last = tile.lines_of_last(tiling);
    const int64_t full = tile.full_pixels(tiling), pixels = tile.pixels();
    GatherArgs<T> g{};
    const int outer = tiling.order[0];
    g.line_stride = work.phase.axis[outer]->step * view.stride[outer];
    g.product_stride = work.row_stride;
    g.ld = work.row_ld;
    const Element<T>* input = view.data + group * right_.channels * view.channel_stride;
    const int64_t* channel = channel_.data() + block * channels_;
    const bool together = view.channel_stride == 1 && (w_.of_input || p_.order.empty());
    Stored<T>* const rows = local.rows + block * work.block_stride;
    if (!rows_of_channels()) {
      g.channel_stride = view.channel_stride, g.channels = channels_, g.source = input + channel[0];
      for (const auto& [from, to] : {std::pair{int64_t{0}, full}, std::pair{full, pixels}}) {
        g.offset = local.offset + from, g.positions = to - from, g.out = rows + from;
        g.lines = to == full ? tiling.lines_out : last;
        kernels_.gather[plans_[0]->filtering](g);
      }
      return;
    }
    const int inner = tiling.order[2];
    g.channel_stride = work.phase.axis[inner]->step * view.stride[inner];
    g.positions = channels_, g.channels = tile.size[2];
    g.offset = together ? nullptr : channel;
    if (together) input += channel[0];
    for (int64_t p = 0; p < pixels; p += tile.size[2]) {
      g.source = input + local.offset[p], g.out = rows + p * work.row_ld;
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
    if (!w_.planes)
      return kernels_.vnni_interleave(
          {local.panel + first * ld, local.zipped, ld, ld, tile.pixels() + halo - first, work.layout.total});
    for (int parity = 0; parity < parities(); ++parity)
      kernels_.vnni_interleave({local.rows + parity * work.block_stride + first * ld,
                                local.zipped + parity * work.zipped_stride, ld, ld, tile.pixels() - first,
                                channels_});
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

  // Orbits of one part and segment whose gradients are stored together.
  struct Orbits {
    int part;
    size_t slot;  // the first one with these orbits
    int64_t begin, count;
  };

  // Slots of the same orbits, one for each tap, have their accumulators a slot apart.
  void add_orbits(int part) {
    const Plan& plan = *plans_[part];
    for (int64_t m = 0; w_.of_input && m < channels_; m += kOrbitsTogether)
      orbits_.push_back({part, 0, m, std::min(kOrbitsTogether, channels_ - m)});
    if (w_.of_input) return;
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
    const int64_t row = p_.segments[first.segment].first + first.row + some.begin;
    Element<T>* const out = w_.out.data + group * w_.out_group_stride + row * w_.out.orbit_stride;
    if (w_.of_input) return store_blocks(some, acc, out, room);
    const WeightSums<T> sums(w_.out, !w_.planes, kernel_taps(p_), channels_);
    for (int block = 0; block < (keeps_one() ? 1 : parities()); ++block) {
      std::vector<WeightTap<T>> taps;
      for (const Group& g : plan.groups)
        for (int64_t shift = 0; shift < shifts && same_orbits(first, plan.slots[g.slot[0]]); ++shift)
          for (int image = 0; image < (keeps_one() ? g.slots : 1); ++image)
            taps.push_back(tap(some, g, keeps_one() ? image : block, shift, acc));
      std::sort(taps.begin(), taps.end(), [](const auto& a, const auto& b) { return a.offset < b.offset; });
      const int64_t channel = keeps_one() ? blocks_.kept : blocks_.at[block];
      sums.store(taps, some.count, out + channel * w_.out.channel_stride, room);
    }
  }

  // Of a panel of the input each block of its channels, with the taps that it has in its row.
  void store_blocks(const Orbits& some, const Sum<T>* acc, Element<T>* out, Element<T>* room) const {
    const Plan& plan = *plans_[some.part];
    const int64_t shifts = plan.offset_axis >= 0 ? p_.kernel[plan.offset_axis] : 1;
    std::map<int64_t, std::pair<int64_t, std::vector<WeightTap<T>>>> blocks;  // by their first channel
    for (const Group& g : plan.groups)
      for (int member = 0; member < g.slots; ++member)
        for (int64_t shift = 0; shift < shifts; ++shift) {
          auto& [channels, taps] = blocks[g.weight[member].channel];
          channels = g.channels;
          taps.push_back(tap(some, g, member, shift, acc));
        }
    for (auto& [first, block] : blocks) {
      auto& [channels, taps] = block;
      std::sort(taps.begin(), taps.end(), [](const auto& a, const auto& b) { return a.offset < b.offset; });
      const WeightSums<T> sums(w_.out, w_.planes, kernel_taps(p_), channels);
      sums.store(taps, some.count, out + first * w_.out.channel_stride, room);
    }
  }

  // Do weights keep one block of those that mirrors exchange? Then members are taps of it, else blocks.
  bool keeps_one() const { return segment_.own_image; }

  // Of a member: the sum over the parities, each with the sign that it has there.
  WeightTap<T> tap(const Orbits& some, const Group& g, int member, int64_t shift, const Sum<T>* acc) const {
    const Plan& plan = *plans_[some.part];
    const Taps& at = g.weight[keeps_one() || w_.of_input ? member : 0].tap;
    WeightTap<T> tap{0, {}};
    for (int axis = 0; axis < kAxes; ++axis)
      tap.offset += (axis == plan.offset_axis ? shift : at[axis]) * w_.out.tap_stride[axis];
    for (const PhaseWork& work : work_[some.part]) {
      if (work.shares || work.layout.offset[g.slot[0]] < 0) continue;
      for (size_t j = 0; j < work.taps.size(); ++j) {
        const double scale = coefficient(plan, work.taps[j], shift) / g.slots;
        if (scale == 0) continue;
        const int64_t from = work.offset + static_cast<int64_t>(j) * work.shift_stride;
        for (int s = 0; s < g.slots; ++s) {
          const double sign = parity_sign(s, member);
          const int64_t slot = work.layout.offset[g.slot[s]] * (w_.planes ? work.acc_ld : 1);
          const int64_t first = from + slot + some.begin * (w_.planes == w_.of_input ? 1 : work.acc_ld);
          for (int64_t i = 0; i < (own_ ? 1 : splits_); ++i)
            tap.terms.push_back(
                {acc + i * elements_ + first, work.acc_ld, static_cast<Sum<T>>(sign * scale)});
        }
      }
    }
    return tap;
  }

  const Wgrad<T>& w_;
  const Problem& p_;
  const Kernels<T>& kernels_;
  int lanes_;
  int axis_;
  const Segment& segment_;   // whose filters' gradient it is, unless it is that of all
  const Blocks& blocks_;     // of the part of the input
  const Side left_, right_;  // what the panel is made of, and what it is multiplied by
  const int64_t rows_;       // of a slot: orbits, or input channels
  const int64_t channels_;   // of a block of the right side
  int64_t splits_ = 1;
  int parts_ = 1;
  std::vector<std::unique_ptr<Plan>> plans_;
  std::vector<std::vector<PhaseWork>> work_;
  std::vector<Orbits> orbits_;
  bool own_ = false;  // accumulators of a part are a thread's own, stored as soon as they are complete
  int64_t part_elements_ = 0, elements_ = 0;  // of accumulators: up to a part, and of all that are kept
  int64_t most_pixels_ = 0, most_panel_ = 0, most_rows_ = 0, most_ld_ = 0, most_stage_ = 0;
  std::vector<int64_t> channel_;  // offsets of the input's channels, block by block
};

}  // namespace

template <class T>
void wgrad(const Wgrad<T>& w) {
  if constexpr (!kNarrow<T>)
    if (w.sliced) return sliced_wgrad<T>(w);
  Accumulator<T>{w}();
}

#define SYMCONV_INSTANTIATE(T) template void wgrad<T>(const Wgrad<T>&);
SYMCONV_FOR_ALL_TYPES(SYMCONV_INSTANTIATE)

}  // namespace symconv
