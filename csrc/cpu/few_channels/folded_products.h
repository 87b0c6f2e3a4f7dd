// Products of folded lines with folded filters, and their way to the results of all members.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "blocking.h"
#include "convert.h"
#include "few_channels/direct_filters.h"
#include "microkernels/kernels.h"
#include "packed/multiply.h"
#include "streamed.h"
#include "workspace.h"

namespace symconv {

// A line of results of a segment, and what it is made of.
template <class T>
struct FoldedLine {
  int64_t group, image, plane, line;
  const Segment& segment;
  const FoldedAxes& axes;
  const Sum<T>* filters;      // [tap and channel, one parity after the other][orbit]
  int64_t filter_step;        // from one tap and channel to the next
  const int64_t* filter_row;  // multiples of that
  const Sum<T>* source;
  const int64_t* source_offset;  // where each tap and channel is read, in the same order
  int64_t source_step;           // from one position to the next
  const int64_t* taps;           // of each parity, times channels
};

// Pixels: rows of a tile are positions, columns orbits. Planes: the other way round; into a result whose
// channels are contiguous they are turned on the way out.
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
        turned_(planes && tensors.out.channel_stride == 1 && p.groups * p.filters > 1),
        memory_(p.groups * p.filters + kernels_.lanes),
        bias_(memory_.data()) {
    std::fill_n(memory_.data(), p.groups * p.filters + kernels_.lanes, S(0));
    for (int64_t i = 0; m_.bias && i < p.groups * p.filters; ++i) memory_.data()[i] = widened(m_.bias[i]);
    streams_ = sizeof(E) == sizeof(S) && !turned_ && streams();
    for (int64_t x = 0; turned_ && x < p.out[2]; ++x) position_.push_back(x * m_.out.stride[2]);
    if (kNarrow<T> || planes || p.orbits != p.filters) return;
    final_blocks_ = column_blocks(p.filters, kernels_.lanes);
    for (const ColumnBlock& block : final_blocks_)
      final_rows_ = std::min<int64_t>(final_rows_, kernels_.max_rows[block.vectors]);
  }

  // Memory that a thread needs.
  int64_t tile_elements(int parities) const {
    return few_taps(parities) || !final_blocks_.empty() ? 0 : kTileVectors * kernels_.lanes;
  }

  // A few rows of all columns at a time, so that each is stored in one run; long lines in parts.
  void operator()(const FoldedLine<T>& line, S* tile) const {
    if (!final_blocks_.empty()) return in_place(line);
    if (turned_) return turned(line, tile);
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
    return parities > 1 && !turned_ && taps_ <= most * parities;
  }
  static constexpr int64_t kTileVectors = 512;  // of results that wait
  static constexpr int64_t kReadVectors = 320;  // of what a part of the columns reads again for every row
  static constexpr int64_t kMostRows = 32;

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

  // Past the caches, where every member's run is whole cache lines too.
  bool streams() const {
    const auto whole = are_whole_lines<E>;
    const auto fits = [&](const Segment& s) { return whole(s.rows) && whole(s.first) && whole(s.copies); };
    return may_stream(p_, m_.out, planes_) &&
           (planes_ || std::all_of(p_.segments.begin(), p_.segments.end(), fits));
  }

  int64_t row_stride() const { return planes_ ? m_.out.channel_stride : m_.out.stride[2]; }
  int64_t channel_of(const FoldedLine<T>& line, int parity) const {
    return line.group * p_.filters + member_channel(line.segment, parity);
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
    prefetch_results(s, line.axes.parities());
    multiply(line, part, most, row, rows, tile, s.ld, s.parity_stride);
    stores_.store[kPlain][line.axes.folds()](s);
  }

