// What a multiplication can work out before there are tensors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "packed/lines.h"
#include "packed/multiply.h"
#include "packed/runs.h"
#include "packed/stage.h"
#include "workspace.h"

namespace symconv {

constexpr int64_t kResultBytes = 8 << 10;    // of the blocks of results that are stored together
constexpr int64_t kMaxPanelBytes = 1 << 20;  // of the smallest tile; above it the channels are cut

template <class T>
struct Prepared : MultiplyShape {
  Prepared(MultiplyShape shape, int64_t threads)
      : MultiplyShape(std::move(shape)),
        kernels(select_kernels<T>()),
        threads(threads),
        lanes(kernels.lanes),
        chunks(cut_channels()),
        panel_rows(count_rows()),
        phases(make_phases(plan, problem, pixel_bytes(), limits(), threads, planes)),
        weights(weight_layout(problem, plan, columns, chunks, lanes, pixel_lanes, kDepth)),
        blocks(column_blocks(columns, lanes)) {
    for (const Phase& phase : phases) {
      std::vector<PanelLayout> own;
      for (const Chunk& chunk : chunks) own.push_back(panel_layout(plan, phase, chunk, kDepth));
      layouts.push_back(own);
    }
    if (staged) place_stages();
    if (by_lines) fold_lines();
    for (int64_t c = 0; c < columns; ++c) channel_offset.push_back(c * out_channel_stride);
  }
  // The phases point into the plan, which a copy would have of its own.
  Prepared(const Prepared&) = delete;
  Prepared& operator=(const Prepared&) = delete;

  static constexpr int kDepth = Format<T>::depth;
  static constexpr int64_t kWordBytes = sizeof(Word<T>);
  // Smallest tile must fit; lines always do. Only fold plans can be cut, since their slots all have the same
  // channels.
  std::vector<Chunk> cut_channels() const {
    const int64_t channels = contraction;
    const int64_t slots = static_cast<int64_t>(plan.slots.size());
    const int64_t bytes = (staged ? 112 : 28) * slots * words<T>(channels) * kWordBytes;
    const int64_t n =
        plan.fold && !by_lines ? std::max<int64_t>(1, (bytes + kMaxPanelBytes - 1) / kMaxPanelBytes) : 1;
    const int64_t width = words<T>((channels + n - 1) / n) * kDepth;
    std::vector<Chunk> chunks;
    for (int64_t c = 0; c < channels; c += width) chunks.push_back({c, std::min(channels, c + width)});
    return chunks;
  }

  void fold_lines() {
    if constexpr (!kNarrow<T>)
      for (size_t i = 0; i < phases.size(); ++i)
        line_folds.emplace_back(kernels, plan, phases[i], stage(i), weights);
  }

  // What of a pixel is to stay within the limits of a tile.
  int64_t pixel_bytes() const {
    return by_lines ? source_channels * static_cast<int64_t>(sizeof(Element<T>)) : panel_rows * kWordBytes;
  }
  TileLimits limits() const {
    if (by_lines) return problem.in[kDepthAxis] > 1 ? kVolumeOfLines : kPlaneOfLines;
    return staged ? kLongTile : kTile;
  }

  // Those that the groups of a chunk read: of a fold its own, unless sources differ in their channels, or
  // these come in another order.
  int64_t staged_channels(const Chunk& chunk) const {
    const bool own = plan.fold && !plan.moves_channels && !orders_source;
    return own ? chunk.end - chunk.begin : source_channels;
  }

  void place_stages() {
    const int64_t channels = staged_channels(chunks[0]);
    share_tiles(plan, phases, channels * static_cast<int64_t>(sizeof(Element<T>)));
    std::vector<const Phase*> all;
    for (const Phase& phase : phases) all.push_back(&phase);
    stages = make_stages(plan, all, channels, lanes, order_of(orders_source));
    for (const Stage& stage : stages) stage_elements = std::max(stage_elements, stage.elements());
  }

  // Do all phases read one stage, tile by tile?
  bool shares_stage() const { return staged && !phases.empty() && phases[0].tiling.strip > 0; }
  const Stage& stage(size_t phase) const { return stages[shares_stage() ? 0 : phase]; }

