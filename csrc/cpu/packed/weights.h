// The reduced weights as the right-hand side of a multiplication: folded by parity, or as they are.
#pragma once

#include <cstdint>
#include <vector>

#include "microkernels/kernels.h"
#include "packed/panel.h"
#include "packed/plan.h"

namespace symconv {

// Strided view of the reduced weight of one group of the layer, in elements.
template <class T>
struct WeightView {
  T* data;
  int64_t orbit_stride, channel_stride;
  Triple tap_stride;
};

// Weights whose 9 taps lie inside of the channels are gathered one by one where runs of channels or orbits
// are packed, unless the taps of some orbits are brought apart first: [orbit][tap][channel], by vectors.
constexpr int64_t kDealtTaps = 9, kDealtChannels = 64;
// Of 16 orbits with so many channels, or of so many orbits with 16 channels.
constexpr int64_t kDealtElements = kDealtTaps * kDealtChannels * 16;

template <class T>
bool deals_taps(const Problem& p, const WeightView<const Element<T>>& w) {
  if (w.channel_stride != kDealtTaps) return false;
  int64_t stride = 1;
  bool inside = true;
  for (int axis = kAxes - 1; axis >= 0; stride *= p.kernel[axis--])
    inside = inside && (p.kernel[axis] == 1 || w.tap_stride[axis] == stride);
  return inside && stride == kDealtTaps;
}

// A view of copies in `room`.
template <class T>
WeightView<const Element<T>> deal_taps(const Kernels<T>& kernels, const Problem& p,
                                       const WeightView<const Element<T>>& w, int64_t orbits,
                                       int64_t channels, Element<T>* room) {
  const int64_t run = channels > 16 ? kDealtChannels : 16;
  for (int64_t u = 0; u < orbits; ++u)
    kernels.stage_line(w.data + u * w.orbit_stride, 1, kDealtTaps, kDealtTaps, channels,
                       room + u * kDealtTaps * run, run);
  return {room, kDealtTaps * run, 1, {p.kernel[1] * p.kernel[2] * run, p.kernel[2] * run, run}};
}

// Row of every slot in the packed weights of its parity, for one chunk of channels.
struct WeightRows {
  std::vector<int64_t> row;  // by slot, at tap (product) 0 of the offset axis; in words
  int64_t shift_stride[8];   // rows from one tap (product) to the next, by parity
};

// Columns are orbits (fold) or input channels (sum). Pixels: blocks of at most kMaxVectors vectors,
// [block][row][lanes]. Planes: [column][row], leading dimension `ld`. Rows are words of `depth` contraction
// rows.
struct WeightLayout {
  int64_t columns;
  int depth;
  int64_t shifts;  // taps of the offset axis, or products of minimal filtering
  std::vector<Chunk> chunks;
  std::vector<WeightRows> rows;  // by chunk
  int64_t total_rows[8];         // by parity
  int64_t ld[8];                 // planes
  int64_t offset[8];             // first element, by parity
  int64_t elements;
};

struct ColumnBlock {
  int64_t vector;  // first
  int vectors;
};
// The block that holds one of `total` vectors.
ColumnBlock block_of(int64_t vector, int64_t total);
std::vector<ColumnBlock> column_blocks(int64_t columns, int lanes);

WeightLayout weight_layout(const Problem& p, const Plan& plan, int64_t columns,
                           const std::vector<Chunk>& chunks, int lanes, bool planes, int depth);

// Packs one piece of the columns (pixels: one vector of them); pieces can run in parallel.
template <class T>
void pack_weights(const Kernels<T>& kernels, const Problem& p, const Plan& plan, const WeightLayout& layout,
                  const WeightView<const Element<T>>& weight, bool planes, int64_t piece, Word<T>* out);
int64_t weight_pieces(const WeightLayout& layout, int lanes);

}  // namespace symconv
