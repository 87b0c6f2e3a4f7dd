// Index maps of the fold and of the gather-sum.
#include "geometry.h"

#include <algorithm>

namespace symconv {

int tied_axes(int mask, int (&axes)[kAxes]) {
  int n = 0;
  for (int bit = 0; bit < kAxes; ++bit)
    if (mask >> bit & 1) axes[n++] = kAxes - 1 - bit;
  return n;
}

int64_t member_channel(const Segment& s, int member) {
  if (member == 0) return s.first;
  // The published order puts the double mirrors of an octuple as DH, DW, HW.
  static constexpr int kOctuple[8] = {0, 1, 2, 6, 3, 5, 4, 7};
  const int place = s.mask == 7 ? kOctuple[member] : member;
  return s.copies + (place - 1) * s.rows;
}

namespace {

// Does the destination step through the source (a convolution), or is it scattered to (its adjoint)?
bool is_gather(const Problem& p, bool fold) { return fold != p.transposed; }

int64_t destination_extent(const Problem& p, bool fold, int axis) { return fold ? p.out[axis] : p.in[axis]; }
int64_t source_extent(const Problem& p, bool fold, int axis) { return fold ? p.in[axis] : p.out[axis]; }

AxisMap gather_map(const Problem& p, bool fold, int axis) {
  AxisMap m;
  m.count = destination_extent(p, fold, axis);
  m.a = p.stride[axis];
  m.extent = source_extent(p, fold, axis);
  for (int64_t k = 0; k < p.kernel[axis]; ++k) {
    m.b.push_back(p.dilation[axis] * k - p.padding[axis]);
    m.present.push_back(1);
  }
  return m;
}

AxisMap scatter_map(const Problem& p, bool fold, int axis, int64_t residue) {
  AxisMap m;
  const int64_t s = p.stride[axis], size = destination_extent(p, fold, axis);
  m.count = size > residue ? (size - residue + s - 1) / s : 0;
  m.first = residue;
  m.step = s;
  m.extent = source_extent(p, fold, axis);
  for (int64_t k = 0; k < p.kernel[axis]; ++k) {
    const int64_t at = residue + p.padding[axis] - p.dilation[axis] * k;
    const int64_t phase = ((at % s) + s) % s;
    m.present.push_back(phase == 0);
    m.b.push_back((at - phase) / s);
  }
  return m;
}

Plan empty_plan(const Problem& p, bool fold, int offset_axis, Filtering filtering) {
  Plan plan;
  plan.fold = fold;
  plan.offset_axis = offset_axis;
  plan.reversed = !is_gather(p, fold);
  plan.filtering = can_filter(p, offset_axis) ? filtering : kPlain;
  for (int axis = 0; axis < kAxes; ++axis) plan.axes[axis] = axis_maps(p, fold, axis);
  return plan;
}

// Calls f(tap) for every tap with tap[axis] < limit[axis].
template <class F>
void for_taps(const Triple& limit, F f) {
  for (int d = 0; d < limit[0]; ++d)
    for (int h = 0; h < limit[1]; ++h)
      for (int w = 0; w < limit[2]; ++w) f(Taps{d, h, w});
}

// Parity, over the tied axes, of a subset of the paired ones.
int expand_subset(int subset, const int (&position)[kAxes], int paired) {
  int parity = 0;
  for (int i = 0; i < paired; ++i)
    if (subset >> i & 1) parity |= 1 << position[i];
  return parity;
}

}  // namespace

std::vector<AxisMap> axis_maps(const Problem& p, bool fold, int axis) {
  if (is_gather(p, fold)) return {gather_map(p, fold, axis)};
  std::vector<AxisMap> maps;
  for (int64_t r = 0; r < p.stride[axis]; ++r) maps.push_back(scatter_map(p, fold, axis, r));
  return maps;
}

int choose_offset_axis(const Problem& p, bool fold, const Segment* segments, size_t count, bool planes) {
  int tied = 0;
  for (size_t i = 0; i < count; ++i) tied |= segments[i].mask;
  int best = -1;
  for (int axis = 0; axis < kAxes; ++axis) {
    const bool mirrored = tied >> (kAxes - 1 - axis) & 1;
    const bool unit = !is_gather(p, fold) || p.stride[axis] == 1;
    // Panel columns follow the width: a shift along it would need a halo in every row.
    if (mirrored || !unit || p.kernel[axis] < 2 || (planes && axis == kAxes - 1)) continue;
    if (best < 0 || p.kernel[axis] > p.kernel[best]) best = axis;
  }
  return best;
}

int choose_sum_axis(const Problem& p, bool planes, Filtering& filtering) {
  const int axis = choose_offset_axis(p, false, p.segments.data(), p.segments.size(), planes);
  if (axis >= 0 || filtering != kF4 || p.segments.size() != 1) return axis;
  int tied[kAxes];
  if (tied_axes(p.segments[0].mask, tied) != 2 || !can_filter(p, tied[1])) return axis;
  filtering = kF4Parities;
  return tied[1];
}

int choose_mirror_axis(const Problem& p, const Segment& segment) {
  for (int axis = 0; axis < kAxes - 1; ++axis)
    if (segment.mask >> (kAxes - 1 - axis) & 1 && p.stride[axis] == 1 && p.kernel[axis] > 1) return axis;
  return -1;
}

bool can_filter(const Problem& p, int offset_axis) {
  return offset_axis >= 0 && p.kernel[offset_axis] == 3 && p.stride[offset_axis] == 1 &&
         p.dilation[offset_axis] == 1;
}

Plan fold_plan(const Problem& p, int segment, int64_t channels, int offset_axis, Filtering filtering) {
  const int offset = offset_axis < 0 ? 0 : 1 << (kAxes - 1 - offset_axis), mask = p.segments[segment].mask;
  Plan plan = empty_plan(p, true, offset_axis, mask & offset ? kPlain : filtering);
  plan.mirrored = mask & offset;
  int tied[kAxes];
  plan.mirror_bit = tied_axes(mask & (offset - 1), tied);
  const int ties = tied_axes(mask & ~offset, tied);
  plan.parities = 1 << ties;
  std::vector<Slot> by_parity[8];
  Triple limit = p.kernel;
  for (int i = 0; i < ties; ++i) limit[tied[i]] = (p.kernel[tied[i]] + 1) / 2;
  if (offset_axis >= 0) limit[offset_axis] = 1;
  for_taps(limit, [&](const Taps& tap) {
    Group g;
    int position[kAxes];
    for (int i = 0; i < ties; ++i)
      if (2 * tap[tied[i]] + 1 != p.kernel[tied[i]]) position[g.log_sources++] = i;
    g.channels = channels;
    for (int s = 0; s < 1 << g.log_sources; ++s) {
      g.tap[s] = tap;
      g.channel[s] = 0;
      for (int i = 0; i < g.log_sources; ++i) {
        const int axis = tied[position[i]];
        if (s >> i & 1) g.tap[s][axis] = static_cast<int>(p.kernel[axis]) - 1 - tap[axis];
      }
      const int parity = expand_subset(s, position, g.log_sources);
      g.slot[s] = static_cast<int>(by_parity[parity].size());  // made global below
      by_parity[parity].push_back({parity, segment, 0, channels, tap});
    }
    plan.groups.push_back(g);
  });
  int base[8] = {}, total = 0;
  for (int parity = 0; parity < plan.parities; ++parity) {
    base[parity] = total;
    total += static_cast<int>(by_parity[parity].size());
    plan.slots.insert(plan.slots.end(), by_parity[parity].begin(), by_parity[parity].end());
  }
  for (Group& g : plan.groups) {
    int position[kAxes], paired = 0;
    for (int i = 0; i < ties; ++i)
      if (2 * g.tap[0][tied[i]] + 1 != p.kernel[tied[i]]) position[paired++] = i;
    for (int s = 0; s < 1 << paired; ++s) g.slot[s] += base[expand_subset(s, position, paired)];
  }
  return plan;
}

int full_parity(const Plan& plan, int parity, bool odd) {
  const int below = parity & ((1 << plan.mirror_bit) - 1);
  return below | odd << plan.mirror_bit | (parity ^ below) << 1;
}

Plan sum_plan(const Problem& p, int part, int parts, int offset_axis, Filtering filtering) {
  Plan plan = empty_plan(p, false, offset_axis, filtering);
  Triple limit = p.kernel;
  if (offset_axis >= 0) limit[offset_axis] = 1;
  for (size_t i = 0; i < p.segments.size(); ++i) {
    const Segment& segment = p.segments[i];
    const int64_t begin = segment.rows * part / parts, end = segment.rows * (part + 1) / parts;
    if (begin == end) continue;
    int tied[kAxes];
    const int ties = tied_axes(segment.mask, tied);
    for_taps(limit, [&](const Taps& tap) {
      Group g;
      g.log_sources = ties;
      g.channels = end - begin;
      g.slot[0] = static_cast<int>(plan.slots.size());
      for (int s = 0; s < 1 << ties; ++s) {
        g.tap[s] = tap;
        for (int t = 0; t < ties; ++t)
          if (s >> t & 1 && tied[t] != offset_axis)
            g.tap[s][tied[t]] = static_cast<int>(p.kernel[tied[t]]) - 1 - tap[tied[t]];
        g.channel[s] = member_channel(segment, s) + begin;
      }
      plan.groups.push_back(g);
      plan.slots.push_back({0, static_cast<int>(i), begin, end - begin, tap});
    });
  }
  if (plan.filters_parities())
    for (Group& g : plan.groups) {
      Slot odd = plan.slots[g.slot[0]];
      odd.odd = true;
      g.slot[1] = static_cast<int>(plan.slots.size());
      plan.slots.push_back(odd);
    }
  return plan;
}

}  // namespace symconv