  // All orbits of some positions at a time: their channels follow each other in the results.
  void turned(const FoldedLine<T>& line, S* tile) const {
    const int64_t rows = line.segment.rows, tiles = line.axes.parities() * rows;
    const int64_t part = std::max<int64_t>(1, kTileVectors / tiles);
    for_columns({0, p_.out[2], 0}, part, [&](const Columns& now) {
      const int64_t most = even_vectors(now.vectors), ld = now.vectors * kernels_.lanes;
      for_pieces(rows, kernels_.max_rows[most], [&](int64_t row, int64_t count) {
        multiply(line, now, most, row, count, tile + row * ld, ld, rows * ld);
      });
      StoreArgs<R> s{};
      s.tile = tile, s.ld = ld, s.parity_stride = rows * ld, s.rows = rows, s.cols = now.count, s.lines = 1;
      s.col_offset = position_.data() + now.first;
      for (int i = 0; i < line.axes.parities(); ++i) {
        s.out[i] = results(line, i);
        if (m_.bias) s.bias[i] = m_.bias + channel_of(line, i);
      }
      stores_.store_transposed[kPlain][line.axes.folds()](s);
    });
  }

  // Products of each parity for some rows and columns.
  void multiply(const FoldedLine<T>& line, const Columns& part, int64_t most, int64_t row, int64_t rows,
                S* tile, int64_t ld, int64_t parity_stride) const {
    const S* filters = line.filters + (planes_ ? row : part.first);
    const S* const source = line.source + (planes_ ? part.first : row) * line.source_step;
    const int64_t* read = line.source_offset;
    TapsArgs<S> g{};
    g.lda = planes_ ? 1 : line.source_step, g.ldc = ld;
    for (int i = 0; i < line.axes.parities(); ++i, tile += parity_stride) {
      g.a = planes_ ? filters : source, g.taps = line.taps[i];
      g.a_offset = planes_ ? line.filter_row : read, g.b_offset = planes_ ? read : line.filter_row;
      for_columns({0, part.count, 0}, most, [&](const Columns& now) {
        g.b = (planes_ ? source : filters) + now.first, g.c = tile + now.first;
        kernels_.taps(static_cast<int>(rows), static_cast<int>(now.vectors), g);
      });
      read += g.taps, filters += g.taps * line.filter_step;
    }
  }

  // Sums of whole vectors, each where its result belongs: a few positions of all filters at a time, so that
  // stores go through memory in order.
  void in_place(const FoldedLine<T>& line) const {
    if constexpr (!kNarrow<T>) {
      TapsArgs<S> g{};
      g.a_offset = line.source_offset, g.b_offset = line.filter_row, g.taps = line.taps[0];
      g.lda = line.source_step, g.ldc = row_stride();
      E* const out = results(line, 0);
      const S* const bias = bias_ + line.group * p_.filters;
      const int64_t positions = p_.out[2];
      for_pieces(positions, final_rows_, [&](int64_t row, int64_t rows) {
        const int64_t next = row + rows;
        prefetch_rows(out + next * g.ldc, std::min(rows, positions - next), p_.filters);
        g.a = line.source + row * g.lda;
        for (const ColumnBlock& block : final_blocks_) {
          const int64_t column = block.vector * kernels_.lanes;
          g.b = line.filters + column, g.c = out + row * g.ldc + column, g.start = bias + column;
          kernels_.taps(static_cast<int>(rows), block.vectors, g);
        }
      });
    }
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
  void prefetch_results(const StoreArgs<R>& s, int parities) const {
    if (s.stream) return;
    for (int i = 0; i < parities; ++i) prefetch_rows(s.out[i], s.rows, s.cols);
  }
  void prefetch_rows(const E* at, int64_t rows, int64_t columns) const {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; c += kCacheLine / static_cast<int64_t>(sizeof(E)))
        __builtin_prefetch(at + r * row_stride() + c, 1);
  }

  const Problem& p_;
  const MultiplyTensors<T>& m_;
  const Kernels<S>& kernels_ = select_kernels<S>();
  const Kernels<R>& stores_ = select_kernels<R>();
  int64_t taps_;
  bool planes_, turned_, streams_;
  std::vector<int64_t> position_;  // of a line of results that is turned
  // Of sums that begin with the bias, where no butterfly and no rounding follows.
  std::vector<ColumnBlock> final_blocks_;
  int64_t final_rows_ = kMostRows;
  Scratch<S> memory_;
  const S* bias_;  // widened, zeros without; whole vectors may be read at each channel
};

}  // namespace symconv
