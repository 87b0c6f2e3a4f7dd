// Packing of the reduced weights.
#include "packed/weights.h"

#include <algorithm>
#include <bit>

namespace symconv {

namespace {

constexpr int64_t kOthers = 64;  // contraction rows packed together: their taps share cache lines
static_assert(kOthers <= kDealtChannels, "rows of a fold are channels");

template <class T>
struct WeightPacker {
  const Kernels<T>& kernels;
  const Problem& p;
  const Plan& plan;
  const WeightLayout& layout;
  const WeightView<const Element<T>>& w;
  bool planes;
  Word<T>* out;

  // Weights of some contraction rows and columns, from the first of both.
  struct Part {
    const Element<T>* data;
    int64_t row_stride, column_stride;
    Triple tap_stride;
  };

  // Of a group's rows from `begin` on and the columns from `column` on.
  Part part(const Group& g, size_t chunk, int64_t begin, int64_t column) const {
    const Slot& slot = plan.slots[g.slot[0]];
    const Segment& segment = p.segments[slot.segment];
    const int64_t rows =
        begin + (plan.fold ? layout.chunks[chunk].begin : slot.row) + (plan.forward ? 0 : segment.first);
    if (plan.forward)
      return {w.data + rows * w.channel_stride + (segment.first + column) * w.orbit_stride, w.channel_stride,
              w.orbit_stride, w.tap_stride};
    return {w.data + rows * w.orbit_stride + column * w.channel_stride, w.orbit_stride, w.channel_stride,
            w.tap_stride};
  }

  // Are runs of taps brought apart first? One segment and one block of channels: all groups have the same
  // rows.
  bool deals() const {
    bool one = p.segments.size() == 1 && !planes && !p.segments[0].moves_channels();
    for (const Slot& slot : plan.slots) one = one && slot.row == 0;
    return one && deals_taps<T>(p, w);
  }

  Part dealt(const Part& from, int64_t count, int64_t columns, Element<T>* room) const {
    WeightView<const Element<T>> near = w;
    near.data = from.data;
    near =
        deal_taps<T>(kernels, p, near, plan.forward ? columns : count, plan.forward ? count : columns, room);
    return plan.forward ? Part{room, near.channel_stride, near.orbit_stride, near.tap_stride}
                        : Part{room, near.orbit_stride, near.channel_stride, near.tap_stride};
  }

  // Contraction rows [begin, begin + count) of a group, columns [column, column + lanes).
  void pack(const Group& g, size_t chunk, int64_t shift, int64_t begin, int64_t count, int64_t column,
            const Part& from) const {
    const int sources = g.slots;
    const bool mirrors = plan.filters_parities();  // along the filtered axis
    WeightArgs<T> a{};
    a.tap_stride = plan.filtering ? from.tap_stride[plan.offset_axis] * (plan.reversed ? -1 : 1) : 0;
    a.source = from.data;
    a.scale = Sum<T>(1) / Sum<T>(sources);
    for (int s = 0; s < sources; ++s) {
      a.tap[s] = g.weight[s].channel * w.channel_stride;
      for (int axis = 0; axis < kAxes; ++axis) {
        const int64_t first = mirrors && s ? mirrored(3, first_tap(shift)) : first_tap(shift);
        a.tap[s] += (axis == plan.offset_axis ? first : g.weight[s].tap[axis]) * from.tap_stride[axis];
      }
      const int parity = plan.slots[g.slot[s]].parity;
      a.product_stride[s] = layout.rows[chunk].shift_stride[parity] * row_step(column);
      const int64_t row = layout.rows[chunk].row[g.slot[s]] +
                          shift * layout.rows[chunk].shift_stride[parity] + words<T>(begin);
      a.out[s] = reinterpret_cast<Stored<T>*>(out + layout.offset[parity] + destination(parity, row, column));
    }
    if (planes) {
      a.lane_stride = from.row_stride, a.other_stride = from.column_stride;
      a.others = std::min<int64_t>(kernels.lanes, layout.columns - column);
      a.lanes = static_cast<int>(count);
      a.stored = static_cast<int>(words<T>(count)) * layout.depth;
      pack_planes(a, g, sources);
    } else {
      a.lane_stride = from.column_stride, a.other_stride = from.row_stride;
      a.others = count;
      a.lanes = static_cast<int>(std::min<int64_t>(kernels.lanes, layout.columns - column));
      a.stored = kernels.lanes;
      a.out_stride = row_step(column) * layout.depth;
      a.vnni = layout.depth > 1;
      kernels.fold_weights[plan.filtering][log_slots(g)](a);
    }
  }

  // The parities of a group may differ in leading dimension: one call for each column.
  void pack_planes(WeightArgs<T> a, const Group& g, int sources) const {
    const int64_t columns = a.others;
    a.others = 1;
    for (int64_t c = 0; c < columns; ++c) {
      kernels.fold_weights[plan.filtering][log_slots(g)](a);
      a.source += a.other_stride;
      for (int s = 0; s < sources; ++s) a.out[s] += layout.ld[plan.slots[g.slot[s]].parity] * layout.depth;
    }
  }

