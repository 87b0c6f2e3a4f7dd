// Depthwise weight gradient: the folded source lines against the parities of the other tensor.
//
// One of the two moves: it is packed with padding and folded line by line, once for every line of the
// kernel. The other stays at the anchor. The upstream gradient stays, in a transposed layer it moves.
#include <algorithm>

#include "depthwise/pass.h"
#include "workspace.h"

namespace symconv {

namespace {

constexpr int64_t kBoxBytes = 128 << 10;     // of moving planes; the others take as much
constexpr int64_t kRegionBytes = 512 << 10;  // of the same box in memory with the channels of all blocks
// Products added one after the other before the sum goes to memory: with 784 of them the rounding of a 28 x
// 28 map was 2.6 times torch's.
constexpr int64_t kChain = 64;

template <class T>
class Accumulator : DepthwisePass<T> {
  using S = Sum<T>;
  using Base = DepthwisePass<T>;
  using Base::axes_, Base::blocks_, Base::k_, Base::lanes_, Base::of_, Base::p_, Base::table_, Base::ties_,
      Base::window_, Base::windowed;

 public:
  explicit Accumulator(const DepthwiseGrad<T>& d)
      : Base(d.problem, false, !d.problem.transposed), d_(d), filters_(static_cast<int>(p_.filters)) {
    phase_ = line_phases(axes_, p_)[0];
    plan_still();
    for (const TiePlan& tie : ties_)
      still_pitch_ = std::max(still_pitch_, whole_chunks(tie, phase_.axis[2]->count));
    pitch_ = line_pitch(phase_, still_pitch_);
    const int64_t tasks = p_.batch * blocks_, threads = thread_count(p_.macs());
    // Lanes that share planes have more of those that stay.
    const int64_t planes = of_.of_group() > 1 ? (1 + p_.filters) / 2 : moving_planes();
    const int64_t vector = planes * static_cast<int64_t>(sizeof(S));
    cut_boxes(phase_, pitch_, std::min(kBoxBytes / lanes_, kRegionBytes / p_.groups) / vector,
              blocks_ < threads ? (2 * threads + tasks - 1) / tasks : 1);
    plan_boxes();
  }

  void operator()() {
    const int64_t threads = thread_count(p_.macs()), pieces = p_.batch * static_cast<int64_t>(boxes_.size());
    // Few blocks: positions are cut too, into private accumulators that are summed in fixed order.
    const int64_t splits = blocks_ < 4 * threads && blocks_ % threads ? std::min(threads, pieces) : 1;
    const int64_t taps = kernel_taps(p_), weights = p_.orbits * taps * lanes_, slices = threads;
    Scratch<S> sums(splits * blocks_ * weights);
    const int64_t each = local_elements();
    Scratch<S> memory(slices * each);
    parallel_slices(splits * blocks_, slices, [&](int64_t begin, int64_t end, int64_t slice) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t split = i / blocks_, b = i % blocks_;
        accumulate(of_.block(b), pieces * split / splits, pieces * (split + 1) / splits,
                   sums.data() + i * weights, memory.data() + slice * each);
      }
    });
    parallel_slices(blocks_, threads, [&](int64_t begin, int64_t end, int64_t) {
      for (int64_t b = begin; b < end; ++b) {
        S* total = sums.data() + b * weights;
        for (int64_t s = 1; s < splits; ++s)
          for (int64_t i = 0; i < weights; ++i) total[i] += sums.data()[(s * blocks_ + b) * weights + i];
        if (p_.across.empty()) store(of_.block(b), total);
      }
    });
    if (!p_.across.empty()) store_rows(sums.data());
  }

 private:
  struct BoxPlan {
    const Box* box;
    Box still;                 // the same lines, as a source
    std::vector<Steps> steps;  // by segment
  };

  int moving_planes() const { return p_.transposed ? filters_ : 1; }
  int still_planes() const { return p_.transposed ? 1 : filters_; }

  // Positions of a line, filled up to whole chunks of every window.
  int64_t whole_chunks(const TiePlan& tie, int64_t positions) const {
    int64_t whole = positions;
    for (int images = 0; windowed(tie) && images <= tie.vertical; ++images)
      whole = std::max(whole, round_up(positions, window(tie, images).width));
    return whole;
  }

