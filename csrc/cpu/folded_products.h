// Products of folded lines with folded filters, and their way to the results of all members.
#pragma once

#include <algorithm>
#include <cstdint>

#include "convert.h"
#include "direct_filters.h"
#include "kernels.h"
#include "multiply.h"
#include "scratch.h"
#include "sizes.h"

namespace symconv {

// A line of results for one part of the members of a segment, and what it is made of.
template <class T>
struct FoldedLine {
  int64_t group, image, plane, line;
  const Segment& segment;
  const FoldedAxes& axes;
  int base;                   // member that the filters are for
  const Sum<T>* filters;      // [tap and channel, one parity after the other][orbit]
  int64_t filter_step;        // from one tap and channel to the next
  const int64_t* filter_row;  // multiples of that
  const Sum<T>* source;
  const int64_t* source_offset;  // where each tap and channel is read, in the same order
  int64_t source_step;           // from one position to the next
  const int64_t* taps;           // of each parity, times channels
};

// Pixels: rows of a tile are positions, columns orbits. Planes: the other way round.
//
// R: the way to run whose kernels store results, of the same element as T.
template <class T, class R>
class FoldedProducts {
  using E = Element<T>;
  using S = Sum<T>;

 public:
  FoldedProducts(const Problem& p, const MultiplyTensors<T>& tensors, bool planes)
      : p_(p),
        m_(tensors),
        taps_(p.channels * kernel_taps(p)),
        planes_(planes),
        memory_(p.groups * p.filters + kernels_.lanes),
        bias_(memory_.data()) {
    std::fill_n(memory_.data(), p.groups * p.filters + kernels_.lanes, S(0));
    for (int64_t i = 0; m_.bias && i < p.groups * p.filters; ++i) memory_.data()[i] = widened(m_.bias[i]);
    streams_ = sizeof(E) == sizeof(S) && may_stream();
  }

  // Memory that a thread needs.
  int64_t tile_elements(int parities) const { return few_taps(parities) ? 0 : kTileVectors * kernels_.lanes; }

  // A few rows of all columns at a time, so that each is stored in one run; long lines in parts.
  void operator()(const FoldedLine<T>& line, S* tile) const {
    const int parities = line.axes.parities();
    const bool few = few_taps(parities);
    const int* const rows_of = few ? stores_.folded_rows : kernels_.max_rows;
    const int64_t columns = planes_ ? p_.out[2] : line.segment.rows;
    const int64_t rows = planes_ ? line.segment.rows : p_.out[2];
    const int64_t part =
        few ? std::max<int64_t>(2, kReadVectors / taps_)
            : std::max<int64_t>(kMaxVectors, kTileVectors / (parities * kernels_.max_rows[2]));
    const FoldedArgs<R> args = few ? folded_args(line) : FoldedArgs<R>{};
    for_columns({0, columns, 0}, part, [&](const Columns& now) {
      const int64_t most = even_vectors(now.vectors);
      for_pieces(rows, rows_of[most], [&](int64_t row, int64_t count) {
        few ? in_registers(line, args, now, most, row, count) : in_memory(line, now, most, row, count, tile);
      });
    });
  }

 private:
  // Results of all parities stay in registers. Longer contractions need more products for each load, so tiles
  // of one parity at a time, and results wait in memory. No parity of few has more than 384, a chain of sums.
  bool few_taps(int parities) const {
    const bool many_registers = stores_.folded_rows[2] > 4;
    const int64_t most = !many_registers ? 24 : !planes_ ? 96 : parities == 2 ? 60 : 24;
    return parities > 1 && taps_ <= most * parities;
  }
  static constexpr int64_t kTileVectors = 512;  // of such results
  static constexpr int64_t kReadVectors = 320;  // of what a part of the columns reads again for every row
  static constexpr int64_t kMostRows = 32;
  // Results that would fill the caches go past them, where their runs are whole cache lines: at half the
  // traffic, since nothing is read for them.
  static constexpr int64_t kStreamedBytes = 8 << 20;

  struct Columns {
    int64_t first, count, vectors;
  };

  // Calls f for parts of `all`, each of at most so many vectors.
  template <class F>
  void for_columns(const Columns& all, int64_t most, const F& f) const {
    const int64_t lanes = kernels_.lanes;
    for_pieces(ceil_div(all.count, lanes), most, [&](int64_t vector, int64_t vectors) {
      const int64_t first = vector * lanes;
      f(Columns{all.first + first, std::min(vectors * lanes, all.count - first), vectors});
    });
  }

  // Vectors of a tile at most, so that all have about as many.
  static int64_t even_vectors(int64_t vectors) { return ceil_div(vectors, ceil_div(vectors, kMaxVectors)); }

  bool may_stream() const {
    const int64_t size = static_cast<int64_t>(sizeof(E)), line = kCacheLine / size;
    const View<E>& out = m_.out;
    const auto whole = [&](int64_t elements) { return elements % line == 0; };
    bool fits = reinterpret_cast<uintptr_t>(out.data) % kCacheLine == 0 && whole(out.batch_stride) &&
                whole(out.stride[0]) && whole(out.stride[1]);
    if (planes_) {
      fits = fits && whole(out.channel_stride) && whole(p_.out[2]);
    } else {
      fits = fits && whole(out.stride[2]) && whole(p_.filters);
      for (const Segment& s : p_.segments) fits = fits && whole(s.rows) && whole(s.first) && whole(s.copies);
    }
    return fits &&
           p_.batch * p_.groups * p_.filters * p_.out[0] * p_.out[1] * p_.out[2] * size >= kStreamedBytes;
  }

