// Depthwise forward and input gradient.
#include <algorithm>
#include <type_traits>

#include "depthwise/pass.h"
#include "workspace.h"

namespace symconv {

namespace {

constexpr int64_t kBoxBytes = 256 << 10;  // of packed source: a quarter of a second-level cache
// Of the same box in memory with the channels of all blocks: what one block reads, the next one finds there.
constexpr int64_t kRegionBytes = 512 << 10;

template <class T>
class Pass : DepthwisePass<T> {
  using S = Sum<T>;
  using Base = DepthwisePass<T>;
  using Base::axes_, Base::blocks_, Base::k_, Base::lanes_, Base::of_, Base::p_, Base::table_, Base::ties_,
      Base::window_, Base::windowed;

 public:
  explicit Pass(const Depthwise<T>& d)
      : Base(d.problem, d.fold, d.fold),
        d_(d),
        planes_(static_cast<int>(d.fold ? p_.channels : p_.filters)),
        results_(static_cast<int>(!d.fold ? 1 : p_.filters / of_.of_group())) {
    if (!p_.across.empty()) mirrored_ = mirrored_taps(p_);
    phases_ = line_phases(axes_, p_);
    for (LinePhase& phase : phases_) plan_phase(phase);
    plan_memory();
  }

  // Threads share the blocks where those suffice, so that a thread needs only the weights that it has packed
  // itself; else they share all tasks, and the weights are packed before.
  void operator()() {
    const int64_t threads = thread_count(p_.macs()), each = boxes_.size() * p_.batch;
    const bool by_block = blocks_ % threads == 0 || blocks_ >= 8 * threads;
    const int64_t slices = std::min(threads, by_block ? blocks_ : each * blocks_);
    Scratch<S> packed(blocks_ * weight_elements());
    Scratch<S> memory(local_elements_ * std::max(threads, slices));
    const auto pack = [&](int64_t begin, int64_t end, int64_t slice) {
      for (int64_t b = begin; b < end; ++b)
        pack_weights_of(of_.block(b), memory.data() + slice * local_elements_, weights_of(packed, b));
    };
    if (!by_block) parallel_slices(blocks_, threads, pack);
    parallel_slices(by_block ? blocks_ : each * blocks_, slices,
                    [&](int64_t begin, int64_t end, int64_t slice) {
                      S* local = memory.data() + slice * local_elements_;
                      const BoxPlan* before = nullptr;
                      const auto one = [&](int64_t i, int64_t b) {
                        const BoxPlan* plan = &boxes_[i / p_.batch];
                        run(*plan, i % p_.batch, of_.block(b), weights_of(packed, b), plan != before, local);
                        before = plan;
                      };
                      if (by_block) {
                        pack(begin, end, slice);
                        for (int64_t i = 0; i < each; ++i)
                          for (int64_t b = begin; b < end; ++b) one(i, b);
                      } else {
                        for (int64_t i = begin; i < end; ++i) one(i / blocks_, i % blocks_);
                      }
                    });
  }

 private:
  struct BoxPlan {
    const LinePhase* phase;
    const Box* box;
    int64_t pitch;
    std::vector<Steps> steps;     // by segment
    std::vector<int64_t> offset;  // of every line of results, from the image and channel
    std::vector<int64_t> kept;    // of every line of results that is not stored from registers
    Runs runs;                    // of lines of results that are stored together
  };

  // Lines of results that are stored together, of one block of channels.
  struct Run {
    const BoxPlan& plan;
    int64_t begin, end;
    const S* source;  // packed
    S* folded;        // one packed line
    // Where the first line of the box would be: in the tensor, or, one plane after the other, in what is
    // scattered into it later.
    S* out;
    const S* bias;  // only where stored from registers
    bool direct;    // stored from registers
  };

