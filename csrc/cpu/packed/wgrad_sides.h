// Both sides of a weight gradient's multiplication, packed for one tile: the panel, and what it is multiplied
// by. Included by packed/wgrad.cpp.
#pragma once

#include <algorithm>
#include <bit>
#include <type_traits>
#include <utility>

#include "packed/wgrad_parts.h"

namespace symconv {

template <class T>
class WgradSides : public WgradParts<T> {
 public:
  using WgradParts<T>::WgradParts;

 protected:
  using Base = WgradParts<T>;
  using Base::kDepth, Base::w_, Base::p_, Base::kernels_, Base::lanes_, Base::left_, Base::right_;
  using Base::most_pixels_, Base::most_panel_, Base::most_rows_, Base::most_ld_, Base::most_stage_;
  using Base::parities, Base::rows_of_channels;
  using Base::rows_, Base::channels_, Base::channel_, Base::plans_;

  struct Local {
    Word<T>* zipped;  // the right side, where words are pairs of positions
    Stored<T>*panel, *rows;
    Element<T>*zeros, *room;
    Held<Element<T>> stage;
    int64_t* offset;
  };

  Local local_memory(Sum<T>* memory, int64_t* offset, Element<T>* room) const {
    Local local;
    local.zipped = reinterpret_cast<Word<T>*>(memory);
    local.panel = reinterpret_cast<Stored<T>*>(local.zipped + zipped());
    local.rows = local.panel + most_panel_;
    local.zeros = reinterpret_cast<Element<T>*>(local.rows + most_rows_);
    local.stage.data = local.zeros + zeros();
    local.offset = offset, local.room = room;
    std::fill(local.zeros, local.zeros + zeros(), Element<T>{});
    return local;
  }

  int64_t zeros() const { return std::max(rows_, most_pixels_) + lanes_; }
  // Pairs: the right side once more, in half as many words as elements and one row for an odd number.
  int64_t zipped() const {
    const int64_t rows = w_.planes ? most_rows_ : most_panel_, sides = w_.planes ? parities() : 1;
    return kDepth > 1 ? rows / kDepth + sides * most_ld_ : 0;
  }
  int64_t local_elements() const {
    return round_up(zipped() + most_panel_ + most_rows_ + zeros() + most_stage_, lanes_);
  }

  // The orbits of a plan that folds, or its channels.
  Chunk split_chunk(const Plan& plan) const {
    const Slot& slot = plan.slots[0];
    if (w_.of_input) return {0, rows_};
    return plan.fold ? Chunk{slot.row, slot.row + slot.channels} : Chunk{0, 0};
  }

  void pack_gradient(const Plan& plan, const PhaseWork& work, const Tile& tile, int64_t group,
                     const Chunk& chunk, Local& local) const {
    View<const Element<T>> source = left_.view;
    int64_t first = group * left_.channels;
    StagePlaces places;
    if (w_.staged) {
      places = work.stage->fill(kernels_, work.phase, tile, left_.view, first, left_.channels, local.stage);
      source = work.stage->view(local.stage);
      first = 0;
    }
    pack_panel(kernels_, plan, work.phase, tile, work.layout, source, w_.staged ? &places : nullptr,
               first + chunk.begin, {0, chunk.end - chunk.begin}, w_.planes, local.zeros, local.panel,
               work.panel_ld, work.panel_stride);
  }

  // Blocks of the input become its parities, where they are: in whole vectors, none of which is read again.
  void fold_input(const PhaseWork& work, const Local& local) const {
    if (parities() == 1) return;
    using Folded = std::conditional_t<kDepth == 1, Stored<T>, T>;
    RunArgs<Folded> r{};
    r.positions = work.block_stride, r.channels = 1;
    for (int block = 0; block < parities(); ++block) {
      r.out[block] = local.rows + block * work.block_stride;
      r.source[0][block] = r.out[block];
      r.position_step[0][block] = 1;
    }
    select_kernels<Folded>().fold_planes[kPlain][std::countr_zero(static_cast<unsigned>(parities()))](r);
  }

  // A block of the input of the tile: [position][channel], or [channel][position].
  void pack_input(const PhaseWork& work, const Tile& tile, int64_t group, int block,
                  const Local& local) const {
    const View<const Element<T>>& view = right_.view;
    destination_offsets(work.phase, tile, view.batch_stride, view.stride, local.offset);
    const Tiling& tiling = work.phase.tiling;
    const int last = tile.lines_of_last(tiling);
    const int64_t full = tile.full_pixels(tiling), pixels = tile.pixels();
    GatherArgs<T> g{};
    const int outer = tiling.order[0];
    g.line_stride = work.phase.axis[outer]->step * view.stride[outer];
    g.product_stride = work.row_stride;
    g.ld = work.row_ld;
    const Element<T>* input = view.data + group * right_.channels * view.channel_stride;
    const int64_t* channel = channel_.data() + block * channels_;
    const bool together = view.channel_stride == 1 && (w_.of_input || p_.order.empty());
    Stored<T>* const rows = local.rows + block * work.block_stride;
    if (!rows_of_channels()) {
      g.channel_stride = view.channel_stride, g.channels = channels_, g.source = input + channel[0];
      for (const auto& [from, to] : {std::pair{int64_t{0}, full}, std::pair{full, pixels}}) {
        g.offset = local.offset + from, g.positions = to - from, g.out = rows + from;
        g.lines = to == full ? tiling.lines_out : last;
        kernels_.gather[plans_[0]->filtering](g);
      }
      return;
    }
    const int inner = tiling.order[2];
    g.channel_stride = work.phase.axis[inner]->step * view.stride[inner];
    g.positions = channels_, g.channels = tile.size[2];
    g.offset = together ? nullptr : channel;
    if (together) input += channel[0];
    const bool narrow = w_.staged && channels_ * static_cast<int64_t>(sizeof(Element<T>)) <= 2 * kCacheLine;
    for (int64_t p = 0; p < pixels; p += tile.size[2]) {
      g.source = input + local.offset[p], g.out = rows + p * work.row_ld;
      g.lines = p < full ? tiling.lines_out : last;
      if (together && narrow && p + tile.size[2] < pixels) expect(input + local.offset[p + tile.size[2]], g);
      kernels_.gather[plans_[0]->filtering](g);
    }
  }

  // Asks for a line of positions that is packed next: strided ones are foreseen badly.
  void expect(const Element<T>* line, const GatherArgs<T>& g) const {
    constexpr int64_t whole = kCacheLine / static_cast<int64_t>(sizeof(Element<T>));
    for (int64_t p = 0; p < g.channels; ++p, line += g.channel_stride)
      for (int64_t c = 0; c < g.positions; c += whole) __builtin_prefetch(line + c);
  }

  // Pairs are made of the right side's positions, from the first one that is wanted: lines of an odd length
  // shift it by single positions. `from` is where those that are there begin.
  void zip(const PhaseWork& work, const Local& local, int64_t first, const Tile& tile, int64_t& from) const {
    if (from == first) return;
    from = first;
    const int64_t halo = w_.planes ? 0 : work.phase.tiling.span * tile.line();
    const int64_t ld = w_.planes ? work.row_ld : work.panel_ld;
    if (!w_.planes)
      return kernels_.vnni_interleave(
          {local.panel + first * ld, local.zipped, ld, ld, tile.pixels() + halo - first, work.layout.total});
    for (int parity = 0; parity < parities(); ++parity)
      kernels_.vnni_interleave({local.rows + parity * work.block_stride + first * ld,
                                local.zipped + parity * work.zipped_stride, ld, ld, tile.pixels() - first,
                                channels_});
  }
};

}  // namespace symconv
