// Runs of the contraction.
#include "packed/runs.h"

#include <algorithm>

namespace symconv {

namespace {

// Slots of one parity for one tap (or product), those that lie together joined.
void append_runs(const Plan& plan, const WeightLayout& weights, const PanelLayout& layout, size_t chunk,
                 int parity, int64_t tap, const Run& like, std::vector<Run>& runs) {
  const WeightRows& rows = weights.rows[chunk];
  bool fresh = true;
  for (size_t i = 0; i < plan.slots.size(); ++i) {
    if (plan.slots[i].parity != parity || layout.offset[i] < 0) continue;
    if (plan.slots[i].odd && !has_odd_product(static_cast<int>(tap))) continue;
    const int64_t width =
        (weights.chunks[chunk].width(plan, plan.slots[i]) + weights.depth - 1) / weights.depth;
    const int64_t row = rows.row[i] + tap * rows.shift_stride[parity];
    if (!fresh) {
      Run& r = runs.back();
      if (r.panel_row + r.rows == layout.offset[i] && r.weight_row + r.rows == row) {
        r.rows += width;
        continue;
      }
    }
    Run run = like;
    run.panel_row = layout.offset[i], run.weight_row = row, run.rows = width;
    runs.push_back(run);
    fresh = false;
  }
}

}  // namespace

void make_runs(const Plan& plan, const WeightLayout& weights, const Phase& phase, const Tile& tile,
               const PanelLayout& layout, size_t chunk, int parity, int product, std::vector<Run>& runs) {
  runs.clear();
  if (plan.filtering || plan.offset_axis < 0) {
    append_runs(plan, weights, layout, chunk, parity, product, {0, 0, 0, 0, 0, tile.pixels()}, runs);
    return;
  }
  const AxisMap& map = *phase.axis[plan.offset_axis];
  for (int64_t tap = 0; tap < weights.shifts; ++tap) {
    if (!map.present[tap]) continue;
    const int64_t low = -map.b[tap] - tile.begin[0], high = map.extent - map.b[tap] - tile.begin[0];
    const Run like{0,
                   0,
                   0,
                   (map.b[tap] - phase.tiling.b_min) * tile.line(),
                   std::clamp<int64_t>(low, 0, tile.size[0]) * tile.line(),
                   std::clamp<int64_t>(high, 0, tile.size[0]) * tile.line()};
    append_runs(plan, weights, layout, chunk, parity, tap, like, runs);
  }
}

}  // namespace symconv