  // Of one line of results. The general lines are written by whole chunks.
  int64_t line_vectors(const LinePhase& phase) const {
    bool general = false;
    for (const TiePlan& tie : ties_) general = general || !windowed(tie);
    return general ? round_up(phase.axis[2]->count, k_.line_width) : phase.axis[2]->count;
  }
  int64_t plane(const BoxPlan& b) const { return (1 + b.box->source_lines()) * b.pitch * lanes_; }

  int chunk_width(const TiePlan& tie) const {
    if (!windowed(tie)) return k_.line_width;
    if (tie.own_image) return own_window(tie).width;
    const auto& table = d_.fold ? k_.forward : k_.input_grad;
    return table[window_][tie.tied][tie.vertical].width;
  }

  const Window<S>& own_window(const TiePlan& tie) const {
    return k_.parity[window_][tie.along()][tie.beside(tie.most_images())];
  }

  void plan_phase(LinePhase& phase) {
    int64_t positions = 0;  // with whole chunks for every tie
    for (const TiePlan& tie : ties_)
      positions = std::max(positions, round_up(phase.axis[2]->count, chunk_width(tie)));
    const int64_t pitch = line_pitch(phase, positions);
    const int64_t tasks = p_.batch * blocks_ * static_cast<int64_t>(phases_.size());
    const int64_t want = thread_count(p_.macs()) > 1 ? (4 * thread_count(p_.macs()) + tasks - 1) / tasks : 1;
    const int64_t vector = planes_ * static_cast<int64_t>(sizeof(S));  // bytes of one position and channel
    cut_boxes(phase, pitch, std::min(kBoxBytes / lanes_, kRegionBytes / p_.groups) / vector, want);
    for (const Box& box : phase.boxes) {
      std::vector<Steps> steps;
      std::vector<int64_t> offset, kept;
      for (size_t i = 0; i < ties_.size(); ++i) {
        const int64_t summed = d_.fold ? (of_.contracts() ? planes_ : 1) : p_.segments[i].rows;
        steps.push_back(steps_by_line(ties_[i], phase, box, pitch,
                                      {summed, (1 + box.source_lines()) * pitch, kernel_taps(p_)}));
      }
      for (int64_t line = 0; line < box.lines(); ++line) {
        offset.push_back(line_offset(phase, box, line));
        kept.push_back(line * line_vectors(phase) * lanes_);
      }
      const Runs runs = result_runs(phase, offset);
      boxes_.push_back({&phase, &box, pitch, std::move(steps), std::move(offset), std::move(kept), runs});
    }
  }

  // Lines of results go together where they follow each other in memory.
  Runs result_runs(const LinePhase& phase, const std::vector<int64_t>& offset) const {
    const AxisMap& width = *phase.axis[2];
    bool together = width.step == 1;
    for (size_t i = 1; i < offset.size(); ++i)
      together = together && offset[i] - offset[i - 1] == width.count * d_.out.stride[2];
    return Runs(offset.size(), width.count, line_vectors(phase), 0, together);
  }

  int64_t weight_elements() const { return of_.rows() * kernel_taps(p_) * lanes_; }
  S* weights_of(Scratch<S>& packed, int64_t b) const { return packed.data() + b * weight_elements(); }

  // Packed source, result lines, one folded line and the bias of every filter.
  void plan_memory() {
    int64_t source = 0, folded = 0;
    for (const BoxPlan& b : boxes_) {
      source = std::max(source, planes_ * plane(b));
      folded = std::max(folded, b.pitch * lanes_);
      const int64_t lines = (b.box->lines() + b.runs.count() - 1) / b.runs.count();
      line_elements_ = std::max(line_elements_, lines * line_vectors(*b.phase) * lanes_);
    }
    const int64_t results = results_ * line_elements_;
    const int64_t raw = kernel_taps(p_) * lanes_;  // taps as they lie in the filter, before anything else
    local_elements_ = round_up(std::max(raw, source + folded + results + results_ * lanes_), 2 * lanes_);
  }

