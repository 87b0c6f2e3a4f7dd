// What the matrix kernel multiplies for one parity of one tile, in runs as long as panel and weights allow.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "packed/panel.h"
#include "packed/weights.h"

namespace symconv {

// Contraction rows that lie together in the panel and in the weights, in words.
struct Run {
  int64_t panel_row, weight_row, rows;
  int64_t shift;                   // pixels of the panel
  int64_t valid_begin, valid_end;  // pixels of the tile for which the shifted line is in the map
};

// By product of minimal filtering (else one), then by parity.
using Runs = std::vector<std::vector<Run>>;

// Those of a parity and of a product of minimal filtering (else 0), in place of what `runs` held.
void make_runs(const Plan& plan, const WeightLayout& weights, const Phase& phase, const Tile& tile,
               const PanelLayout& layout, size_t chunk, int parity, int product, std::vector<Run>& runs);

}  // namespace symconv
