// The choices, and what no algorithm can.
#include "selection/select.h"

#include <algorithm>

#include "blocking.h"
#include "depthwise/plan.h"

namespace symconv {
namespace {

constexpr int64_t kMostDirectChannels = 4;  // of a group
constexpr int64_t kMostNarrow = 8;          // channels and orbits of one that shares vectors with others

constexpr const char* kDepthwise =
    "a depthwise layer (one input channel in each group) has kernels of its own";

// --- algorithms ---

struct Family {
  bool scatters;
  Filtering filtering;
};
Family family_of(Algorithm a) {
  switch (a) {
    case Algorithm::fold_f2:
      return {false, kF2};
    case Algorithm::fold_f4:
      return {false, kF4};
    case Algorithm::scatter:
      return {true, kPlain};
    case Algorithm::scatter_f2:
      return {true, kF2};
    case Algorithm::scatter_f4:
      return {true, kF4};
    default:
      return {false, kPlain};
  }
}

bool is_narrow(c10::ScalarType type) { return c10::elementSize(type) == 2; }

std::string name_of(c10::ScalarType type) {
  switch (type) {
    case c10::ScalarType::Double:
      return "float64";
    case c10::ScalarType::Half:
      return "float16";
    case c10::ScalarType::BFloat16:
      return "bfloat16";
    default:
      return "float32";
  }
}

// --- layouts ---

int64_t positions(const Triple& extent) { return extent[0] * extent[1] * extent[2]; }

// A map of one position lies both ways.
bool lies_last(bool declared, const Triple& extent) { return declared || positions(extent) == 1; }

const Triple& result_extent(const Selection& s) { return s.op == Op::fprop ? s.problem.out : s.problem.in; }

// Lines of planes so short that their borders, where each position is packed by itself, take more than a
// stage does. Panels of three dims read a source more often, so that its copy weighs less.
bool has_short_lines(const Selection& s) {
  return result_extent(s)[kAxes - 1] <= (s.dims() == 3 ? 4 : 1) * s.vectors.lanes;
}

// Runs of channels that fill no vector, and lines that fill none, are staged; columns that fill none leave
// the lanes to the positions.
Layout choose_layout(const Selection& s, int64_t run, int64_t columns) {
  const int lanes = s.vectors.lanes;
  const bool sorted = s.op == Op::fprop && !s.problem.order.empty();  // which a stage does
  if (run < lanes || columns < lanes || sorted) return {true, true, columns < lanes || !s.result_last};
  const bool planes = !s.source_last;
  return {planes, planes && has_short_lines(s), planes};
}

// Does every tap read something, of the only phase?
bool has_all_taps(const Problem& p, bool forward) {
  for (int axis = 0; axis < kAxes; ++axis) {
    const std::vector<AxisMap> maps = axis_maps(p, forward, axis);
    const AxisMap& m = maps[0];
    if (maps.size() > 1) return false;
    for (const int64_t b : m.b)
      if (b >= m.extent || m.a * (m.count - 1) + b < 0) return false;
  }
  return true;
}

// Is the fold along the width left to the matrix kernel, where there are other axes to fold along?
bool folds_by_lines(const Selection& s, const Segment& of, bool as_forward) {
  return !is_narrow(s.description.type) && !of.own_image && of.tie.axes() >= 2 && of.tie.has(kAxes - 1) &&
         of.inputs.size() == 1 && of.inputs[0].tie == of.tie && has_all_taps(s.problem, as_forward);
}

// Of the weight gradient, where positions are contracted.
Layout choose_sum_layout(const Selection& s) {
  const Problem& p = s.problem;
  // Not for octuples on small maps: their error was 2 % above twice that of torch's convolution (32 channels,
  // 8 x 8 x 8). The rounding of 16-bit types is far above either.
  constexpr int64_t small = 4096;
  const bool exact = !is_narrow(s.description.type) && positions(p.in) < small &&
                     std::any_of(
                         p.segments.begin(), p.segments.end(),
                         [](const Segment& segment) { return segment.tie.axes() == kAxes; });
  const bool planes = !s.source_last, short_lines = planes && has_short_lines(s);
  const bool staged = !exact && (shortest_run(p) < s.vectors.lanes || short_lines);
  return {planes || staged, staged, false};
}

// --- multiplications ---

Multiplication folded(const Selection& s, int segment, int part, Filtering filtering) {
  const Problem& p = s.problem;
  const Segment& own = p.segments[segment];
  const bool forward = s.op == Op::fprop;
  Layout layout = forward ? choose_layout(s, own.shortest_block(), own.rows)
                          : choose_layout(s, own.rows, own.inputs[part].size);
  Multiplication m{segment, part, std::nullopt, layout, -1, kPlain};
  m.axis = choose_offset_axis(p, forward, &own, 1, m.layout.planes);
  // Of quadruples a panel of all taps is as quick: it is three times as large as lines, not nine, and
  // channels are the lanes, which lie at multiples of vectors.
  if (m.axis < 0 && own.tie.axes() == kAxes && folds_by_lines(s, own, forward))
    m.layout = {true, true, true, false, true};
  if (can_filter(p, m.axis)) m.filtering = filtering;
  return m;
}

// Lines that the matrix kernel can read where they lie: rows not so far apart that they share cache sets, and
// pairs whole.
bool reads_in_place(const Selection& s, const ScatterPlan& plan, bool relaid) {
  constexpr int64_t most = 2048;  // bytes
  const Problem& p = s.problem;
  if (s.vectors.widens || !plan.summed || plan.filtering || plan.folded) return false;
  int64_t apart = relaid ? p.channels : p.channels * p.groups;
  for (int axis = kAxes - 1; !relaid && axis > plan.inner; --axis) apart *= p.in[axis];
  const int64_t bytes = static_cast<int64_t>(c10::elementSize(s.description.type));
  return p.channels % s.vectors.depth == 0 && p.stride[plan.inner] * apart * bytes <= most;
}

// Source and result must lie alike, and lines that are the lanes must be contiguous.
std::optional<Multiplication> scattered(const Selection& s, int segment, Filtering filtering) {
  if (s.description.source_last != s.description.result_last && !s.parts.images) return std::nullopt;
  const Problem& p = s.problem;
  const Segment& own = p.segments[segment];
  if (own.moves_channels()) return std::nullopt;
  const int lanes = s.vectors.lanes;
  const bool last = s.source_last && s.result_last, turned = last && own.rows < lanes;
  // Contiguous lines whose channels and orbits fill vectors, of one plane.
  const bool relaid =
      !last && p.in[0] == 1 && p.out[0] == 1 && p.kernel[0] == 1 && own.rows >= lanes && p.channels >= lanes;
  const bool pixels = relaid || (last && !turned);
  std::optional<ScatterPlan> plan = scatter_plan(p, own, filtering, pixels);
  if (!plan || (!last && plan->inner != kAxes - 1)) return std::nullopt;
  const bool in_place = pixels && reads_in_place(s, *plan, relaid);
  Multiplication m{segment, 0, std::nullopt, {}, -1, plan->filtering};
  m.scattered = Scattered{std::move(*plan), !pixels, turned, in_place, relaid};
  return m;
}

// Are members of a staged gather-sum that differ in the depth alone summed first? 16-bit types would be
// rounded twice, and of members along the depth alone nothing would be left to load but the sums.
bool sums_depth(const Selection& s, const Multiplication& m) {
  const std::vector<Segment>& all = s.problem.segments;
  return m.layout.staged && m.axis != kDepthAxis && !is_narrow(s.description.type) &&
         std::all_of(all.begin(), all.end(), [](const Segment& segment) {
           return !segment.folds_gradients() && segment.tie.has(kDepthAxis) && segment.tie.axes() > 1;
         });
}

Multiplication summed(const Selection& s, Filtering filtering) {
  const Problem& p = s.problem;
  Multiplication m{0, 0, std::nullopt, choose_layout(s, shortest_run(p), p.channels), -1, kPlain};
  m.axis = choose_sum_axis(p, m.layout.planes, filtering);
  if (can_filter(p, m.axis)) m.filtering = filtering;
  m.layout.sums_depth = sums_depth(s, m);
  return m;
}

Multiplication weighed(const Selection& s, int segment, int part, Filtering filtering) {
  const Problem& p = s.problem;
  Multiplication m{segment, part, std::nullopt, choose_sum_layout(s), -1, kPlain};
  m.axis = choose_offset_axis(p, false, p.segments.data(), p.segments.size(), m.layout.planes);
  if (can_filter(p, m.axis)) m.filtering = filtering;
  m.layout.sums_depth = sums_depth(s, m);
  if (m.axis < 0 && s.source_last && folds_by_lines(s, p.segments[segment], false))
    m.layout = {false, false, false, false, true};
  return m;
}

// Is the other side of a weight gradient the better panel? Where the input has few channels they would fill
// no vectors, but orbits do; of several parts it is packed once; and beside mirrors that move no channel the
// plans of gradients have one parity.
bool folds_input(const Selection& s, const Segment& of) {
  const bool mixes = of.own_image && of.moves_channels() && !(of.moved == of.tie);
  const bool few = of.shortest_block() < s.vectors.lanes || of.inputs.size() > 1;
  return s.op == Op::wgrad && (mixes || (few && of.rows >= s.vectors.lanes)) &&
         (of.own_image || of.moving(s.problem.kernel) == of.tie);
}

// A stage sorts its channels, and fills vectors with positions where channels do not.
Multiplication weighed_by_orbits(const Selection& s, int segment) {
  const Segment& of = s.problem.segments[segment];
  const bool few = of.shortest_block() < s.vectors.lanes || !s.problem.order.empty();
  const Layout layout = few ? Layout{true, true, false} : choose_sum_layout(s);
  Multiplication m{segment, 0, std::nullopt, layout, -1, kPlain};
  m.axis = choose_offset_axis(s.problem, true, &of, 1, layout.planes);
  m.of_input = true;
  return m;
}

// Of ties on both sides: each segment by itself, and each part of its input channels.
std::vector<Multiplication> choose_gradients(const Selection& s, Filtering filtering) {
  const std::vector<Segment>& segments = s.problem.segments;
  std::vector<Multiplication> all;
  for (int i = 0; i < static_cast<int>(segments.size()); ++i) {
    if (folds_input(s, segments[i])) {
      all.push_back(weighed_by_orbits(s, i));
      continue;
    }
    for (int part = 0; part < static_cast<int>(segments[i].inputs.size()); ++part) {
      const bool sums = segments[i].sums_members(segments[i].inputs[part]);
      const Filtering own = sums ? kPlain : filtering;
      all.push_back(s.op == Op::dgrad ? folded(s, i, part, own) : weighed(s, i, part, own));
    }
  }
  return all;
}

// Of a mixture, segments whose mirrored taps share no products are folded beside those that are scattered.
std::vector<Multiplication> choose(const Selection& s) {
  const Family family = family_of(s.algorithm);
  if (s.op != Op::fprop && s.problem.folds_gradients()) return choose_gradients(s, family.filtering);
  if (s.op == Op::dgrad) return {summed(s, family.filtering)};
  if (s.op == Op::wgrad) return {weighed(s, 0, 0, family.filtering)};
  std::vector<Multiplication> all;
  for (int i = 0; i < static_cast<int>(s.problem.segments.size()); ++i) {
    std::optional<Multiplication> one;
    if (family.scatters) one = scattered(s, i, family.filtering);
    all.push_back(one ? std::move(*one) : folded(s, i, 0, family.filtering));
  }
  return all;
}

// --- reasons ---

std::string why_no_relayout(const Selection& s) {
  const Description& d = s.description;
  if (s.depthwise) return kDepthwise;
  if (d.dims() == 1) return "a line has one layout";
  if (d.source_last || d.result_last) return "it is channels_last already";
  return {};
}

std::string why_no_direct(const Selection& s) {
  const Problem& p = s.problem;
  if (s.depthwise) return kDepthwise;
  if (p.transposed) return "a transposed layer";
  if (p.channels > kMostDirectChannels)
    return "more than " + std::to_string(kMostDirectChannels) + " input channels in a group";
  if (p.filters % s.vectors.lanes)
    return "the filters of a group do not fill vectors of " + std::to_string(s.vectors.lanes);
  if (s.op == Op::wgrad && s.parts.number > 1) return "it does not add to the sums of other images";
  if (s.algorithm == Algorithm::direct) return {};
  const auto is_tied = [](const Segment& segment) { return segment.tie.axes() > 0; };
  return std::any_of(p.segments.begin(), p.segments.end(), is_tied) ? "" : "no axis is tied";
}

std::string why_no_scatter(const Selection& s) {
  if (s.op != Op::fprop) return "gradients are gathered, not scattered";
  if (s.problem.transposed) return "a transposed layer gathers forward";
  if (s.depthwise) return kDepthwise;
  for (int i = 0; i < static_cast<int>(s.problem.segments.size()); ++i)
    if (scattered(s, i, kPlain)) return {};
  return "no tie whose mirrored taps share their products in this layout, or a kernel of more than 49 taps, "
         "or "
         "lines of which taps reach across more than a tile";
}

// What filters is worked out already.
std::string why_not_filtered(const Selection& s, const Family& family) {
  const auto filters = [&](const Multiplication& m) {
    return m.filtering != kPlain && m.scattered.has_value() == family.scatters;
  };
  if (std::any_of(s.multiplications.begin(), s.multiplications.end(), filters)) return {};
  std::string reason = "no axis is free of ties and has three taps, stride 1 and dilation 1";
  if (family.scatters) reason += "; with allow_winograd = \"f4\", nor is it the outer one of two";
  return reason;
}

// The gradients of ties on both sides.
std::string why_no_gradient(const Selection& s) {
  const auto& segments = s.problem.segments;
  if (s.op == Op::dgrad && segments.size() > 1)
    return "its filters have several ties, whose gradients are folded one by one, and not added";
  const Segment& first = segments[0];
  if (s.op == Op::dgrad && first.own_image && first.moves_channels() && !(first.moved == first.tie))
    return "mirrors of its filters along some axes move input channels, along others none";
  // The parts of a batch that are copied come once.
  if (s.op == Op::wgrad && s.parts.number > 1 && choose_gradients(s, kPlain).size() > 1)
    return "it does not add to the sums of other images";
  return {};
}

// Where mirrors move input channels, or a filter is its own image, panels alone are made for that, the
// kernels of depthwise layers for such filters, and products of few channels for the gradient of their input.
std::string why_not_by_panels(const Selection& s) {
  const auto& segments = s.problem.segments;
  if (s.algorithm == Algorithm::expand || s.depthwise || !s.problem.folds_gradients()) return {};
  const bool moves = std::any_of(segments.begin(), segments.end(),
                                 [](const Segment& segment) { return segment.moves_channels(); });
  if (s.algorithm == Algorithm::direct_fold && s.op == Op::dgrad && !(moves && segments[0].own_image))
    return {};
  if (s.is_direct() || family_of(s.algorithm).scatters)
    return moves ? "mirrors of its filters move input channels" : "its filters are their own images";
  if (!s.problem.order.empty() && (s.source_last || s.result_last))
    return "its mirrors move input channels one by one, which lie together";
  return s.op == Op::fprop ? "" : why_no_gradient(s);
}

std::string why_not(Selection& s) {
  if (s.problem.refused) return s.problem.refused;
  if (!s.problem.across.empty() && s.algorithm == Algorithm::expand)
    return "the reference expands filters of orbits that lie across groups";
  if (std::string reason = why_not_by_panels(s); !reason.empty()) return reason;
  if (s.algorithm == Algorithm::expand) return {};
  if (s.is_direct()) return why_no_direct(s);
  const Family family = family_of(s.algorithm);
  if (family.scatters)
    if (std::string reason = why_no_scatter(s); !reason.empty()) return reason;
  if (s.depthwise) return family.filtering ? kDepthwise : "";
  if (family.filtering && s.description.type != c10::ScalarType::Float)
    return "minimal filtering is for float32, not for " + name_of(s.description.type);
  s.multiplications = choose(s);
  return family.filtering ? why_not_filtered(s, family) : "";
}

// What lies together in a panel, and the columns that it is multiplied by.
void set_sizes(Selection& s) {
  const Problem& p = s.problem;
  s.run = s.op == Op::fprop ? shortest_block(p) : shortest_run(p);
  s.columns = s.op == Op::fprop ? shortest_run(p) : shortest_block(p);
}

PartOf part_of(Op op) {
  return op == Op::fprop ? PartOf::output : op == Op::dgrad ? PartOf::input : PartOf::sum;
}

// Sets the parts and the problem of one.
std::string cut(Selection& s) {
  if (std::string reason = why_no_relayout(s); !reason.empty()) return reason;
  const auto bytes = static_cast<int64_t>(c10::elementSize(s.description.type));
  const std::optional<Parts> parts = choose_parts(s.problem, s.dims(), part_of(s.op), bytes);
  if (!parts)
    return "input and output, more than " + std::to_string(kMostPartBytes >> 20) +
           " MiB and than the weight, would be copied";
  s.parts = *parts;
  s.copied = copied_elements(s.problem, s.dims(), *parts);
  s.problem = problem_of(s.problem, s.dims(), *parts);
  s.source_last = s.result_last = true;
  return {};
}

}  // namespace

bool has_narrow_groups(const Problem& p, int lanes) {
  const int64_t wider = std::max(p.channels, p.orbits), narrower = std::min(p.channels, p.orbits);
  return p.channels > 1 && window_index(p) >= 0 && p.segments.size() == 1 &&
         !p.segments[0].folds_gradients() && wider <= std::min<int64_t>(lanes, kMostNarrow) &&
         p.groups * narrower >= lanes;
}

int64_t shortest_run(const Problem& p) {
  int64_t run = p.orbits;
  for (const Segment& s : p.segments) run = std::min(run, s.rows);
  return run;
}

int64_t shortest_block(const Problem& p) {
  int64_t size = p.channels;
  for (const Segment& s : p.segments) size = std::min(size, s.shortest_block());
  return size;
}

const char* name(Op op) {
  static constexpr const char* kNames[] = {"fprop", "dgrad", "wgrad"};
  return kNames[static_cast<int>(op)];
}

const char* name(Algorithm algorithm) {
  static constexpr const char* kNames[] = {"fold",       "fold_f2", "fold_f4",     "scatter", "scatter_f2",
                                           "scatter_f4", "direct",  "direct_fold", "expand"};
  return kNames[static_cast<int>(algorithm)];
}

const char* name(Arrangement kind) {
  static constexpr const char* kNames[kKinds] = {"pixels",         "planes",        "staged",
                                                 "turned",         "scatter",       "scatter planes",
                                                 "scatter turned", "scatter relaid"};
  return kNames[kind];
}

Selection select(const Request& r) {
  const Description& d = r.description;
  Selection s{
      d,     r.op, r.algorithm, r.isa, {}, vectors_of(d.type, r.isa), {}, 0, make_problem(d), false, false,
      false, {},   0,           0,     {}};
  const bool narrow = !r.relayout && r.algorithm == Algorithm::fold;
  s.depthwise = is_depthwise(s.problem) || (narrow && has_narrow_groups(s.problem, s.vectors.lanes));
  const Triple& source = r.op == Op::fprop ? s.problem.in : s.problem.out;
  const bool sorted = !s.problem.order.empty();  // then channels do not lie together
  s.source_last = sorted ? d.source_last : lies_last(d.source_last, source);
  s.result_last = sorted ? d.result_last : lies_last(d.result_last, result_extent(s));
  if (r.relayout && !s.problem.refused) s.reason = cut(s);
  if (s.reason.empty()) s.reason = why_not(s);
  set_sizes(s);
  if (s.reason.empty()) s.counts = count_work(s);
  return s;
}

}  // namespace symconv