  void pack_weights_of(const LaneBlock& b, S* raw, S* packed) const {
    const int64_t taps = kernel_taps(p_);
    if (!p_.across.empty()) {
      for (int64_t r = 0; r < p_.filters; ++r)
        gather_mirrored(table_, p_, of_, d_.weight, mirrored_, b, r, raw, packed + r * taps * lanes_);
      return;
    }
    for (size_t i = 0; i < ties_.size(); ++i) {
      const Segment& s = p_.segments[i];
      const int64_t first = of_.contracts() ? 0 : s.first, rows = of_.contracts() ? of_.rows() : s.rows;
      for (int64_t r = first; r < first + rows; ++r) {
        gather_taps(table_, p_, of_, d_.weight, d_.weight_group_stride, b, r, raw);
        k_.fold_taps(ties_[i].taps.data(), ties_[i].taps.size(), raw, packed + r * taps * lanes_, false);
      }
    }
  }

  // Forward, members of an orbit are stored from registers, in turn, where they are all that a channel has.
  bool stored_from_registers(const LaneBlock& b) const {
    bool direct = d_.out.channel_stride == 1 && b.lanes == lanes_ && (!d_.fold || p_.orbits == 1);
    for (const TiePlan& tie : ties_) direct = direct && windowed(tie);
    return direct;
  }

  void run(const BoxPlan& plan, int64_t image, const LaneBlock& b, const S* weights, bool clear,
           S* local) const {
    S* source = local;
    S* lines = source + planes_ * plane(plan);
    S* folded = lines + results_ * line_elements_;
    S* bias = folded + plan.pitch * lanes_;
    pack_box(table_, p_, of_, {d_.source, true, planes_, !d_.fold, *plan.phase, *plan.box, plan.pitch}, image,
             b, clear, source);
    LaneArgs<T> to{};
    Lanes::Table table;
    to.planes = results_, to.channels = b.lanes;
    if (d_.fold) {
      to.lane = of_.places(p_.filters, 1, table);
      to.plane_channels = of_.of_group(), to.span = b.groups * p_.filters;
    }
    if (d_.bias) {
      to.lanes = bias, to.plane_stride = lanes_, to.positions = 1, to.channel_stride = 1;
      to.memory = const_cast<T*>(d_.bias) + b.first * p_.filters;
      k_.gather(to);
    }
    const int64_t channel = b.first * (d_.fold ? p_.filters : of_.of_group());
    T* out = d_.out.data + image * d_.out.batch_stride + channel * d_.out.channel_stride;
    if constexpr (std::is_same_v<S, T>)
      if (stored_from_registers(b))  // the whole box is one run
        return multiply({plan, 0, plan.box->lines(), source, folded, out,
                         d_.bias ? d_.bias + b.first * p_.filters : nullptr, true},
                        weights);
    for (int64_t r = 0; r < plan.runs.count(); ++r) {
      const int64_t begin = plan.runs.begin(r), end = plan.runs.begin(r + 1);
      multiply({plan, begin, end, source, folded, lines - plan.kept[begin], nullptr, false}, weights);
      to.lanes = lines, to.plane_stride = line_elements_, to.place = plan.runs.place();
      to.positions = (end - begin) * plan.phase->axis[2]->count, to.memory = out + plan.offset[begin];
      to.channel_stride = d_.out.channel_stride, to.position_stride = position_step(plan);
      to.bias = d_.bias ? bias : nullptr;
      k_.scatter(to);
    }
  }

  void multiply(const Run& run, const S* weights) const {
    d_.fold ? forward(run, weights) : gradient(run, weights);
  }

  int64_t line_offset(const LinePhase& phase, const Box& box, int64_t line) const {
    int64_t offset = phase.axis[2]->first * d_.out.stride[2];
    for (int axis = 0; axis < 2; ++axis) {
      const AxisMap& m = *phase.axis[axis];
      offset += (m.first + m.step * box.anchor(line, axis)) * d_.out.stride[axis];
    }
    return offset;
  }

  int64_t position_step(const BoxPlan& plan) const { return plan.phase->axis[2]->step * d_.out.stride[2]; }

