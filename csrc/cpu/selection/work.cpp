// How much work a selection is, in closed form: what the cost model multiplies by its rates. Vectors are
// counted with the lanes that they leave empty; halo lines of tiles, of which the sizes do not tell, by a
// mean.
#include <algorithm>
#include <cmath>

#include "blocking.h"
#include "depthwise/depthwise.h"
#include "few_channels/direct_fold.h"
#include "selection/select.h"

namespace symconv {
namespace {

constexpr double kHalo = 1.25;      // panel lines that are packed, over those of results
constexpr int64_t kTogether = 112;  // positions of a scatter that are multiplied together, about

// Of what a function counts once, all are exact: they are far below 2^53.
double real(int64_t n) { return static_cast<double>(n); }

int64_t product(const Triple& t) { return t[0] * t[1] * t[2]; }

class Counter {
 public:
  explicit Counter(const Selection& s) : s_(s), p_(s.problem), lanes_(s.vectors.lanes) {
    // A gradient of the weight is one sum, whatever parts its tensors come in.
    batch_ = s.op == Op::wgrad ? s.description.input[0] : p_.batch;
  }

  Counts operator()() {
    counts_.activations =
        real(batch_ * p_.groups * (p_.channels * product(p_.in) + p_.filters * product(p_.out)));
    if (s_.depthwise && s_.algorithm != Algorithm::expand) count_depthwise();
    if (s_.is_direct()) count_direct();
    for (const Multiplication& m : s_.multiplications) m.scattered ? count_scatter(m) : count_panel(m);
    return counts_;
  }

 private:
  bool forward() const { return s_.op == Op::fprop; }

  void count_depthwise() {
    const int64_t positions = batch_ * product(p_.transposed ? p_.in : p_.out);
    const Lanes lanes(p_, forward(), lanes_);
    const int64_t vectors = positions * lanes.blocks() * lanes.rows() * product(kept_kernel(p_));
    (window_index(p_) >= 0 ? counts_.windows : counts_.lines) = real(vectors);
    const int64_t planes = forward() ? p_.channels : p_.filters;
    if (p_.channels > 1)
      counts_.shared = real(batch_ * product(forward() ? p_.in : p_.out) * lanes.blocks() * planes);
  }

  // --- panels: folds and gather-sums ---

  // In the weight gradient a staged panel counts as one with positions for lanes.
  Arrangement kind_of(const Multiplication& m) const {
    const Layout& l = m.layout;
    const bool turned = l.staged && (l.pixel_lanes || s_.op == Op::wgrad);
    return turned ? kTurned : l.staged ? kStaged : l.planes ? kPlanes : kPixels;
  }

  // Panel lines that are packed, over those of results. Of a dilated axis a phase has few lines beside its
  // halo.
  double halo(int axis, const Triple& extent) const {
    if (axis < 0) return 1;
    if (!is_interleaved(p_, axis)) return kHalo;
    const int64_t lines = ceil_div(extent[axis], p_.dilation[axis]);
    return real(lines + std::min(p_.kernel[axis] - 1, 2 * (lines - 1))) / real(lines);
  }

  // Of the lines that taps of the offset axis read, those in the map: others are not multiplied.
  double inside(int axis, const Triple& extent) const {
    if (axis < 0 || !is_interleaved(p_, axis)) return 1;
    const int64_t in = p_.in[axis], out = p_.out[axis];
    int64_t lines = 0;
    for (int64_t k = 0; k < p_.kernel[axis]; ++k) {
      const int64_t shift = p_.dilation[axis] * k - p_.padding[axis];
      lines += p_.transposed ? within(in, out, shift) : within(out, in, shift);
    }
    return real(lines) / real(p_.kernel[axis] * extent[axis]);
  }

  // Of `from` positions those that are among `to`, shifted.
  static int64_t within(int64_t from, int64_t to, int64_t shift) {
    return std::max<int64_t>(0, std::min(from, to - shift) - std::max<int64_t>(0, -shift));
  }