  int64_t row_stride() const { return planes_ ? m_.out.channel_stride : m_.out.stride[2]; }
  int64_t channel_of(const FoldedLine<T>& line, int parity) const {
    return line.group * p_.filters + member_channel(line.segment, line.axes.member(line.base, parity));
  }
  // Of a member, at the first position and orbit.
  E* results(const FoldedLine<T>& line, int parity) const {
    return m_.out.data + line.image * m_.out.batch_stride + line.plane * m_.out.stride[0] +
           line.line * m_.out.stride[1] + channel_of(line, parity) * m_.out.channel_stride;
  }
  FoldedArgs<R> folded_args(const FoldedLine<T>& line) const {
    FoldedArgs<R> g{};
    g.line_offset = line.source_offset, g.line_step = line.source_step, g.filter_step = line.filter_step;
    g.out_row = row_stride(), g.stream = streams_;
    for (int i = 0; i < line.axes.parities(); ++i) {
      g.taps[i] = line.taps[i];
      g.out[i] = results(line, i), g.bias[i] = bias_ + channel_of(line, i);
    }
    return g;
  }

  void in_registers(const FoldedLine<T>& line, const FoldedArgs<R>& g, const Columns& part, int64_t most,
                    int64_t row, int64_t rows) const {
    for_columns(part, most, [&](const Columns& now) {
      const int64_t orbit = planes_ ? row : now.first, position = planes_ ? now.first : row;
      FoldedTile<R> t;
      t.filters = line.filters + orbit, t.lines = line.source + position * line.source_step;
      t.columns = now.count, t.out = row * g.out_row + now.first, t.bias = orbit, t.ahead = rows * g.out_row;
      stores_.folded[planes_][line.axes.folds()](static_cast<int>(rows), static_cast<int>(now.vectors), g, t);
    });
  }

  void in_memory(const FoldedLine<T>& line, const Columns& part, int64_t most, int64_t row, int64_t rows,
                 S* tile) const {
    int64_t offset[kMostRows];
    for (int64_t i = 0; i < rows; ++i) offset[i] = i * row_stride();
    StoreArgs<R> s = store_args(line, part, row, rows);
    s.tile = tile, s.row_offset = offset;
    ask_for_results(s, line.axes.parities());
    const S* filters = line.filters + (planes_ ? row : part.first);
    const S* const source = line.source + (planes_ ? part.first : row) * line.source_step;
    const int64_t* read = line.source_offset;
    TapsArgs<S> g{};
    g.lda = planes_ ? 1 : line.source_step, g.ldc = s.ld;
    for (int i = 0; i < line.axes.parities(); ++i, tile += s.parity_stride) {
      g.a = planes_ ? filters : source, g.taps = line.taps[i];
      g.a_offset = planes_ ? line.filter_row : read, g.b_offset = planes_ ? read : line.filter_row;
      for_columns({0, part.count, 0}, most, [&](const Columns& now) {
        g.b = (planes_ ? source : filters) + now.first, g.c = tile + now.first;
        kernels_.taps(static_cast<int>(rows), static_cast<int>(now.vectors), g);
      });
      read += g.taps, filters += g.taps * line.filter_step;
    }
    stores_.store[kPlain][line.axes.folds()](s);
  }

  StoreArgs<R> store_args(const FoldedLine<T>& line, const Columns& part, int64_t row, int64_t rows) const {
    StoreArgs<R> s{};
    s.ld = part.vectors * kernels_.lanes, s.parity_stride = rows * s.ld;
    s.rows = rows, s.cols = part.count, s.lines = 1, s.bias_of_row = planes_, s.stream = streams_;
    for (int i = 0; i < line.axes.parities(); ++i) {
      s.out[i] = results(line, i) + row * row_stride() + part.first;
      if (m_.bias) s.bias[i] = m_.bias + channel_of(line, i) + (planes_ ? row : part.first);
    }
    return s;
  }

  // Results of what is multiplied next: stores that miss the caches wait for each other.
  void ask_for_results(const StoreArgs<R>& s, int parities) const {
    if (s.stream) return;
    for (int64_t r = 0; r < s.rows; ++r)
      for (int i = 0; i < parities; ++i)
        for (int64_t at = 0; at < s.cols; at += kCacheLine / static_cast<int64_t>(sizeof(E)))
          __builtin_prefetch(s.out[i] + s.row_offset[r] + at, 1);
  }

  const Problem& p_;
  const MultiplyTensors<T>& m_;
  const Kernels<S>& kernels_ = select_kernels<S>();
  const Kernels<R>& stores_ = select_kernels<R>();
  int64_t taps_;
  bool planes_, streams_;
  Scratch<S> memory_;
  const S* bias_;  // widened, zeros without; whole vectors may be read at each channel
};

}  // namespace symconv