  // Every field one by one: clearing or copying the struct compiles to string instructions, which wait for
  // all stores before them (measured: a tenth of a forward).
  WindowArgs<S> window_args(const Run& run, size_t segment, const S* weights) const {
    const Steps& steps = run.plan.steps[segment];
    WindowArgs<S> a;
    a.steps = steps.all.data(), a.first = steps.first.data();
    a.begin = run.begin, a.end = run.end;
    a.weights = weights;
    a.positions = run.plan.phase->axis[2]->count;
    for (int g = 0; g < kMaxKernelLines; ++g) a.source[g] = run.source, a.out[g] = run.out;
    a.offset = run.direct ? run.plan.offset.data() : run.plan.kept.data();
    a.out_step = run.direct ? position_step(run.plan) : lanes_;
    a.interleave = a.add = false, a.bias = nullptr;
    return a;
  }

  void forward(const Run& run, const S* weights) const {
    const int64_t taps = kernel_taps(p_) * lanes_;
    for (size_t i = 0; i < ties_.size(); ++i) {
      const TiePlan& tie = ties_[i];
      const Segment& s = p_.segments[i];
      for (int64_t r = 0; r < s.rows / of_.of_group(); ++r) {
        const S* w = weights + (s.first + r) * taps;
        S* member[kMaxSources];
        for (int g = 0; g < s.members(); ++g)
          member[g] = run.out + (member_channel(s, g) / of_.of_group() + r) * line_elements_;
        if (tie.own_image) {
          own_image(run, i, run.source, w, member[0], false);
          continue;
        }
        if (!windowed(tie)) {
          general_forward(run, i, w, member);
          continue;
        }
        WindowArgs<S> a = window_args(run, i, w);
        a.interleave = run.direct, a.bias = run.bias;
        for (int g = 0; !run.direct && g < tie.members() && g < kMaxKernelLines; ++g) a.out[g] = member[g];
        k_.forward[window_][tie.tied][tie.vertical].run(a);
      }
    }
  }

  // Orbits of a segment are summed in registers: their planes are steps.
  void gradient(const Run& run, const S* weights) const {
    const int64_t taps = kernel_taps(p_) * lanes_, step = plane(run.plan);
    for (size_t i = 0; i < ties_.size(); ++i) {
      const TiePlan& tie = ties_[i];
      const Segment& s = p_.segments[i];
      const S* w = weights + s.first * taps;
      const S* parity[kMaxSources];
      for (int g = 0; g < s.members(); ++g) parity[g] = run.source + member_channel(s, g) * step;
      if (tie.own_image) {
        own_image(run, i, parity[0], w, run.out, i > 0);
        continue;
      }
      if (!windowed(tie)) {
        general_gradient(run, i, parity, w, i > 0);
        continue;
      }
      WindowArgs<S> a = window_args(run, i, w);
      for (int g = 0; g < tie.members() && g < kMaxKernelLines; ++g) a.source[g] = parity[g];
      a.add = i > 0;
      k_.input_grad[window_][tie.tied][tie.vertical].run(a);
    }
  }

  // One parity of a plane to one plane of results, in either pass.
  void own_image(const Run& run, size_t segment, const S* source, const S* w, S* out, bool add) const {
    const TiePlan& tie = ties_[segment];
    if (windowed(tie)) {
      WindowArgs<S> a = window_args(run, segment, w);
      for (const S*& plane : a.source) plane = source;
      a.out[0] = out, a.bias = run.bias, a.add = add;
      return own_window(tie).run(a);
    }
    const LineParity along = tie.own_across ? kOddParity : kEvenParity;
    for (int64_t line = run.begin; line < run.end; ++line) {
      S* at = out + run.plan.kept[line];
      general_line(run, line, segment, tie.own_up, along, source, w, {at, at}, add);
    }
  }

