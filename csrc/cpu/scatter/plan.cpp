// Which axis plays which part in a scatter, and its taps by residue.
#include "scatter/plan.h"

#include <algorithm>
#include <utility>

#include "blocking.h"

namespace symconv {

namespace {

constexpr int64_t kMostProducts = 49;  // taps kept apart; more of them than channels would never pay

ScatterAxis scatter_axis(const Problem& p, int axis) {
  ScatterAxis a;
  const int64_t stride = p.stride[axis], taps = p.kernel[axis];
  const auto reads = [&](int64_t tap) { return p.dilation[axis] * tap - p.padding[axis]; };
  for (int64_t r = 0; r < stride; ++r) {
    ScatterAxis::Class c{r, p.in[axis] > r ? (p.in[axis] - r + stride - 1) / stride : 0, {}, 0, 0};
    for (int64_t k = 0; k < taps; ++k)
      if (const int64_t at = reads(k); at - floor_div(at, stride) * stride == r)
        c.taps.push_back(static_cast<int>(k));
    if (!c.taps.empty()) a.classes.push_back(c);
  }
  a.class_of.resize(taps), a.index.resize(taps), a.shift.resize(taps);
  for (size_t i = 0; i < a.classes.size(); ++i) {
    ScatterAxis::Class& c = a.classes[i];
    for (size_t j = 0; j < c.taps.size(); ++j) {
      const int k = c.taps[j];
      a.class_of[k] = static_cast<int>(i), a.index[k] = static_cast<int>(j);
      a.shift[k] = (reads(k) - c.residue) / stride;
      c.low = j ? std::min(c.low, a.shift[k]) : a.shift[k];
      c.high = j ? std::max(c.high, a.shift[k]) : a.shift[k];
    }
  }
  return a;
}

// A contracted axis: every result is a position, and has one product.
ScatterAxis contracted_axis(const Problem& p, int axis) {
  return {{{0, p.out[axis], {0}, 0, 0}}, {0}, {0}, {0}};
}

// Do tap and mirrored tap always read positions of the same residue?
bool shares_products(const ScatterAxis& a) {
  const auto taps = static_cast<int64_t>(a.class_of.size());
  for (int64_t k = 0; k < taps; ++k)
    if (a.class_of[k] != a.class_of[mirrored(taps, k)]) return false;
  return taps > 1 && taps <= kMaxScatterTaps;
}

// Do the tiles of a line read more of it than they have results?
bool overlaps(const Problem& p, int axis) {
  const int64_t reach = p.dilation[axis] * (p.kernel[axis] - 1) / p.stride[axis];
  return p.out[axis] > kLongLine && reach > kTilePositions;
}

// The axis beside the inner one: that which can be filtered, else the nearest.
int free_axis(const Problem& p, int inner, Filtering filtering) {
  if (filtering)
    for (int axis = kAxes - 1; axis >= 0; --axis)
      if (axis != inner && can_filter(p, axis)) return axis;
  return inner == kAxes - 1 ? kAxes - 2 : inner == 0 ? 1 : kAxes - 1;
}

}  // namespace

std::optional<ScatterPlan> scatter_plan(const Problem& p, const Segment& segment, Filtering filtering,
                                        bool pixels) {
  const Tie& tie = segment.tie;
  const int ties = tie.axes();
  if (p.transposed || ties == 0) return std::nullopt;
  ScatterPlan plan{};
  const int free = free_axis(p, tie.axis(0), filtering);
  plan.filtering = ties == 1 && can_filter(p, free) ? filtering : kPlain;
  if (ties == 2 && filtering == kF4 && can_filter(p, tie.axis(1))) plan.filtering = kF4Parities;
  // Lines of neighbouring positions, contracted along, rather than lines across them.
  plan.summed = !(pixels && ties == 1 && !tie.has(kAxes - 1) && !plan.filtering);
  plan.ring = (ties > 1 && !plan.filters_parities()) || !plan.summed;
  plan.folded = ties > 2;
  plan.inner = plan.summed ? tie.axis(0) : kAxes - 1;
  plan.outer = !plan.summed ? tie.axis(0) : ties > 1 ? tie.axis(1) : free;
  plan.deep = kAxes - plan.inner - plan.outer;
  if (plan.taps(p) > kMostProducts || (plan.summed && overlaps(p, plan.inner))) return std::nullopt;
  plan.line = plan.summed ? scatter_axis(p, plan.inner) : contracted_axis(p, plan.inner);
  if (plan.ring) plan.lines = scatter_axis(p, plan.outer);
  if ((plan.summed && !shares_products(plan.line)) || (plan.ring && !shares_products(plan.lines)))
    return std::nullopt;
  return plan;
}

}  // namespace symconv