  // Products of a gather-sum at strides, over those where every tap shares its sum with its image: a tap
  // whose image reads positions of another residue has none to share.
  double apart(const Tie& tie) const {
    double products = 1;
    for (int i = 0; i < tie.axes(); ++i) {
      const int axis = tie.axis(i);
      const int64_t taps = p_.kernel[axis];
      int64_t alone = 0;
      for (int64_t tap = 0; tap < taps; ++tap)
        alone += p_.dilation[axis] * (mirrored(taps, tap) - tap) % p_.stride[axis] != 0;
      products *= 1 + real(alone) / real(taps);
    }
    return products;
  }

  // Sources of a value of a panel, over the values that are made of them together.
  double summed(const Segment& segment, const Blocks& part, bool as_forward) const {
    if (segment.own_image && (as_forward || !segment.moves_channels())) return real(segment.tie.members());
    if (as_forward) return 1;
    if (p_.folds_gradients()) return real(segment.tie.members()) / real(part.count());
    return real(p_.filters) / real(p_.orbits);
  }

  void count_panel(const Multiplication& m) {
    const Segment& segment = p_.segments[m.segment];
    const Arrangement kind = kind_of(m);
    const Triple& extent = forward() || m.of_input ? p_.out : p_.in;
    // A gradient that is folded stores blocks of channels, as a forward pass does members.
    const bool as_forward = forward() || m.of_input;
    const bool moves = segment.moves_channels(), folds = as_forward || moves;
    const Blocks& part = segment.inputs[m.part];
    const int64_t members = as_forward ? segment.members() : part.count();
    const int64_t columns = as_forward ? segment.rows : part.size;
    const int64_t sides = segment.own_image ? 1 : part.count();
    const int64_t contracted = as_forward             ? segment.kept_channels()
                               : p_.folds_gradients() ? segment.rows * sides
                                                      : p_.orbits;
    const int64_t run = as_forward ? segment.shortest_block() : shortest_run(p_);
    const double sources = summed(segment, part, as_forward);
    const int64_t taps = product(segment.kept(p_.kernel)), pixels = batch_ * product(extent);
    const int64_t shifts = m.axis < 0 ? 1 : p_.kernel[m.axis];
    double saving = inside(m.axis, extent), stored = halo(m.axis, extent);
    if (m.filtering) {
      const int64_t lines = extent[m.axis];
      const double made = real(ceil_div(lines, kLinesOut[m.filtering]) * kProducts[m.filtering]);
      saving = made / real(3 * lines), stored = made / real(lines);
    }
    const bool adjoint = as_forward == p_.transposed;
    const int64_t strides = adjoint ? product(p_.stride) : 1;
    // Lines that the matrix kernel folds along the width are the same for all taps of it.
    const int64_t alike = m.layout.by_lines ? p_.kernel[kAxes - 1] : 1;
    const double slots = real(taps / shifts / alike) / real(strides);
    const bool pixel_lanes = kind != kPixels && kind != kStaged && s_.op != Op::wgrad;
    const int64_t stores =
        pixel_lanes ? columns * ceil_div(pixels, lanes_) : ceil_div(columns, lanes_) * pixels;
    double panel, runs;
    if (kind == kPixels) {
      // Of lines halves of vectors are as quick to fold as whole ones.
      const int64_t half = m.layout.by_lines ? lanes_ / 2 : lanes_;
      const int64_t together = run >= lanes_ ? lanes_ : run >= half ? half : 1;
      panel = slots * real(pixels) * real(contracted) / real(together);
      runs = slots * real(pixels);
    } else {
      panel = slots * real(contracted * pixels) / lanes_;
      runs = slots * real(pixels) / real(extent[kAxes - 1]) *
             (kind == kPlanes ? real(2 * contracted) : real(contracted) / real(run));
    }
    Work& work = counts_.work[kind];
    const double groups = real(p_.groups);
    work.passes += 1;
    if (adjoint) saving *= apart(segment.tie);
    work.multiply_adds += groups * real(stores * contracted * taps) / real(strides) * saving;
    work.results += groups * real(stores * (folds ? members : 1));
    if (s_.op == Op::dgrad && !p_.order.empty())
      counts_.sorted += groups * real(columns * ceil_div(pixels, kMaxVectors * lanes_));
    // Sources of a position are loaded, and their sum is stored; with sums along the depth that is done
    // twice.
    double moved = (1 + sources) / 2;
    if (m.layout.sums_depth)
      moved = (1 + sources / 2) / 2 + 1.5 * sources / 2 * real(p_.kernel[kDepthAxis]) / real(taps);
    work.panel += groups * panel * stored * moved;
    work.runs += groups * runs * stored;
    work.weights += groups * real(contracted * columns * taps);
  }