  const std::vector<int64_t>* order_of(bool ordered) const { return ordered ? &problem.order : nullptr; }

  // Inside its group.
  int64_t result_channel(size_t member, int64_t column) const {
    const int64_t place = member_channel[member] + column;
    return orders_result ? problem.order[place] : place;
  }

  // Does a column of results come behind the one before it, in all members?
  bool follows(int64_t column) const {
    bool follows = true;
    for (size_t m = 0; orders_result && m < member_channel.size(); ++m)
      follows = follows && result_channel(m, column) == result_channel(m, column - 1) + 1;
    return follows;
  }

  // In words, as everything here that is not said to be elements.
  int64_t count_rows() const {
    int64_t rows = 0;
    for (const Slot& slot : plan.slots) rows += words<T>(chunks[0].width(plan, slot));
    return rows;
  }

  // Pixels of the panel for one product, halo included.
  int64_t panel_pixels(const Phase& phase) const {
    const Triple& b = phase.tiling.block;
    const int64_t pixels = (b[0] + phase.tiling.span) * b[1] * b[2] + (staged ? lanes - 1 : 0);
    return planes ? (pixels + lanes - 1) / lanes * lanes : pixels;
  }

  int64_t panel_ld(const Phase& phase) const {
    if (planes) return odd_lines<Word<T>>(phase.tiling.products * panel_pixels(phase));
    return apart<Word<T>>(panel_rows);
  }

  // Leading dimension of the panel as it is packed, in elements.
  int64_t stored_ld(const Phase& phase) const { return planes ? panel_ld(phase) : panel_ld(phase) * kDepth; }

  int64_t product_stride(const Phase& phase) const {
    return panel_pixels(phase) * (planes ? 1 : panel_ld(phase));
  }

  int64_t panel_elements(size_t index) const {
    if constexpr (!kNarrow<T>)
      if (by_lines) return line_folds[index].elements();
    const Phase& phase = phases[index];
    const int64_t pixels = phase.tiling.products * panel_pixels(phase);
    return (planes ? panel_rows : pixels) * panel_ld(phase) + kMaxVectors * lanes;
  }

  // With one chunk of channels results are stored as soon as some blocks are complete, so that no others are
  // ever kept; with several, those of the whole tile are.
  bool keeps_tile() const { return chunks.size() > 1; }

  int64_t most_rows() const {
    return std::max({kernels.max_rows[1], kernels.max_rows[2], kernels.max_rows[3]});
  }

  // Blocks that are stored together: where contractions are short, a call for each would take as long.
  int64_t together(const Phase& phase) const {
    const int64_t block = most_rows() * kMaxVectors * lanes * static_cast<int64_t>(sizeof(Sum<T>));
    return std::max<int64_t>(1, kResultBytes / (block * plan.parities * phase.tiling.products));
  }

  struct Results {
    int64_t ld, stride;  // of a row, and of one product of one parity
  };
  Results results(const Phase& phase) const {
    if (by_lines) {
      const int64_t ld = LineFold<T>::kVectors * lanes;
      return {ld, columns * ld};
    }
    if (!keeps_tile()) {
      return {kMaxVectors * lanes, together(phase) * most_rows() * kMaxVectors * lanes};
    }
    const Triple& b = phase.tiling.block;
    const int64_t pixels = b[0] * b[1] * b[2], across = pixel_lanes ? pixels : columns;
    const int64_t ld = (across + kMaxVectors * lanes - 1) / lanes * lanes;
    return {ld, ld * (pixel_lanes ? columns : pixels)};
  }

  const Kernels<T>& kernels;
  int64_t threads;
  int lanes;
  std::vector<Chunk> chunks;
  int64_t panel_rows;  // in words
  std::vector<Phase> phases;
  WeightLayout weights;
  std::vector<ColumnBlock> blocks;
  std::vector<std::vector<PanelLayout>> layouts;
  std::vector<Stage> stages;  // by phase, where there are any; one that they share
  int64_t stage_elements = 0;
  std::vector<LineFold<T>> line_folds;  // by phase, where there are any
  std::vector<int64_t> channel_offset;
};

}  // namespace symconv