  // Of a line of taps with so many images.
  const WindowGrad<S>& window(const TiePlan& tie, int images) const {
    return tie.own_image ? k_.parity_grad[window_][tie.along()][tie.beside(images)]
                         : k_.weight_grad[window_][tie.tied][images];
  }

  // The tensor that stays is packed as a source whose positions are the anchors themselves.
  void plan_still() {
    for (int axis = 0; axis < kAxes; ++axis) {
      still_axis_[axis].extent = still_axis_[axis].count = phase_.axis[axis]->count;
      still_phase_.axis[axis] = &still_axis_[axis];
    }
  }

  void plan_boxes() {
    for (const Box& box : phase_.boxes) {
      BoxPlan plan{&box, box, {}};
      for (int i = 0; i < 2; ++i)
        plan.still.source_begin[i] = box.begin[i], plan.still.source_end[i] = box.end[i];
      for (const TiePlan& tie : ties_) plan.steps.push_back(steps_by_kernel_line(tie, phase_, box, pitch_));
      boxes_.push_back(std::move(plan));
    }
  }

  int64_t moving_plane(const BoxPlan& b) const { return (1 + b.box->source_lines()) * pitch_ * lanes_; }
  int64_t still_plane(const BoxPlan& b) const { return (1 + b.box->lines()) * still_pitch_ * lanes_; }

  int64_t local_elements() const {
    int64_t planes = 0;
    for (const BoxPlan& b : boxes_)
      planes = std::max(planes, moving_planes() * moving_plane(b) + still_planes() * still_plane(b));
    return round_up(planes + pitch_ * lanes_, 2 * lanes_);
  }

  void accumulate(const LaneBlock& b, int64_t begin, int64_t end, S* sums, S* local) const {
    std::fill_n(sums, p_.orbits * kernel_taps(p_) * lanes_, S(0));
    const Box* packed = nullptr;
    for (int64_t i = begin; i < end; ++i) {
      const BoxPlan& plan = boxes_[i % boxes_.size()];
      const int64_t image = i / static_cast<int64_t>(boxes_.size());
      S* moving = local + pitch_ * lanes_;
      S* still = moving + moving_planes() * moving_plane(plan);
      const bool swapped = p_.transposed;
      pack_box(table_, p_, of_,
               {swapped ? d_.grad : d_.input, swapped, moving_planes(), swapped, phase_, *plan.box, pitch_},
               image, b, plan.box != packed, moving);
      pack_box(table_, p_, of_,
               {swapped ? d_.input : d_.grad, !swapped, still_planes(), !swapped, still_phase_, plan.still,
                still_pitch_},
               image, b, plan.box != packed, still);
      packed = plan.box;
      for (size_t s = 0; s < ties_.size(); ++s)
        for (int64_t r = 0; r < p_.segments[s].rows; ++r)
          accumulate_orbit(plan, s, r, moving, still, sums, local);
    }
  }

  void accumulate_orbit(const BoxPlan& plan, size_t segment, int64_t r, const S* moving, const S* still,
                        S* sums, S* folded) const {
    const Segment& s = p_.segments[segment];
    const TiePlan& tie = ties_[segment];
    S* acc = sums + (s.first + r) * kernel_taps(p_) * lanes_;
    const S *from[kMaxSources], *at[kMaxSources];  // by parity
    for (int g = 0; g < s.members(); ++g) {
      const int64_t f = member_channel(s, g) + r;
      from[g] = moving + (p_.transposed ? f * moving_plane(plan) : 0);
      at[g] = still + (p_.transposed ? 0 : f * still_plane(plan)) + still_pitch_ * lanes_;
    }
    for (size_t k = 0; k < tie.lines.size(); ++k) {
      const KernelLine& line = tie.lines[k];
      const DepthwiseStep* steps = plan.steps[segment].begin(k);
      const int64_t count = plan.steps[segment].count(k);
      if (windowed(tie)) {
        const int64_t positions = phase_.axis[2]->count, most = std::max<int64_t>(1, kChain / positions);
        const int own = tie.own_image ? combination_of(line, tie.own_up) : 0;
        const int64_t first = line.weight + own * p_.kernel[2];
        WindowGradArgs<S> a{steps, 0, from[0], {}, still_pitch_ * lanes_, positions, acc + first * lanes_};
        std::copy_n(at, s.members(), a.still);
        for (int64_t i = 0; i < count; i += most) {
          a.steps = steps + i, a.step_count = std::min(most, count - i);
          window(tie, line.log_images).run(a);
        }
      } else {
        for (int64_t i = 0; i < count; ++i) general_step(tie, line, steps[i], from, at, acc, folded);
      }
    }
  }