  // --- scatters ---

  static Arrangement kind_of(const Scattered& how) {
    if (how.planes) return how.turned ? kScatterTurned : kScatterPlanes;
    return how.relaid ? kScatterRelaid : kScatter;
  }

  // Lanes in use where positions are the lanes: lines of a chunk follow each other, unless they are strided.
  double filled(const ScatterPlan& plan, int64_t lines) const {
    const int64_t line = ceil_div(p_.in[plan.inner], p_.stride[plan.inner]);
    const bool together = p_.stride[plan.outer] == 1;
    const int64_t most = together ? std::min(lines, std::max<int64_t>(1, kTogether / line)) : 1;
    return real(line * most) / lanes_ / real(ceil_div(line * most, lanes_));
  }

  // Lines along the width are read in place, whatever their type and how far apart they are: the rates are
  // those of such counts.
  static bool packs(const Scattered& how) {
    const ScatterPlan& plan = how.plan;
    return how.planes || !plan.summed || plan.folded || plan.filtering || plan.inner != kAxes - 1;
  }

  void count_scatter(const Multiplication& m) {
    const Scattered& how = *m.scattered;
    const ScatterPlan& plan = how.plan;
    const Segment& segment = p_.segments[m.segment];
    const bool pixels = !how.planes;
    const int64_t orbits = segment.rows, depth = p_.kernel[plan.deep], planes = p_.out[plan.deep];
    const int64_t lines =
        plan.ring ? p_.in[plan.outer] : ceil_div(p_.out[plan.outer], kLinesOut[plan.filtering]);
    int64_t contracted = plan.ring || plan.filtering ? 1 : p_.kernel[plan.outer];
    double taps = 1;
    if (plan.summed)
      taps = real(p_.kernel[plan.inner]) / real(p_.stride[plan.inner]);
    else
      contracted = p_.kernel[plan.inner];
    if (plan.ring) taps *= real(p_.kernel[plan.outer]) / real(p_.stride[plan.outer]);
    const int64_t along = plan.summed ? p_.in[plan.inner] : p_.out[plan.inner];
    const int64_t calls = batch_ * p_.groups * planes * lines, positions = calls * along;
    double columns = taps * real(orbits) / lanes_;
    if (pixels)
      columns = std::ceil(columns);
    else
      columns /= filled(plan, lines);
    const int64_t outputs = batch_ * p_.groups * product(p_.out) * segment.tie.members();
    const double made = kProducts[plan.filtering];
    const double turned = how.relaid ? real(batch_ * p_.groups * p_.channels * product(p_.in)) / lanes_ : 0;
    Work& work = counts_.work[kind_of(how)];
    work.passes += 1;
    work.multiply_adds += real(positions * p_.channels * depth * contracted) * columns * made;
    work.products += real(positions * (plan.folded ? 2 : 1)) * columns * made;
    work.results += pixels ? real(outputs * ceil_div(orbits, lanes_)) : real(outputs * orbits) / lanes_;
    work.panel += turned;
    if (packs(how)) work.panel += real(positions * p_.channels * depth * plan.lines_in()) / lanes_;
    work.runs += pixels ? real(calls) : real(calls * (p_.channels * depth + segment.tie.members() * orbits));
    work.weights += real(p_.groups * p_.channels * orbits * kernel_taps(p_));
  }

  // --- direct algorithms: results lie as those of panels do ---

