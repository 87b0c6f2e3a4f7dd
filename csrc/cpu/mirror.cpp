// Terms of the mirrored axis.
#include "mirror.h"

namespace symconv {

namespace {

// Row of the slot of the full fold that has this parity and these taps.
int64_t weight_row(const Plan& weight_plan, const WeightRows& rows, const Taps& tap, int parity) {
  size_t i = 0;
  while (weight_plan.slots[i].parity != parity || weight_plan.slots[i].tap != tap) ++i;
  return rows.row[i];
}

}  // namespace

std::vector<MirrorTerm> make_mirror_terms(const Plan& plan, const Plan& weight_plan,
                                          const PanelLayout& layout, const WeightRows& rows,
                                          const Chunk& chunk, int parity) {
  std::vector<MirrorTerm> terms;
  const int axis = plan.offset_axis, taps = static_cast<int>(plan.axes[axis][0].b.size());
  for (size_t i = 0; i < plan.slots.size(); ++i) {
    const Slot& slot = plan.slots[i];
    if (slot.parity != parity || layout.offset[i] < 0) continue;
    for (int k = 0; 2 * k < taps; ++k) {
      const bool pair = 2 * k + 1 != taps;
      Taps tap = slot.tap;
      tap[axis] = k;
      const int even = full_parity(plan, parity, false), odd = full_parity(plan, parity, true);
      terms.push_back({layout.offset[i], chunk.width(plan, slot), weight_row(weight_plan, rows, tap, even),
                       pair ? weight_row(weight_plan, rows, tap, odd) : 0, k, pair ? taps - 1 - k : -1});
    }
  }
  return terms;
}

void MirrorSegments::set(const std::vector<MirrorTerm>& terms, const Plan& plan, const Phase& phase,
                         const Tile& tile, int64_t ld) {
  const AxisMap& map = *phase.axis[plan.offset_axis];
  const auto shift = [&](int tap) { return (map.b[tap] - phase.tiling.b_min) * tile.line(); };
  even_.clear(), odd_.clear(), b_.clear(), mirror_.clear(), k_.clear();
  for (const MirrorTerm& t : terms) {
    even_.push_back(t.even_row), odd_.push_back(t.odd_row), k_.push_back(t.channels);
    b_.push_back(t.panel_row * ld + shift(t.tap));
    mirror_.push_back(t.mirror < 0 ? kNoMirror : t.panel_row * ld + shift(t.mirror));
  }
}

}  // namespace symconv