  void general_forward(const Run& run, size_t segment, const S* w, S* const* member) const {
    const TiePlan& tie = ties_[segment];
    for (int64_t line = run.begin; line < run.end; ++line) {
      S* at[kMaxSources];
      for (int g = 0; g < tie.members(); ++g) at[g] = member[g] + run.plan.kept[line];
      for (int up = 0; up < 1 << tie.vertical; ++up)
        general_line(run, line, segment, up, tie.tied ? kBothParities : kEvenParity, run.source, w,
                     {at[tie.parity(0, up)], at[tie.parity(tie.tied, up)]}, false);
      k_.butterfly(at, tie.axes(), run.plan.phase->axis[2]->count);
    }
  }

  void general_gradient(const Run& run, size_t segment, const S* const* parity, const S* w, bool add) const {
    const TiePlan& tie = ties_[segment];
    for (int up = 0; up < 1 << tie.vertical; ++up)
      for (int across = 0; across < (tie.tied ? 2 : 1); ++across, add = true)
        for (int64_t line = run.begin; line < run.end; ++line) {
          S* at = run.out + run.plan.kept[line];
          general_line(run, line, segment, up, across ? kOddParity : kEvenParity,
                       parity[tie.parity(across, up)], w, {at, at}, add);
        }
  }

  // All kernel lines whose combination has vertical parity `up`: mirrored lines folded first.
  void general_line(const Run& run, int64_t line, size_t segment, int up, LineParity across, const S* source,
                    const S* weights, std::array<S*, 2> acc, bool add) const {
    const TiePlan& tie = ties_[segment];
    const BoxPlan& plan = run.plan;
    const Steps& steps = plan.steps[segment];
    std::vector<const S*> rows, w;
    const DepthwiseStep* single = steps.begin(3 * line);
    for (int64_t i = 0; up == 0 && i < steps.count(3 * line); ++i) {
      rows.push_back(source + single[i].row[0] * lanes_);
      w.push_back(weights + single[i].weight * lanes_);
    }
    LineArgs<S> a{rows.data(),
                  w.data(),
                  static_cast<int64_t>(rows.size()),
                  plan.phase->taps(tie.tied),
                  plan.phase->axis[2]->a * lanes_,
                  plan.phase->axis[2]->count,
                  {acc[0], acc[1]},
                  add};
    k_.line[across](a);  // also where there is no line: it writes the zeros
    a.line_count = 1, a.add = true;
    for (int images = 1; images <= 2; ++images) {
      const DepthwiseStep* step = steps.begin(3 * line + images);
      for (int64_t i = 0; i < steps.count(3 * line + images); ++i) {
        const int combination = combination_at(tie, static_cast<int>(step[i].weight % kernel_taps(p_)), up);
        if (combination < 0) continue;
        const S* images_of[kMaxKernelLines];
        for (int s = 0; s < 1 << images; ++s) images_of[s] = source + step[i].row[s] * lanes_;
        k_.combine(images_of, images, combination, run.folded, plan.pitch);
        const S* at = weights + (step[i].weight + combination * p_.kernel[2]) * lanes_;
        const S* folded = run.folded;
        a.lines = &folded, a.weights = &at;
        k_.line[across](a);
      }
    }
  }

  // Of the kernel line whose weights are there.
  static int combination_at(const TiePlan& tie, int weight, int up) {
    for (const KernelLine& line : tie.lines)
      if (line.weight == weight) return combination_of(line, up);
    return -1;
  }

  const Depthwise<T>& d_;
  const int planes_, results_;                      // of the source, and of results
  int64_t line_elements_ = 0, local_elements_ = 0;  // of one plane of results; of one task
  MirroredTaps mirrored_;                           // where orbits lie across groups
  std::vector<LinePhase> phases_;
  std::vector<BoxPlan> boxes_;
};

}  // namespace

template <class T>
void depthwise(const Depthwise<T>& d) {
  Pass<T>{d}();
}

#define SYMCONV_INSTANTIATE(T) template void depthwise<T>(const Depthwise<T>&);
SYMCONV_FOR_ELEMENTS(SYMCONV_INSTANTIATE)

}  // namespace symconv
