// Index maps of the fold and of the gather-sum.
#include "packed/plan.h"

#include <algorithm>

#include "blocking.h"

namespace symconv {

namespace {

// Does the destination step through the source (a convolution), or is it scattered to (its adjoint)?
bool is_gather(const Problem& p, bool forward) { return forward != p.transposed; }

int64_t destination_extent(const Problem& p, bool forward, int axis) {
  return forward ? p.out[axis] : p.in[axis];
}
int64_t source_extent(const Problem& p, bool forward, int axis) { return forward ? p.in[axis] : p.out[axis]; }

AxisMap gather_map(const Problem& p, bool forward, int axis) {
  AxisMap m;
  m.count = destination_extent(p, forward, axis);
  m.a = p.stride[axis];
  m.extent = source_extent(p, forward, axis);
  for (int64_t k = 0; k < p.kernel[axis]; ++k) {
    m.b.push_back(p.dilation[axis] * k - p.padding[axis]);
    m.present.push_back(1);
  }
  return m;
}

AxisMap scatter_map(const Problem& p, bool forward, int axis, int64_t residue) {
  AxisMap m;
  const int64_t s = p.stride[axis], size = destination_extent(p, forward, axis);
  m.count = size > residue ? (size - residue + s - 1) / s : 0;
  m.first = residue;
  m.step = s;
  m.extent = source_extent(p, forward, axis);
  for (int64_t k = 0; k < p.kernel[axis]; ++k) {
    const int64_t at = residue + p.padding[axis] - p.dilation[axis] * k;
    m.b.push_back(floor_div(at, s));
    m.present.push_back(m.b.back() * s == at);
  }
  return m;
}

// The phases of a map whose taps are `apart`: destinations of one residue read sources of one residue.
std::vector<AxisMap> interleaved(const AxisMap& whole, int64_t apart) {
  std::vector<AxisMap> maps;
  for (int64_t r = 0; r < apart; ++r) {
    AxisMap m = whole;
    m.first = r, m.step = apart, m.source_step = apart;
    m.count = ceil_div(std::max<int64_t>(0, whole.count - r), apart);
    const int64_t at = r + whole.b[0];
    m.source_first = at - floor_div(at, apart) * apart;
    m.extent = ceil_div(std::max<int64_t>(0, whole.extent - m.source_first), apart);
    for (int64_t& b : m.b) b = (r + b - m.source_first) / apart;
    maps.push_back(m);
  }
  return maps;
}

// Taps that read nothing but padding have no part in a phase.
void leave_out_padding(AxisMap& m) {
  for (size_t tap = 0; tap < m.b.size(); ++tap)
    if (m.b[tap] >= m.extent || m.a * (m.count - 1) + m.b[tap] < 0) m.present[tap] = 0;
}

// The maps of an axis of a plan. Every tap of the offset axis must be a shift by few lines, and minimal
// filtering multiplies all three.
std::vector<AxisMap> plan_maps(const Problem& p, const Plan& plan, int axis) {
  std::vector<AxisMap> maps = axis_maps(p, plan.forward, axis);
  if (axis == plan.offset_axis && is_interleaved(p, axis)) maps = interleaved(maps[0], p.dilation[axis]);
  if (axis == plan.offset_axis && plan.filtering) return maps;
  for (AxisMap& m : maps) leave_out_padding(m);
  return maps;
}

Plan empty_plan(const Problem& p, bool fold, bool forward, int offset_axis, Filtering filtering) {
  Plan plan;
  plan.fold = fold, plan.forward = forward;
  plan.offset_axis = offset_axis;
  plan.reversed = !is_gather(p, forward);
  plan.filtering = can_filter(p, offset_axis) ? filtering : kPlain;
  for (int axis = 0; axis < kAxes; ++axis) plan.axes[axis] = plan_maps(p, plan, axis);
  return plan;
}

// Of a butterfly over the members of a tie: which member is source `s`, so that the last result is that of a
// parity. Sources with an odd number of bits count negative there.
int last_is(int axes, int parity, int s) {
  if (parity == 0) return s;  // all are added, in whatever order
  const int lowest = parity & -parity;
  int member = 0;
  for (int bit = 0; bit < axes; ++bit) {
    if (!(s >> bit & 1)) continue;
    // An axis that keeps the sign goes with one that changes it: both together change it once.
    member ^= 1 << bit;
    if (!(parity >> bit & 1)) member ^= lowest;
  }
  return member;
}

Triple extent(Triple taps, int offset_axis) {
  if (offset_axis >= 0) taps[offset_axis] = 1;
  return taps;
}

// As many slots as there are sources; slots are parities until they are counted.
Group paired_group(const Tie& paired, int64_t channels) {
  Group g;
  g.log_sources = paired.axes(), g.slots = paired.members(), g.channels = channels;
  return g;
}

// Of filters that are their own images: sums or differences of one parity.
void add_one_parity(const Problem& p, const Segment& of, const Blocks& part, bool forward, const Tie& paired,
                    const Taps& tap, Plan& plan) {
  if (of.odd.without(paired).axes() > 0) return;  // it is its own negative
  Group g = paired_group(paired, forward ? part.size : of.rows);
  g.slots = 1, g.slot[0] = 0;
  for (int s = 0; s < paired.members(); ++s) {
    const int order = last_is(paired.axes(), of.tie.part_of(of.parity(), paired), s);
    const Place image = of.image(part, p.kernel, 0, tap, of.tie.member_of(paired, order));
    g.tap[s] = image.tap, g.channel[s] = forward ? image.channel : of.first;
    g.weight[s] = {part.kept, tap};
  }
  plan.groups.push_back(g);
}

// The gradients of blocks that such filters' mirrors exchange: members of an orbit, each with its sign, so
// that a parity of the sums is another one of the results.
void add_members(const Problem& p, const Segment& of, const Blocks& part, const Taps& tap, Plan& plan) {
  const Tie paired = of.tie.paired(p.kernel, tap);
  Group g = paired_group(paired, of.rows);
  for (int s = 0; s < paired.members(); ++s) {
    const int member = of.tie.member_of(paired, s);
    g.tap[s] = of.tie.image(p.kernel, tap, member), g.channel[s] = of.first;
    g.weight[s] = {part.kept, g.tap[s]};
    g.slot[s] = member ^ of.parity();
  }
  plan.groups.push_back(g);
}

// Members by the mirrors that move a block, once for each parity of these; along the other axes summed.
void add_sums(const Problem& p, const Segment& of, const Blocks& part, const Taps& tap, Plan& plan) {
  const Tie summed = of.tie.without(part.tie);
  Group g = paired_group(of.tie, of.rows);
  g.slots = part.count();
  for (int s = 0; s < of.tie.members(); ++s) {
    const int moved = s & (part.count() - 1), other = s >> part.tie.axes();
    const int member = of.tie.member_of(part.tie, moved) | of.tie.member_of(summed, other);
    g.tap[s] = of.tie.image(p.kernel, tap, member), g.channel[s] = member_channel(of, member);
    if (s < g.slots) g.weight[s] = {part.at[moved], tap}, g.slot[s] = s;
  }
  plan.groups.push_back(g);
}

// The slots of all groups, one parity after the other.
void place_slots(int segment, Plan& plan) {
  int next[9] = {};  // first slot of each parity, then the next one
  for (const Group& g : plan.groups)
    for (int s = 0; s < g.slots; ++s) ++next[g.slot[s] + 1];
  for (int parity = 0; parity < plan.parities; ++parity) next[parity + 1] += next[parity];
  plan.slots.resize(next[plan.parities]);
  for (size_t i = 0; i < plan.groups.size(); ++i) {
    Group& g = plan.groups[i];
    for (int s = 0; s < g.slots; ++s) {
      const int parity = g.slot[s];
      g.slot[s] = next[parity]++;
      plan.slots[g.slot[s]] = {parity, segment, 0, g.channels, g.tap[0], false, static_cast<int>(i)};
    }
  }
}

// Of some orbits of a segment, from channel `to` of the stage on: by tap of the depth, then by what remains
// of a member without the depth. Returns the channel behind them.
int64_t add_depth_sums(const Problem& p, const Segment& segment, int64_t orbit, int64_t orbits, int64_t to,
                       std::vector<DepthSum>& sums) {
  const Tie loaded = segment.tie.without(kDepthAxis);
  const int mirror = 1 << segment.tie.index(kDepthAxis);
  const int64_t taps = p.kernel[kDepthAxis];
  for (int64_t tap = 0; tap < taps; ++tap)
    for (int s = 0; s < loaded.members(); ++s, to += orbits) {
      const int member = segment.tie.member_of(loaded, s);
      sums.push_back(
          {{tap, mirrored(taps, tap)},
           {member_channel(segment, member) + orbit, member_channel(segment, member | mirror) + orbit},
           orbits,
           to});
    }
  return to;
}

}  // namespace

std::pair<int64_t, int64_t> AxisMap::reach() const {
  int64_t low = INT64_MAX, high = INT64_MIN;
  for (size_t tap = 0; tap < b.size(); ++tap)
    if (present[tap]) low = std::min(low, b[tap]), high = std::max(high, b[tap]);
  return low > high ? std::pair<int64_t, int64_t>() : std::pair(low, high);
}

std::vector<AxisMap> axis_maps(const Problem& p, bool forward, int axis) {
  if (is_gather(p, forward)) return {gather_map(p, forward, axis)};
  std::vector<AxisMap> maps;
  for (int64_t r = 0; r < p.stride[axis]; ++r) maps.push_back(scatter_map(p, forward, axis, r));
  return maps;
}

int choose_offset_axis(const Problem& p, bool forward, const Segment* segments, size_t count, bool planes) {
  int best = -1;
  for (int axis = 0; axis < kAxes; ++axis) {
    const bool mirrored = std::any_of(segments, segments + count, [&](auto& s) { return s.tie.has(axis); });
    const int64_t stride = p.stride[axis];
    const bool unit = is_gather(p, forward) ? stride == 1 : stride == 1 || p.dilation[axis] <= stride;
    // Panel columns follow the width: a shift along it would need a halo in every row. Taps that are not
    // neighbours in a phase would need a halo of many lines.
    if (mirrored || !unit || p.kernel[axis] < 2 || (planes && axis == kAxes - 1)) continue;
    if (best < 0 || p.kernel[axis] > p.kernel[best]) best = axis;
  }
  return best;
}

int choose_sum_axis(const Problem& p, bool planes, Filtering& filtering) {
  const int axis = choose_offset_axis(p, false, p.segments.data(), p.segments.size(), planes);
  if (axis >= 0 || filtering != kF4 || p.segments.size() != 1) return axis;
  const Tie& tie = p.segments[0].tie;
  if (tie.axes() != 2 || !can_filter(p, tie.axis(1))) return axis;
  filtering = kF4Parities;
  return tie.axis(1);
}

Plan fold_plan(const Problem& p, int segment, int offset_axis, Filtering filtering) {
  const Segment& of = p.segments[segment];
  const Tie folded = of.own_image ? of.tie : of.moving(p.kernel);
  Plan plan = empty_plan(p, true, true, offset_axis, filtering);
  plan.parities = of.own_image ? 1 : folded.members();
  plan.moves_channels = of.moves_channels();
  plan.adds = of.own_image && of.odd.axes() == 0;
  for (const Blocks& part : of.inputs)
    for_taps(extent(folded.without(part.tie).representatives(p.kernel), offset_axis), [&](const Taps& tap) {
      const Tie paired = folded.paired(p.kernel, tap, part.tie);
      if (of.own_image) return add_one_parity(p, of, part, true, paired, tap, plan);
      Group g = paired_group(paired, part.size);
      for (int s = 0; s < paired.members(); ++s) {
        const int parity = folded.member_of(paired, s);
        const Place image = of.image(part, p.kernel, 0, tap, of.tie.member_of(folded, parity));
        g.tap[s] = image.tap, g.channel[s] = image.channel;
        g.weight[s] = image, g.slot[s] = parity;
      }
      plan.groups.push_back(g);
    });
  place_slots(segment, plan);
  return plan;
}

Plan gradient_plan(const Problem& p, int segment, int part, int offset_axis, Filtering filtering) {
  const Segment& of = p.segments[segment];
  const Blocks& blocks = of.inputs[part];
  Plan plan = empty_plan(p, true, false, offset_axis, filtering);
  plan.parities = blocks.count();
  plan.moves_channels = !of.own_image;
  plan.adds = blocks.tie.axes() == 0 && of.odd.axes() == 0;
  plan.sums_members = of.sums_members(blocks);
  const Triple taps = of.own_image ? of.tie.representatives(p.kernel) : p.kernel;
  for_taps(extent(taps, offset_axis), [&](const Taps& tap) {
    if (of.own_image && of.moves_channels()) return add_members(p, of, blocks, tap, plan);
    if (of.own_image) return add_one_parity(p, of, blocks, false, of.tie.paired(p.kernel, tap), tap, plan);
    add_sums(p, of, blocks, tap, plan);
  });
  place_slots(segment, plan);
  return plan;
}

Plan width_first(Plan plan) {
  std::stable_sort(plan.groups.begin(), plan.groups.end(),
                   [](const Group& a, const Group& b) { return a.tap[0][2] < b.tap[0][2]; });
  const std::vector<Slot> slots = plan.slots;
  const auto count = static_cast<int>(plan.groups.size());
  for (int i = 0; i < count; ++i)
    for (int s = 0; s < plan.groups[i].slots; ++s) {
      int& place = plan.groups[i].slot[s];
      Slot slot = slots[place];
      slot.group = i;
      place = slot.parity * count + i;
      plan.slots[place] = slot;
    }
  return plan;
}

Plan sum_plan(const Problem& p, int part, int parts, int offset_axis, Filtering filtering, bool sums_depth) {
  Plan plan = empty_plan(p, false, false, offset_axis, filtering);
  plan.adds = true;
  Triple limit = p.kernel;
  int64_t staged = 0;  // channels of the stage
  if (offset_axis >= 0) limit[offset_axis] = 1;
  for (size_t i = 0; i < p.segments.size(); ++i) {
    const Segment& segment = p.segments[i];
    const int64_t begin = segment.rows * part / parts, end = segment.rows * (part + 1) / parts;
    if (begin == end) continue;
    const Tie loaded = sums_depth ? segment.tie.without(kDepthAxis) : segment.tie;
    const int64_t first = staged, rows = end - begin;
    if (sums_depth) staged = add_depth_sums(p, segment, begin, rows, first, plan.sums);
    for_taps(limit, [&](const Taps& tap) {
      Group g;
      g.log_sources = loaded.axes();
      g.channels = rows;
      g.weight[0] = g.weight[1] = {0, tap};
      g.slot[0] = static_cast<int>(plan.slots.size());
      for (int s = 0; s < loaded.members(); ++s) {
        const int member = segment.tie.member_of(loaded, s);
        g.tap[s] = segment.tie.image(p.kernel, tap, member);
        if (offset_axis >= 0) g.tap[s][offset_axis] = 0;
        g.channel[s] = sums_depth ? first + (tap[kDepthAxis] * loaded.members() + s) * rows
                                  : member_channel(segment, member) + begin;
      }
      plan.groups.push_back(g);
      plan.slots.push_back({0, static_cast<int>(i), begin, end - begin, tap});
    });
  }
  if (plan.filters_parities())
    for (Group& g : plan.groups) {
      Slot odd = plan.slots[g.slot[0]];
      odd.odd = true;
      g.slots = 2;
      g.slot[1] = static_cast<int>(plan.slots.size());
      plan.slots.push_back(odd);
    }
  return plan;
}

}  // namespace symconv
