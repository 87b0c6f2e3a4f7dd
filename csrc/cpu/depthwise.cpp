// Depthwise forward and input gradient.
#include "depthwise.h"

#include <algorithm>

#include "scratch.h"

namespace symconv {

namespace {

constexpr int64_t kBoxBytes = 256 << 10;  // of packed source: a quarter of a second-level cache
// Of the same box in memory with the channels of all blocks: what one block reads, the next one finds there.
constexpr int64_t kRegionBytes = 512 << 10;

int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

template <class T>
class Pass {
 public:
  explicit Pass(const Depthwise<T>& d)
      : d_(d), p_(d.problem), table_(select_kernels<T>()), k_(table_.depthwise), lanes_(table_.lanes) {
    blocks_ = (p_.groups + lanes_ - 1) / lanes_;
    planes_ = d.fold ? 1 : static_cast<int>(p_.filters);
    window_ = window_index(p_);
    for (const Segment& s : p_.segments) ties_.push_back(tie_plan(p_, s.mask));
    for (int axis = 0; axis < kAxes; ++axis) axes_[axis] = axis_maps(p_, d.fold, axis);
    phases_ = line_phases(axes_, p_);
    for (LinePhase& phase : phases_) plan_phase(phase);
    plan_memory();
  }

  void operator()() {
    const int64_t threads = thread_count(), taps = kernel_taps(p_), weights = p_.orbits * taps * lanes_;
    Scratch<T> packed(blocks_ * weights);
    Scratch<T> raw(threads * taps * lanes_);
    parallel_slices(blocks_, threads, [&](int64_t begin, int64_t end, int64_t slice) {
      for (int64_t b = begin; b < end; ++b)
        pack_weights_of(block(b), raw.data() + slice * taps * lanes_, packed.data() + b * weights);
    });
    const int64_t tasks = boxes_.size() * p_.batch * blocks_, slices = std::min(tasks, threads);
    Scratch<T> memory(local_elements_ * slices);
    parallel_slices(tasks, slices, [&](int64_t begin, int64_t end, int64_t slice) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t b = i % blocks_;
        run(boxes_[i / blocks_ / p_.batch], i / blocks_ % p_.batch, block(b), packed.data() + b * weights,
            memory.data() + slice * local_elements_);
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
  };

  // One line of results of one block of channels.
  struct Line {
    const BoxPlan& plan;
    int64_t index;
    const T* source;  // packed
    T* lines;         // [planes of the result][whole chunks][lanes]
    T* folded;        // one packed line
    T* out;           // first position of the first channel
    const T* next;    // of the next line, or null
  };

  // Chunks of the windows and of the general lines: all of them divide it.
  int64_t chunks(int64_t positions) const { return round_up(positions, k_.line_width) + widest_; }
  bool windowed(const TiePlan& tie) const { return window_ >= 0 && tie.vertical < 2; }
  int64_t plane(const BoxPlan& b) const { return (1 + b.box->source_lines()) * b.pitch * lanes_; }

  ChannelBlock block(int64_t b) const {
    return {b * lanes_, static_cast<int>(std::min<int64_t>(lanes_, p_.groups - b * lanes_))};
  }

  int chunk_width(const TiePlan& tie) const {
    if (!windowed(tie)) return k_.line_width;
    const auto& table = d_.fold ? k_.forward : k_.input_grad;
    return table[window_][tie.tied][tie.vertical].width;
  }

  void plan_phase(LinePhase& phase) {
    int64_t positions = 0;  // with whole chunks for every tie
    for (const TiePlan& tie : ties_) {
      const int width = chunk_width(tie);
      positions = std::max(positions, round_up(phase.axis[2]->count, width));
      widest_ = std::max(widest_, width);
    }
    const int64_t pitch = line_pitch(phase, positions);
    const int64_t tasks = p_.batch * blocks_ * static_cast<int64_t>(phases_.size());
    const int64_t want = thread_count() > 1 ? (4 * thread_count() + tasks - 1) / tasks : 1;
    const int64_t vector = planes_ * static_cast<int64_t>(sizeof(T));  // bytes of one position and channel
    cut_boxes(phase, pitch, std::min(kBoxBytes / lanes_, kRegionBytes / p_.groups) / vector, want);
    for (const Box& box : phase.boxes) {
      BoxPlan plan{&phase, &box, pitch, {}, {}};
      for (const TiePlan& tie : ties_) plan.steps.push_back(steps_by_line(tie, phase, box, pitch));
      for (int64_t line = 0; line < box.lines(); ++line) plan.offset.push_back(line_offset(phase, box, line));
      boxes_.push_back(std::move(plan));
    }
  }

  // Packed source, result lines, one folded line and the bias of every filter.
  void plan_memory() {
    int64_t source = 0, folded = 0;
    for (const BoxPlan& b : boxes_) {
      source = std::max(source, planes_ * plane(b));
      folded = std::max(folded, b.pitch * lanes_);
      line_elements_ = std::max(line_elements_, chunks(b.phase->axis[2]->count) * lanes_);
    }
    const int64_t results = (d_.fold ? p_.filters : 1) * line_elements_;
    local_elements_ = round_up(source + folded + results + p_.filters * lanes_, 2 * lanes_);
  }

  void pack_weights_of(const ChannelBlock& b, T* raw, T* packed) const {
    const int64_t taps = kernel_taps(p_);
    for (size_t i = 0; i < ties_.size(); ++i) {
      const Segment& s = p_.segments[i];
      for (int64_t r = s.first; r < s.first + s.rows; ++r) {
        gather_taps(k_, p_, d_.weight, d_.weight_group_stride, b, r, lanes_, raw);
        k_.fold_taps(ties_[i].taps.data(), ties_[i].taps.size(), raw, packed + r * taps * lanes_, false);
      }
    }
  }

  // Members of an orbit are stored from registers, in turn, where they are all that a channel has.
  bool interleaved(const ChannelBlock& b) const {
    return d_.fold && p_.orbits == 1 && windowed(ties_[0]) && d_.out.channel_stride == 1 && b.lanes == lanes_;
  }

  void run(const BoxPlan& plan, int64_t image, const ChannelBlock& b, const T* weights, T* local) const {
    T* source = local;
    T* lines = source + planes_ * plane(plan);
    T* folded = lines + (d_.fold ? p_.filters : 1) * line_elements_;
    T* bias = folded + plan.pitch * lanes_;
    const bool one = !d_.fold && is_one_orbit(p_);
    pack_box(k_, lanes_, d_.source, image, b, planes_, one, *plan.phase, *plan.box, plan.pitch, source);
    if (!d_.fold && !one) planes_to_parities(k_, p_, source, plane(plan), plane(plan) / lanes_);
    if (d_.bias)
      k_.gather({bias, lanes_, static_cast<int>(p_.filters), 1, b.lanes,
                 const_cast<T*>(d_.bias) + b.first * p_.filters, 1, 0, nullptr, false});
    const int64_t channel = b.first * (d_.fold ? p_.filters : 1);
    T* base = d_.out.data + image * d_.out.batch_stride + channel * d_.out.channel_stride;
    const int64_t count = plan.box->lines();
    for (int64_t l = 0; l < count; ++l) {
      const T* next = l + 1 < count ? base + plan.offset[l + 1] : nullptr;
      const Line line{plan, l, source, lines, folded, base + plan.offset[l], next};
      d_.fold ? forward_line(line, b, weights, bias) : gradient_line(line, b, weights);
    }
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

  void store_lines(const Line& line, const ChannelBlock& b, int planes, const T* bias) const {
    const BoxPlan& plan = line.plan;
    k_.scatter({line.lines, line_elements_, planes, plan.phase->axis[2]->count, b.lanes, line.out,
                d_.out.channel_stride, position_step(plan), bias, false});
  }

  // Every field one by one: clearing or copying the struct compiles to string instructions, which wait for
  // all stores before them (measured: a tenth of a forward).
  WindowArgs<T> window_args(const Line& line, size_t segment, const T* weights) const {
    const Steps& steps = line.plan.steps[segment];
    WindowArgs<T> a;
    a.singles = steps.begin(3 * line.index), a.single_count = steps.count(3 * line.index);
    a.pairs = steps.begin(3 * line.index + 1), a.pair_count = steps.count(3 * line.index + 1);
    a.weights = weights;
    a.positions = line.plan.phase->axis[2]->count;
    for (int g = 0; g < kMaxKernelLines; ++g) a.source[g] = line.source, a.out[g] = line.lines;
    a.out_step = lanes_, a.next_line = nullptr;
    a.interleave = a.add = false, a.bias = nullptr;
    return a;
  }

  void forward_line(const Line& line, const ChannelBlock& b, const T* weights, const T* bias) const {
    const int64_t taps = kernel_taps(p_) * lanes_;
    const bool direct = interleaved(b);
    for (size_t i = 0; i < ties_.size(); ++i) {
      const TiePlan& tie = ties_[i];
      const Segment& s = p_.segments[i];
      for (int64_t r = 0; r < s.rows; ++r) {
        const T* w = weights + (s.first + r) * taps;
        T* member[kMaxSources];
        for (int g = 0; g < 1 << tie.ties; ++g)
          member[g] = line.lines + (member_channel(s, g) + r) * line_elements_;
        if (!windowed(tie)) {
          for (int up = 0; up < 1 << tie.vertical; ++up)
            general_line(line, i, up, tie.tied ? kBothParities : kEvenParity, line.source, w,
                         {member[tie.parity(0, up)], member[tie.parity(tie.tied, up)]}, false);
          k_.butterfly(member, tie.ties, line.plan.phase->axis[2]->count);
          continue;
        }
        WindowArgs<T> a = window_args(line, i, w);
        for (int g = 0; g < 1 << tie.ties && g < kMaxKernelLines; ++g) a.out[g] = member[g];
        if (direct) {
          a.interleave = true;
          a.out[0] = line.out, a.out_step = position_step(line.plan), a.next_line = line.next;
          a.bias = d_.bias ? d_.bias + b.first * p_.filters : nullptr;
        }
        k_.forward[window_][tie.tied][tie.vertical].run(a);
      }
    }
    if (!direct) store_lines(line, b, static_cast<int>(p_.filters), d_.bias ? bias : nullptr);
  }

  void gradient_line(const Line& line, const ChannelBlock& b, const T* weights) const {
    const int64_t taps = kernel_taps(p_) * lanes_, step = plane(line.plan);
    bool direct = d_.out.channel_stride == 1 && b.lanes == lanes_, add = false;
    for (const TiePlan& tie : ties_) direct = direct && windowed(tie);
    for (size_t i = 0; i < ties_.size(); ++i) {
      const TiePlan& tie = ties_[i];
      const Segment& s = p_.segments[i];
      for (int64_t r = 0; r < s.rows; ++r, add = true) {
        const T* w = weights + (s.first + r) * taps;
        const T* parity[kMaxSources];
        for (int g = 0; g < 1 << tie.ties; ++g) parity[g] = line.source + (member_channel(s, g) + r) * step;
        if (!windowed(tie)) {
          general_gradient(line, i, parity, w, add);
          continue;
        }
        WindowArgs<T> a = window_args(line, i, w);
        for (int g = 0; g < 1 << tie.ties && g < kMaxKernelLines; ++g) a.source[g] = parity[g];
        a.out[0] = direct ? line.out : line.lines;
        if (direct) a.out_step = position_step(line.plan), a.next_line = line.next;
        a.add = add;
        k_.input_grad[window_][tie.tied][tie.vertical].run(a);
      }
    }
    if (!direct) store_lines(line, b, 1, nullptr);
  }

  void general_gradient(const Line& line, size_t segment, const T* const* parity, const T* w,
                        bool add) const {
    const TiePlan& tie = ties_[segment];
    for (int up = 0; up < 1 << tie.vertical; ++up)
      for (int across = 0; across < (tie.tied ? 2 : 1); ++across, add = true)
        general_line(line, segment, up, across ? kOddParity : kEvenParity, parity[tie.parity(across, up)], w,
                     {line.lines, line.lines}, add);
  }

  // All kernel lines whose combination has vertical parity `up`: mirrored lines folded first.
  void general_line(const Line& line, size_t segment, int up, LineParity across, const T* source,
                    const T* weights, std::array<T*, 2> acc, bool add) const {
    const TiePlan& tie = ties_[segment];
    const BoxPlan& plan = line.plan;
    const Steps& steps = plan.steps[segment];
    std::vector<const T*> rows, w;
    const DepthwiseStep* single = steps.begin(3 * line.index);
    for (int64_t i = 0; up == 0 && i < steps.count(3 * line.index); ++i) {
      rows.push_back(source + single[i].row[0] * lanes_);
      w.push_back(weights + single[i].weight * lanes_);
    }
    LineArgs<T> a{rows.data(),
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
      const DepthwiseStep* step = steps.begin(3 * line.index + images);
      for (int64_t i = 0; i < steps.count(3 * line.index + images); ++i) {
        const int combination = combination_of(tie, step[i].weight, up);
        if (combination < 0) continue;
        const T* images_of[kMaxKernelLines];
        for (int s = 0; s < 1 << images; ++s) images_of[s] = source + step[i].row[s] * lanes_;
        k_.combine(images_of, images, combination, line.folded, plan.pitch);
        const T* at = weights + (step[i].weight + combination * p_.kernel[2]) * lanes_;
        const T* folded = line.folded;
        a.lines = &folded, a.weights = &at;
        k_.line[across](a);
      }
    }
  }

  // Which combination of a kernel line has this vertical parity, or -1.
  static int combination_of(const TiePlan& tie, int weight, int up) {
    for (const KernelLine& line : tie.lines) {
      if (line.weight != weight) continue;
      for (int s = 0; s < 1 << line.log_images; ++s)
        if (line.parity[s] == up) return s;
    }
    return -1;
  }

  const Depthwise<T>& d_;
  const Problem& p_;
  const Kernels<T>& table_;
  const DepthwiseKernels<T>& k_;
  const int lanes_;
  int64_t blocks_;
  int planes_;
  int window_;
  int widest_ = 1;
  int64_t line_elements_ = 0, local_elements_ = 0;  // of one plane of results; of one task
  std::vector<TiePlan> ties_;                       // by segment
  std::vector<AxisMap> axes_[kAxes];
  std::vector<LinePhase> phases_;
  std::vector<BoxPlan> boxes_;
};

}  // namespace

template <class T>
void depthwise(const Depthwise<T>& d) {
  Pass<T> pass(d);
  pass();
}

template void depthwise<float>(const Depthwise<float>&);
template void depthwise<double>(const Depthwise<double>&);

}  // namespace symconv
