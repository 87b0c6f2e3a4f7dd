// Where results of a multiplication go: through a butterfly, with the bias, to every member of their orbits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "microkernels/kernels.h"
#include "packed/multiply.h"
#include "packed/panel.h"
#include "packed/prepared.h"
#include "streamed.h"

namespace symconv {

// StoredTile of a tile: where its pixels are in the destination.
struct StoredTile {
  const Phase& phase;
  const Tile& tile;
  int64_t group;
  const int64_t* offset;
};

template <class T>
class ResultStore {
 public:
  ResultStore(const Prepared<T>& prepared, const MultiplyTensors<T>& tensors)
      : p_(prepared), m_(tensors), streams_(past_caches()) {}

  // Are results published (streamed.h) when all are stored?
  bool streams() const { return streams_; }

  // Asks for the memory that a block of results will be stored to: it comes while they are multiplied.
  void expect(const StoredTile& x, int64_t p0, int64_t p1, int64_t column, int64_t width) const {
    if (m_.out.channel_stride != 1 || streams_) return;
    const StoreArgs<T> s = store_args(x);
    const int64_t bytes = std::min(width, p_.columns - column) * static_cast<int64_t>(sizeof(Element<T>));
    for (const int64_t member : p_.member_channel) {
      const Element<T>* out = m_.out.data + x.group * p_.out_channels + member + column;
      for (int64_t p = p0; p < p1; ++p)
        for (int line = 0; line < s.lines; ++line) {
          const char* at = reinterpret_cast<const char*>(out + x.offset[p] + line * s.line_stride);
          for (int64_t byte = 0; byte < bytes; byte += kCacheLine) __builtin_prefetch(at + byte, 1);
        }
    }
  }

  void pixels(const StoredTile& x, const Sum<T>* tile, int64_t p0, int64_t p1, int64_t column,
              int64_t width) const {
    StoreArgs<T> s = store_args(x);
    s.cols = std::min(width, p_.columns - column);
    s.col_offset = m_.out.channel_stride == 1 ? nullptr : p_.channel_offset.data();
    const int64_t full = std::clamp(x.tile.full_pixels(x.phase.tiling), p0, p1);
    for (const auto& [from, to] : {std::pair{p0, full}, std::pair{full, p1}}) {
      if (from == to) continue;
      if (from == full) s.lines = x.tile.lines_of_last(x.phase.tiling);
      s.tile = tile + (from - p0) * s.ld;
      s.rows = to - from;
      s.row_offset = x.offset + from;
      finish_store(x, s, column, 0);
    }
  }

  // Columns are pixels: stored in runs that are contiguous in the destination.
  void planes(const StoredTile& x, const Sum<T>* tile, int64_t u0, int64_t u1, int64_t p0, int64_t p1) const {
    StoreArgs<T> s = store_args(x);
    s.row_offset = p_.channel_offset.data();
    s.bias_of_row = true;
    const int64_t full = x.tile.full_pixels(x.phase.tiling);
    const int64_t* at = x.offset;
    const bool turned = m_.out.channel_stride == 1 && p_.columns > 1;
    for (int64_t from = p0, to; from < p1; from = to) {
      const int64_t end = from < full ? std::min(p1, full) : p1;
      for (to = from + 1; to < end && at[to] == at[to - 1] + 1;) ++to;
      const bool contiguous = !turned && (to - from >= p_.lanes || to == end);
      if (!contiguous) to = end;
      s.lines = from < full ? x.phase.tiling.lines_out : x.tile.lines_of_last(x.phase.tiling);
      s.tile = tile + (from - p0);
      s.cols = to - from;
      s.col_offset = contiguous ? nullptr : at + from;
      store_rows(x, s, u0, u1, contiguous ? at[from] : 0, turned);
    }
  }

  // Columns [begin, end) of lines that are `place` apart, without those that lie between lines.
  void lines(const StoredTile& x, const Sum<T>* tile, int64_t place, int64_t begin, int64_t end) const {
    const int64_t line = x.tile.size[2], lines = x.tile.size[1];
    for (int64_t from = begin, to; from < end && from / place < lines; from = to) {
      const int64_t at = from / place * place;
      to = std::min(end, place == line ? lines * line : at + line);
      if (from < to) planes(x, tile + (from - begin), 0, p_.columns, from, to);
      to = std::max(to, std::min(end, place == line ? end : at + place));
    }
  }

 private:
  StoreArgs<T> store_args(const StoredTile& x) const {
    const auto r = p_.results(x.phase);
    StoreArgs<T> s{};
    s.product_stride = r.stride, s.parity_stride = r.stride * x.phase.tiling.products, s.ld = r.ld;
    const int axis = x.phase.tiling.order[0];
    s.line_stride = m_.out.stride[axis] * x.phase.axis[axis]->step;
    s.lines = x.phase.tiling.lines_out;
    s.stream = streams_;
    return s;
  }

  // Rows [u0, u1) of results: those together that follow each other in the output.
  void store_rows(const StoredTile& x, const StoreArgs<T>& all, int64_t u0, int64_t u1, int64_t base,
                  bool turned) const {
    for (int64_t from = u0, to; from < u1; from = to) {
      to = p_.orders_result ? from + 1 : u1;
      while (to < u1 && p_.follows(to)) ++to;
      StoreArgs<T> s = all;
      s.tile = all.tile + (from - u0) * s.ld;
      s.rows = to - from;
      finish_store(x, s, from, base, turned);
    }
  }

  void finish_store(const StoredTile& x, StoreArgs<T>& s, int64_t column, int64_t base,
                    bool turned = false) const {
    const int members = static_cast<int>(p_.member_channel.size()), parities = p_.plan.parities;
    const auto& store = (turned ? p_.kernels.store_transposed : p_.kernels.store)[p_.plan.filtering];
    int log = 0;
    while (1 << log < parities) ++log;
    for (int copy = 0; copy < members; copy += parities) {
      for (int i = 0; i < parities; ++i) {
        const int64_t channel = x.group * p_.out_channels + p_.result_channel(copy + i, column);
        s.out[i] = m_.out.data + base + channel * m_.out.channel_stride;
        s.bias[i] = m_.bias ? m_.bias + channel : nullptr;
      }
      store[log](s);
    }
  }

  // Do results of volumes go past the caches? Channels of a position are then whole cache lines.
  bool past_caches() const {
    const View<Element<T>>& y = m_.out;
    const auto whole = are_whole_lines<Element<T>>;
    const Problem& p = p_.problem;
    const Triple& extent = p_.plan.forward ? p.out : p.in;
    const bool aligned = reinterpret_cast<uintptr_t>(y.data) % kCacheLine == 0 && whole(y.batch_stride) &&
                         whole(y.stride[0]) && whole(y.stride[1]) && whole(y.stride[2]) &&
                         whole(p_.out_channels) && whole(p_.columns);
    const bool members = std::all_of(p_.member_channel.begin(), p_.member_channel.end(), whole);
    const int64_t bytes = p.batch * p.groups * p_.out_channels * extent[0] * extent[1] * extent[2] *
                          static_cast<int64_t>(sizeof(Element<T>));
    return p_.staged && !p_.pixel_lanes && p_.kernels.stream_rows && y.channel_stride == 1 && aligned &&
           members && bytes >= kStreamedBytes;
  }

  const Prepared<T>& p_;
  const MultiplyTensors<T>& m_;
  const bool streams_;
};

}  // namespace symconv
