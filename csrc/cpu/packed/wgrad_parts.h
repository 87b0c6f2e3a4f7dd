// How a weight gradient is cut, and where everything of it lies: parts of the orbits, splits of the
// positions, phases and their accumulators. Included by packed/wgrad.cpp.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "packed/stage.h"
#include "packed/wgrad.h"
#include "workspace.h"

namespace symconv {

constexpr int64_t kPixelsPerSplit = 1024;  // below it a private accumulator costs more than it gives,
constexpr int64_t kLeastPixels = 64;       // and below this a thread does, however few the channels are
constexpr int64_t kOrbitsPerPart = 16, kOrbitsTogether = 16;
constexpr int64_t kTilePixels = 128;       // positions that one tile should have at least,
constexpr int64_t kTileBytes = 384 << 10;  // in a panel of this size
constexpr TileLimits kOwnTile{kTileBytes, kTile.pixels};
// Those of volumes, whose stage keeps planes, sum a halo of lines each, and leave it more of the cache.
constexpr TileLimits kStagedTile{256 << 10, 1024};
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
  const Stage* stage;                // if there is one
  bool shares;                       // the accumulator of an earlier phase
};

template <class T>
class WgradParts {
 public:
  explicit WgradParts(const Wgrad<T>& w)
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

 protected:
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
    const bool in_turns = w_.staged && axis < 0 && p_.in[kDepthAxis] > 1;
    std::vector<Phase> phases =
        make_phases(plan, p_, widest * kBytes, in_turns ? kStagedTile : kOwnTile, 1, w_.planes);
    if (w_.staged) share_tiles(plan, phases, left_.channels * static_cast<int64_t>(sizeof(Element<T>)));
    for (const Phase& phase : phases) {
      PhaseWork work{phase, {}, {}, {}, 0, 0, 0, 0, 0, 0, 0, 0, 0, nullptr, false};
      set_layout(plan, chunk, work);
      const int64_t taps = plan.filtering ? kLinesIn[plan.filtering] : axis >= 0 ? p_.kernel[axis] : 1;
      for (int64_t k = 0; k < taps; ++k)
        if (plan.filtering || axis < 0 || phase.axis[axis]->present[k]) work.taps.push_back(k);
      set_sizes(work);
      place_sums(work, works);
      works.push_back(work);
    }
    if (w_.staged) add_stages(plan, works);
    work_.push_back(works);
    elements_ = std::max(elements_, part_elements_);
    add_orbits(part);
  }

  void add_stages(const Plan& plan, std::vector<PhaseWork>& works) {
    std::vector<const Phase*> phases;
    for (const PhaseWork& work : works) phases.push_back(&work.phase);
    const bool sorted = w_.of_input && !p_.order.empty();
    stages_.push_back(make_stages(plan, phases, left_.channels, lanes_, sorted ? &p_.order : nullptr));
    const std::vector<Stage>& stages = stages_.back();
    for (size_t i = 0; i < works.size(); ++i) works[i].stage = &stages[stages.size() > 1 ? i : 0];
    for (const Stage& stage : stages) most_stage_ = std::max(most_stage_, stage.elements());
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
  std::vector<std::vector<Stage>> stages_;  // by part, and by phase unless all share one, where there are any
  std::vector<Orbits> orbits_;
  bool own_ = false;  // accumulators of a part are a thread's own, stored as soon as they are complete
  int64_t part_elements_ = 0, elements_ = 0;  // of accumulators: up to a part, and of all that are kept
  int64_t most_pixels_ = 0, most_panel_ = 0, most_rows_ = 0, most_ld_ = 0, most_stage_ = 0;
  std::vector<int64_t> channel_;  // offsets of the input's channels, block by block
};

}  // namespace symconv
