// What a multiplication can work out before there are tensors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "mirror.h"
#include "multiply.h"
#include "scratch.h"
#include "stage.h"

namespace symconv {

constexpr int64_t kMaxPanelBytes = 1 << 20;  // of the smallest tile; above it the channels are cut
// Where the matrix kernel folds an axis the panel has a halo, so that tiles should be large: the channels are
// cut until a position takes no more than this.
constexpr int64_t kMirrorSlotBytes = 1024;

template <class T>
struct Prepared : MultiplyShape {
  Prepared(MultiplyShape shape, int64_t threads)
      : MultiplyShape(std::move(shape)),
        kernels(select_kernels<T>()),
        threads(threads),
        lanes(kernels.lanes),
        chunks(cut_channels()),
        phases(make_phases(plan, problem, panel_rows() * kWordBytes, tile_limits(), threads, planes)),
        weights(weight_layout(problem, weight_plan, columns, chunks, lanes, weight_planes(), kDepth)),
        blocks(column_blocks(columns, lanes)) {
    for (const Phase& phase : phases) {
      std::vector<PanelLayout> own;
      for (const Chunk& chunk : chunks) own.push_back(panel_layout(plan, phase, chunk, kDepth));
      layouts.push_back(own);
      if (staged) stages.emplace_back(plan, phase, plan.fold ? chunks[0].end : source_channels, lanes);
      if (plan.mirrored)
        for (size_t c = 0; c < chunks.size(); ++c)
          for (int parity = 0; parity < plan.parities; ++parity)
            mirror_terms.push_back(
                make_mirror_terms(plan, weight_plan, own[c], weights.rows[c], chunks[c], parity));
    }
    for (int64_t c = 0; c < columns; ++c) channel_offset.push_back(c * out_channel_stride);
  }
  // The phases point into the plan, which a copy would have of its own.
  Prepared(const Prepared&) = delete;
  Prepared& operator=(const Prepared&) = delete;

  static constexpr int kDepth = Format<T>::depth;
  static constexpr int64_t kWordBytes = sizeof(Word<T>);
  // Smallest tile must fit; only fold plans can be cut, since their slots all have the same channels.
  std::vector<Chunk> cut_channels() const {
    const int64_t channels = contraction;
    const int64_t slots = static_cast<int64_t>(plan.slots.size());
    const int64_t bytes = (staged ? 112 : 28) * slots * words<T>(channels) * kWordBytes;
    int64_t n = plan.fold ? std::max<int64_t>(1, (bytes + kMaxPanelBytes - 1) / kMaxPanelBytes) : 1;
    if (plan.mirrored)
      n = std::max(n, (slots * channels * kWordBytes + kMirrorSlotBytes - 1) / kMirrorSlotBytes);
    const int64_t width = words<T>((channels + n - 1) / n) * kDepth;
    std::vector<Chunk> chunks;
    for (int64_t c = 0; c < channels; c += width) chunks.push_back({c, std::min(channels, c + width)});
    return chunks;
  }

  // The mirror kernel reads the weights of neighbouring orbits side by side.
  bool weight_planes() const { return pixel_lanes && !plan.mirrored; }

  TileLimits tile_limits() const { return plan.mirrored ? kMirrorTile : staged ? kLongTile : kTile; }

  // In words, as everything here that is not said to be elements.
  int64_t panel_rows() const {
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
    const int64_t rows = panel_rows();  // a power of two apart they would collide in the first-level cache
    return rows % 256 < 16 ? rows + 16 : rows;
  }

  // Leading dimension of the panel as it is packed, in elements.
  int64_t stored_ld(const Phase& phase) const { return planes ? panel_ld(phase) : panel_ld(phase) * kDepth; }

  int64_t product_stride(const Phase& phase) const {
    return panel_pixels(phase) * (planes ? 1 : panel_ld(phase));
  }

  int64_t panel_elements(const Phase& phase) const {
    const int64_t pixels = phase.tiling.products * panel_pixels(phase);
    return (planes ? panel_rows() : pixels) * panel_ld(phase) + kMaxVectors * lanes;
  }

  // With one chunk of channels a block of results is stored as soon as it is complete, so that only one block
  // is ever kept; with several, those of the whole tile are. Results of the mirror kernel are stored in long
  // runs.
  bool keeps_tile() const { return chunks.size() > 1 || plan.mirrored; }

  struct Results {
    int64_t ld, stride;  // of a row, and of one product of one parity
  };
  Results results(const Phase& phase) const {
    if (!keeps_tile()) {
      const int64_t rows = std::max({kernels.max_rows[1], kernels.max_rows[2], kernels.max_rows[3]});
      return {kMaxVectors * lanes, rows * kMaxVectors * lanes};
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
  std::vector<Phase> phases;
  WeightLayout weights;
  std::vector<ColumnBlock> blocks;
  std::vector<std::vector<PanelLayout>> layouts;
  std::vector<Stage> stages;  // by phase, where there are any
  std::vector<int64_t> channel_offset;
  std::vector<std::vector<MirrorTerm>> mirror_terms;  // by phase, chunk and parity
};

}  // namespace symconv
