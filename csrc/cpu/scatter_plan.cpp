// Which axis plays which part in a scatter, and its taps by residue.
#include "scatter_plan.h"

#include <algorithm>
#include <utility>

namespace symconv {

namespace {

constexpr int64_t kMostProducts = 49;  // taps kept apart; more of them than channels would never pay

int64_t residue_of(int64_t at, int64_t stride) { return (at % stride + stride) % stride; }

ScatterAxis scatter_axis(const Problem& p, int axis) {
  ScatterAxis a;
  const int64_t stride = p.stride[axis], taps = p.kernel[axis];
  for (int64_t r = 0; r < stride; ++r) {
    ScatterAxis::Class c{r, p.in[axis] > r ? (p.in[axis] - r + stride - 1) / stride : 0, {}, 0, 0};
    for (int64_t k = 0; k < taps; ++k)
      if (residue_of(p.dilation[axis] * k - p.padding[axis], stride) == r)
        c.taps.push_back(static_cast<int>(k));
    if (!c.taps.empty()) a.classes.push_back(c);
  }
  a.class_of.resize(taps), a.index.resize(taps), a.shift.resize(taps);
  for (size_t i = 0; i < a.classes.size(); ++i) {
    ScatterAxis::Class& c = a.classes[i];
    for (size_t j = 0; j < c.taps.size(); ++j) {
      const int k = c.taps[j];
      a.class_of[k] = static_cast<int>(i), a.index[k] = static_cast<int>(j);
      a.shift[k] = (p.dilation[axis] * k - p.padding[axis] - c.residue) / stride;
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
  for (size_t k = 0; k < a.class_of.size(); ++k)
    if (a.class_of[k] != a.class_of[a.class_of.size() - 1 - k]) return false;
  return a.class_of.size() > 1 && a.class_of.size() <= kMaxScatterTaps;
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
  int tied[kAxes];
  const int ties = tied_axes(segment.mask, tied);
  if (p.transposed || ties == 0) return std::nullopt;
  ScatterPlan plan{};
  const int free = free_axis(p, tied[0], filtering);
  plan.filtering = ties == 1 && can_filter(p, free) ? filtering : kPlain;
  if (ties == 2 && filtering == kF4 && can_filter(p, tied[1])) plan.filtering = kF4Parities;
  // Lines of neighbouring positions, contracted along, rather than lines across them.
  plan.summed = !(pixels && ties == 1 && tied[0] != kAxes - 1 && !plan.filtering);
  plan.ring = (ties > 1 && !plan.filters_parities()) || !plan.summed;
  plan.folded = ties > 2;
  plan.inner = plan.summed ? tied[0] : kAxes - 1;
  plan.outer = !plan.summed ? tied[0] : ties > 1 ? tied[1] : free;
  plan.deep = kAxes - plan.inner - plan.outer;
  if (plan.taps(p) > kMostProducts) return std::nullopt;
  plan.line = plan.summed ? scatter_axis(p, plan.inner) : contracted_axis(p, plan.inner);
  if (plan.ring) plan.lines = scatter_axis(p, plan.outer);
  if ((plan.summed && !shares_products(plan.line)) || (plan.ring && !shares_products(plan.lines)))
    return std::nullopt;
  return plan;
}

}  // namespace symconv