  int log_slots(const Group& g) const { return std::countr_zero(static_cast<unsigned>(g.slots)); }

  // Minimal filtering takes the three taps in order of shift, from the first.
  int64_t first_tap(int64_t shift) const { return plan.filtering && plan.reversed ? 2 : shift; }

  // From one row of the packed weights to the next.
  int64_t row_step(int64_t column) const {
    if (planes) return 1;
    return block_of(column / kernels.lanes, ceil_div(layout.columns, kernels.lanes)).vectors * kernels.lanes;
  }

  int64_t destination(int parity, int64_t row, int64_t column) const {
    if (planes) return column * layout.ld[parity] + row;
    const int64_t total = ceil_div(layout.columns, kernels.lanes), v = column / kernels.lanes;
    const ColumnBlock block = block_of(v, total);
    return block.vector * kernels.lanes * layout.total_rows[parity] + row * block.vectors * kernels.lanes +
           (v - block.vector) * kernels.lanes;
  }

  void pack_piece(int64_t column) const {
    const int64_t step = planes ? kernels.lanes : kOthers;
    const bool deal = deals();
    Element<T> room[kDealtElements];
    for (size_t chunk = 0; chunk < layout.chunks.size(); ++chunk)
      for (int64_t begin = 0;; begin += step) {
        bool more = false;
        Part near{};
        for (const Group& g : plan.groups) {
          const int64_t width = layout.chunks[chunk].width(plan, plan.slots[g.slot[0]]);
          if (begin >= width) continue;
          const int64_t count = std::min(step, width - begin);
          Part from = part(g, chunk, begin, column);
          if (deal && !more)
            near = dealt(from, count, std::min<int64_t>(kernels.lanes, layout.columns - column), room);
          if (deal) from = near;
          more = true;
          for (int64_t shift = 0; shift < (plan.filtering ? 1 : layout.shifts); ++shift)
            pack(g, chunk, shift, begin, count, column, from);
        }
        if (!more) break;
      }
  }
};

}  // namespace

ColumnBlock block_of(int64_t vector, int64_t total) {
  const bool odd = total % 2 == 1 && total >= 3;
  const int64_t tail = odd ? total - 3 : total;
  if (vector >= tail) return {tail, 3};
  return {vector / 2 * 2, static_cast<int>(std::min<int64_t>(2, total - vector / 2 * 2))};
}

std::vector<ColumnBlock> column_blocks(int64_t columns, int lanes) {
  std::vector<ColumnBlock> blocks;
  const int64_t total = ceil_div(columns, lanes);
  for (int64_t v = 0; v < total; v += blocks.back().vectors) blocks.push_back(block_of(v, total));
  return blocks;
}

int64_t weight_pieces(const WeightLayout& layout, int lanes) { return ceil_div(layout.columns, lanes); }

WeightLayout weight_layout(const Problem& p, const Plan& plan, int64_t columns,
                           const std::vector<Chunk>& chunks, int lanes, bool planes, int depth) {
  WeightLayout w{};
  w.columns = columns;
  w.depth = depth;
  w.chunks = chunks;
  w.shifts = plan.filtering          ? kLinesIn[plan.filtering]
             : plan.offset_axis >= 0 ? p.kernel[plan.offset_axis]
                                     : 1;
  for (const Chunk& chunk : chunks) {
    WeightRows rows;
    int64_t used[8] = {};
    for (const Slot& slot : plan.slots) {
      rows.row.push_back(w.total_rows[slot.parity] + used[slot.parity]);
      used[slot.parity] += ceil_div(chunk.width(plan, slot), depth);
    }
    for (int parity = 0; parity < plan.parities; ++parity) {
      rows.shift_stride[parity] = used[parity];
      w.total_rows[parity] += used[parity] * w.shifts;
    }
    w.rows.push_back(rows);
  }
  for (int parity = 0; parity < plan.parities; ++parity) {
    w.ld[parity] = apart(w.total_rows[parity], lanes, 256);
    w.offset[parity] = w.elements;
    w.elements += planes ? columns * w.ld[parity] : round_up(columns, lanes) * w.total_rows[parity];
    w.elements = round_up(w.elements, lanes);
  }
  return w;
}

template <class T>
void pack_weights(const Kernels<T>& kernels, const Problem& p, const Plan& plan, const WeightLayout& layout,
                  const WeightView<const Element<T>>& weight, bool planes, int64_t piece, Word<T>* out) {
  WeightPacker<T>{kernels, p, plan, layout, weight, planes, out}.pack_piece(piece * kernels.lanes);
}

#define SYMCONV_INSTANTIATE(T)                                                                       \
  template void pack_weights<T>(const Kernels<T>&, const Problem&, const Plan&, const WeightLayout&, \
                                const WeightView<const Element<T>>&, bool, int64_t, Word<T>*);
SYMCONV_FOR_ALL_TYPES(SYMCONV_INSTANTIATE)

}  // namespace symconv