  void count_direct() {
    const bool last = forward() ? s_.result_last && !turned() : s_.source_last;
    Work& work = counts_.work[last ? kPixels : kTurned];
    if (s_.algorithm == Algorithm::direct) return count_filters(work);
    s_.op == Op::dgrad ? count_unfolded(work) : count_folds(work);
  }

  bool turned() const { return s_.algorithm == Algorithm::direct_fold && turns_lines(p_, lanes_); }

  // Forward, positions are the lanes of planes, and of pixels that are turned.
  bool has_position_lanes() const { return forward() && (turned() || !s_.result_last); }

  // Columns are filters, but taps in the gradient of the input, which adds them one by one.
  void count_filters(Work& work) const {
    const int64_t taps = p_.channels * kernel_taps(p_);
    const int64_t lines = batch_ * p_.groups * p_.out[0] * p_.out[1], pixels = lines * p_.out[2];
    const bool of_input = s_.op == Op::dgrad;
    const double columns = of_input ? real(ceil_div(taps, lanes_)) : real(p_.filters) / lanes_;
    work.multiply_adds = real(pixels * (of_input ? p_.filters : taps)) * columns;
    work.results = s_.op == Op::wgrad ? 0 : real(pixels) * columns;
    work.panel = of_input ? real(pixels * taps) : 0;
    work.runs = real(lines * p_.kernel[0] * p_.kernel[1]);
    work.weights = real(p_.filters * p_.groups * taps);
  }

  // Folded axes divide the columns; a tile of results of each parity is one product. In the weight gradient
  // results are upstream gradients, read and folded.
  void count_folds(Work& work) const {
    const int64_t lines = batch_ * p_.groups * p_.out[0] * p_.out[1];
    const int64_t kernel_lines = p_.kernel[0] * p_.kernel[1], width = p_.kernel[2];
    const double line = real(p_.in[2] * p_.channels) / lanes_;
    for (const Segment& segment : p_.segments) {
      constexpr int width_axis = kAxes - 1;
      const Tie& tie = segment.tie;
      const bool along = tie.has(width_axis), across = tie.without(width_axis).axes() > 0;
      const int64_t vectors = has_position_lanes() ? lines * segment.rows * ceil_div(p_.out[2], lanes_)
                                                   : lines * p_.out[2] * ceil_div(segment.rows, lanes_);
      work.multiply_adds += real(vectors * p_.channels * kernel_lines * width);
      work.products += real(vectors * tie.members());
      work.results += real(vectors * tie.members());
      // Lines folded along the width alone are kept for the results below them.
      const int64_t folded = lines * (across ? kernel_lines : p_.stride[1]);
      work.panel += line * real(folded * ((along ? width - 1 : 0) + (across ? 1 : 0)));
      work.runs += real(lines * kernel_lines * width * p_.channels);
      work.weights += real(p_.groups * p_.orbits * p_.channels * kernel_taps(p_));
    }
  }

  // In the gradient of the input positions are the lanes. Results are products, one for every tap that is
  // kept, stored once and added to the lines of all its images; runs are lines of taps that are added
  // together.
  void count_unfolded(Work& work) const {
    const int64_t lines = batch_ * p_.groups * p_.out[0] * p_.out[1];
    const int64_t vectors = lines * ceil_div(p_.out[2], lanes_);
    const int64_t apart = std::min(p_.stride[2], p_.kernel[2]);
    for (const Segment& segment : p_.segments) {
      const int64_t taps = p_.channels * tap_count(segment.kept(p_.kernel));
      work.multiply_adds += real(vectors * segment.rows * taps);
      work.results += real(vectors * (taps + p_.channels * kernel_taps(p_))) / 2;
      work.panel += real(vectors * segment.rows * segment.members());
      work.runs += real(lines * p_.kernel[0] * p_.kernel[1] * apart * p_.channels);
      work.weights += real(p_.groups * segment.rows * taps);
    }
  }

  const Selection& s_;
  const Problem& p_;
  const int lanes_;
  int64_t batch_;
  Counts counts_;
};

}  // namespace

Counts count_work(const Selection& s) { return Counter(s)(); }

}  // namespace symconv
