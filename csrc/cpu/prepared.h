// What a multiplication can work out before there are tensors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "multiply.h"
#include "scratch.h"
#include "stage.h"

namespace symconv {

constexpr int64_t kMaxPanelBytes = 1 << 20;  // of the smallest tile; above it the channels are cut

template <class T>
struct Prepared : MultiplyShape {
  Prepared(MultiplyShape shape, int64_t threads)
      : MultiplyShape(std::move(shape)),
        kernels(select_kernels<T>()),
        threads(threads),
        lanes(kernels.lanes),
        chunks(cut_channels()),
        phases(make_phases(plan, problem, panel_rows() * kWordBytes, staged ? kLongTile : kTile, threads,
                           planes)),
        weights(weight_layout(problem, plan, columns, chunks, lanes, pixel_lanes, kDepth)),
        blocks(column_blocks(columns, lanes)) {
    for (const Phase& phase : phases) {
      std::vector<PanelLayout> own;
      for (const Chunk& chunk : chunks) own.push_back(panel_layout(plan, phase, chunk, kDepth));
      layouts.push_back(own);
      if (staged) stages.emplace_back(plan, phase, plan.fold ? chunks[0].end : source_channels, lanes);
    }
    for (int64_t c = 0; c < columns; ++c) channel_offset.push_back(c * out_channel_stride);
  }

  static constexpr int kDepth = Format<T>::depth;
  static constexpr int64_t kWordBytes = sizeof(Word<T>);
  // Smallest tile must fit; only fold plans can be cut, since their slots all have the same channels.
  std::vector<Chunk> cut_channels() const {
    const int64_t channels = contraction;
    const int64_t slots = static_cast<int64_t>(plan.slots.size());
    const int64_t bytes = (staged ? 112 : 28) * slots * words<T>(channels) * kWordBytes;
    int64_t n = plan.fold ? std::max<int64_t>(1, (bytes + kMaxPanelBytes - 1) / kMaxPanelBytes) : 1;
    const int64_t width = words<T>((channels + n - 1) / n) * kDepth;
    std::vector<Chunk> chunks;
    for (int64_t c = 0; c < channels; c += width) chunks.push_back({c, std::min(channels, c + width)});
    return chunks;
  }

  // In words, as everything here that is not said to be elements.
  int64_t panel_rows() const {
    int64_t rows = 0;
    for (const Slot& slot : plan.slots) rows += words<T>(chunks[0].width(plan, slot));
    return rows;
  }

  const Kernels<T>& kernels;
  int64_t threads;
  int lanes;
  std::vector<Chunk> chunks;
  std::vector<Phase> phases;
  WeightLayout weights;
  std::vector<ColumnBlock> blocks;
  std::vector<std::vector<PanelLayout>> layouts;
  std::vector<Stage> stages;  // by phase, where there are any
  std::vector<int64_t> channel_offset;
};

}  // namespace symconv