  void general_step(const TiePlan& tie, const KernelLine& line, const DepthwiseStep& step,
                    const S* const* from, const S* const* at, S* acc, S* folded) const {
    const int64_t offset = step.line * still_pitch_ * lanes_;
    // Parities along the line that move separately.
    const int parts = p_.transposed && tie.tied && !tie.own_image ? 2 : 1;
    for (int s = 0; s < 1 << line.log_images; ++s) {
      if (tie.own_image && line.parity[s] != tie.own_up) continue;
      for (int across = 0; across < parts; ++across) {
        const int even = tie.plane(across, line.parity[s]), odd = tie.plane(tie.tied, line.parity[s]);
        const S* lines[kMaxKernelLines];
        for (int i = 0; i < 1 << line.log_images; ++i) lines[i] = from[even] + step.row[i] * lanes_;
        if (line.log_images) k_.combine(lines, line.log_images, s, folded, pitch_);
        const LineGradArgs<S> a{line.log_images ? folded : lines[0],
                                phase_.axis[2]->a * lanes_,
                                {at[even] + offset, at[odd] + offset},
                                phase_.axis[2]->count,
                                phase_.taps(tie.tied),
                                acc + (line.weight + s * p_.kernel[2]) * lanes_};
        const bool both = tie.tied && parts == 1 && !tie.own_image;
        const bool is_odd = tie.own_image ? tie.own_across : across;
        k_.line_grad[both ? kBothParities : is_odd ? kOddParity : kEvenParity](a);
      }
    }
  }

  void store(const LaneBlock& b, S* total) const {
    const int64_t taps = kernel_taps(p_);
    Scratch<S> raw(taps * lanes_);
    for (size_t i = 0; i < ties_.size(); ++i) {
      const Segment& s = p_.segments[i];
      for (int64_t r = s.first; r < s.first + s.rows; ++r) {
        k_.fold_taps(ties_[i].taps.data(), ties_[i].taps.size(), total + r * taps * lanes_, raw.data(), true);
        scatter_taps(table_, p_, of_, d_.out, d_.out_group_stride, b, r, raw.data());
      }
    }
  }

  // Of orbits that lie across groups: the sums of all filters of a row, mirrored back, with rows as the
  // lanes.
  void store_rows(const S* sums) const {
    const int64_t taps = kernel_taps(p_), each = taps * lanes_;
    int64_t rows = 0;
    for (const MirroredRow& filter : p_.across) rows = std::max(rows, filter.row + 1);
    const int64_t blocks = ceil_div(rows, lanes_);
    Scratch<S> totals(blocks * each);
    std::fill_n(totals.data(), blocks * each, S(0));
    const MirroredTaps mirrored = mirrored_taps(p_);
    for (int64_t f = 0; f < static_cast<int64_t>(p_.across.size()); ++f) {
      const auto& [row, mirrors] = p_.across[f];
      const int64_t group = f / p_.filters, filter = group / lanes_ * p_.filters + f % p_.filters;
      const S* from = sums + filter * each + group % lanes_;
      S* to = totals.data() + row / lanes_ * each + row % lanes_;
      for (const TapGroup& tap : mirrored[mirrors]) to[tap.tap[0] * lanes_] += from[tap.place[0] * lanes_];
    }
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t first = b * lanes_, count = std::min<int64_t>(lanes_, rows - first);
      scatter_taps(table_, p_, of_, d_.out, d_.out.orbit_stride, {first, count, static_cast<int>(count)}, 0,
                   totals.data() + b * each);
    }
  }

  const DepthwiseGrad<T>& d_;
  int64_t pitch_, still_pitch_ = 0;
  const int filters_;
  AxisMap still_axis_[kAxes];
  LinePhase phase_, still_phase_;
  std::vector<BoxPlan> boxes_;
};

}  // namespace

template <class T>
void depthwise_wgrad(const DepthwiseGrad<T>& d) {
  Accumulator<T>{d}();
}

#define SYMCONV_INSTANTIATE(T) template void depthwise_wgrad<T>(const DepthwiseGrad<T>&);
SYMCONV_FOR_ELEMENTS(SYMCONV_INSTANTIATE)

}  // namespace symconv
