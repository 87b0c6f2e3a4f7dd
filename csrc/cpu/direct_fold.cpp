// Stems: short contractions without a panel, folded line by line.
#include "direct_fold.h"

#include <algorithm>
#include <iterator>
#include <vector>

#include "direct_filters.h"
#include "direct_lines.h"

namespace symconv {

namespace {

constexpr int64_t kMostRows = 32;  // of a tile of the matrix kernel
constexpr int64_t kMostLanes = 16;
constexpr int64_t kTurnedRows = 112;  // positions that are stored together where they are contiguous

template <class T>
class DirectFold : DirectLines<T> {
 public:
  DirectFold(const Problem& p, int axes, const MultiplyTensors<T>& tensors)
      : DirectLines<T>(p),
        m_(tensors),
        turned_(tensors.out.channel_stride != 1),
        reach_((p.stride[2] * (p.out[2] - 1) + 1) * p.channels) {
    for (const Segment& segment : p.segments) folds_.push_back({&segment, FoldedAxes(p, segment, axes), {}});
    int64_t filters = 0;
    for (Fold& fold : folds_) {
      for (int base = 0; base < fold.axes.bases(); ++base) {
        Part part{base, filters, {p, *fold.segment, fold.axes, base, this->lanes_}, {}, kMostRows};
        part.blocks = column_blocks(fold.segment->rows, this->lanes_);
        for (const ColumnBlock& block : part.blocks)
          part.rows = std::min<int64_t>(part.rows, this->kernels_.max_rows[block.vectors]);
        for (const ColumnBlock& block : part.blocks)
          tile_ = std::max(tile_, fold.axes.parities() * stored(part) * block.vectors * this->lanes_);
        padded_ = std::max(padded_, part.filters.ld());
        filters += part.filters.elements();
        fold.parts.push_back(std::move(part));
      }
    }
    filters_ = filters;
  }

  void operator()() {
    Scratch<T> filters(filters_ * p_.groups);
    for (int64_t g = 0; g < p_.groups; ++g)
      for (const Fold& fold : folds_)
        for (const Part& part : fold.parts) {
          WeightView<const T> w = m_.weight;
          w.data += g * m_.weight_group_stride;
          part.filters.make(w, filters.data() + g * filters_ + part.first);
        }
    const int64_t tasks = this->chunks(p_.out[0], p_.out[1]), slices = std::min(tasks, this->threads_);
    const int64_t lines = p_.kernel[0] * std::max(p_.kernel[1], window());
    const int64_t sums = lines * line_size();
    const int64_t bias = m_.bias && turned_ ? 8 * padded_ : 0;
    const int64_t each = round_up(tile_ + bias + this->copy_elements() + this->line_ + sums, this->lanes_);
    Scratch<T> memory(each * slices);
    parallel_slices(tasks, slices, [&](int64_t begin, int64_t end, int64_t slice) {
      Local local;
      local.tile = memory.data() + slice * each;
      local.bias = local.tile + tile_;
      local.copies = local.bias + bias;
      local.zeros = local.copies + this->copy_elements();
      local.sums = local.zeros + this->line_;
      std::fill(local.zeros, local.sums, T(0));
      for (int64_t i = begin; i < end; ++i) {
        const Chunk c = this->chunk(i, p_.out[0], p_.out[1]);
        this->copy_lines(c, m_.source, local.copies);
        for (const Fold& fold : folds_) run(fold, c, filters.data() + c.group * filters_, local);
      }
    });
  }

 private:
  using typename DirectLines<T>::Chunk;
  using DirectLines<T>::p_;

  struct Part {
    int base;
    int64_t first;  // of its filters
    FoldedFilters<T> filters;
    std::vector<ColumnBlock> blocks;
    int64_t rows;  // of a tile
  };
  struct Fold {
    const Segment* segment;
    FoldedAxes axes;
    std::vector<Part> parts;
  };

  // A line of the kernel: what its taps read. Along the width the line as it is, or sums and differences of
  // pairs of taps.
  struct Line {
    const T* whole;
    T* own;     // where sums and differences of lines go
    T* folded;  // by tap; null where all is zero
  };

  struct Local {
    T *tile, *bias, *copies, *zeros, *sums;
    std::vector<Line> lines;
    std::vector<int64_t> offset[8];  // of left sides from `zeros`, by parity
    std::vector<StoreArgs<T>> stores;
    int64_t folded;  // input lines of the chunk before this one are folded along the width
  };

  // Lines of the input from the first to the last one that a result needs.
  int64_t window() const { return p_.dilation[1] * (p_.kernel[1] - 1) + 1; }
  // Of a line and all that it is folded to.
  int64_t line_size() const { return (1 + p_.kernel[2]) * this->line_; }

  // Positions that leave together.
  int64_t stored(const Part& part) const { return turned_ ? kTurnedRows : part.rows; }

  bool folds_lines(const Fold& fold) const { return fold.axes.folds(0) || fold.axes.folds(1); }

  void run(const Fold& fold, const Chunk& c, const T* filters, Local& local) const {
    local.lines.resize(p_.kernel[0] * p_.kernel[1]);
    for (int64_t o = c.begin; o < c.end; ++o) {
      find_lines(fold, c, o, local);
      list_taps(fold, local);
      for (const Part& part : fold.parts) {
        multiply(fold, part, c, o, filters + part.first, local);
      }
    }
  }

  Line& line(Local& local, int64_t d, int64_t h) const { return local.lines[d * p_.kernel[1] + h]; }

  // The lines of the kernel at result line `o`, folded. What is folded along the width alone is kept for the
  // result lines that follow.
  void find_lines(const Fold& fold, const Chunk& c, int64_t o, Local& local) const {
    const bool outer = folds_lines(fold), width = fold.axes.folds(2);
    if (width && !outer) fold_window(fold, c, o, local);
    for (int64_t d = 0; d < p_.kernel[0]; ++d)
      for (int64_t h = 0; h < p_.kernel[1]; ++h) {
        const int64_t deep = this->source(0, c.plane, d), at = this->source(1, o, h);
        const bool there = this->inside(0, deep) && this->inside(1, at);
        T* own = outer ? local.sums + (d * p_.kernel[1] + h) * line_size() : window_line(c, d, at, local);
        const T* whole = there ? local.copies + this->copied(c, d, at) : local.zeros;
        line(local, d, h) = {whole, own, there || outer ? own + this->line_ : nullptr};
      }
    for (int i = 0; i < fold.axes.folds(); ++i)
      if (fold.axes.axis(i) < 2) fold_lines(fold.axes, fold.axes.axis(i), local);
    if (width && outer)
      for (Line& l : local.lines) fold_width(fold.axes, l);
  }

  T* window_line(const Chunk& c, int64_t d, int64_t at, const Local& local) const {
    const int64_t place = (at - this->source(1, c.begin, 0)) % window();
    return local.sums + (d * window() + place) * line_size();
  }

  // Folds the lines of the window that were not in the last one.
  void fold_window(const Fold& fold, const Chunk& c, int64_t o, Local& local) const {
    const int64_t first = this->source(1, o, 0), end = first + window();
    if (o == c.begin) local.folded = first;
    for (int64_t at = std::max(first, local.folded); at < end; ++at)
      for (int64_t d = 0; d < p_.kernel[0]; ++d) {
        if (!this->inside(0, this->source(0, c.plane, d)) || !this->inside(1, at)) continue;
        T* own = window_line(c, d, at, local);
        fold_width(fold.axes, {local.copies + this->copied(c, d, at), own, own + this->line_});
      }
    local.folded = end;
  }

  void fold_lines(const FoldedAxes& axes, int axis, Local& local) const {
    for (int64_t d = 0; d < p_.kernel[0]; ++d)
      for (int64_t h = 0; h < p_.kernel[1]; ++h) {
        const int64_t tap = axis == 0 ? d : h, other = axes.mirror(axis, tap);
        if (tap >= other) continue;
        Line &a = line(local, d, h), &b = axis == 0 ? line(local, other, h) : line(local, d, other);
        this->kernels_.add_subtract(a.whole, b.whole, this->line_, a.own, b.own);
        a.whole = a.own, b.whole = b.own;
      }
  }

  void fold_width(const FoldedAxes& axes, const Line& l) const {
    const int64_t step = p_.dilation[2] * p_.channels;
    for (int64_t w = 0; w < axes.mirror(2, w); ++w) {
      const int64_t other = axes.mirror(2, w);
      this->kernels_.add_subtract(l.whole + w * step, l.whole + other * step, reach_,
                                  l.folded + w * this->line_, l.folded + other * this->line_);
    }
  }

  void list_taps(const Fold& fold, Local& local) const {
    for (std::vector<int64_t>& offset : local.offset) offset.clear();
    const bool width = fold.axes.folds(2);
    for_taps(p_.kernel, [&](const Triple& tap) {
      const Line& l = line(local, tap[0], tap[1]);
      const bool pair = width && tap[2] != fold.axes.mirror(2, tap[2]);
      const T* at = l.whole + (pair ? 0 : tap[2] * p_.dilation[2] * p_.channels);
      if (pair && l.folded) at = l.folded + tap[2] * this->line_;
      std::vector<int64_t>& offset = local.offset[fold.axes.parity(tap)];
      for (int64_t c = 0; c < p_.channels; ++c) offset.push_back(at + c - local.zeros);
    });
  }

  // Where the results of each block of orbits go, at the first position of a line.
  void list_stores(const Fold& fold, const Part& part, const Chunk& c, int64_t o, const int64_t* offset,
                   Local& local) const {
    const int64_t channel_stride = m_.out.channel_stride;
    T* line = m_.out.data + c.image * m_.out.batch_stride + c.plane * m_.out.stride[0] + o * m_.out.stride[1];
    local.stores.clear();
    for (const ColumnBlock& block : part.blocks) {
      const int64_t column = block.vector * this->lanes_;
      StoreArgs<T> s{};
      s.tile = local.tile, s.ld = block.vectors * this->lanes_, s.parity_stride = stored(part) * s.ld;
      s.cols = std::min(s.ld, fold.segment->rows - column), s.lines = 1;
      (turned_ ? s.col_offset : s.row_offset) = offset;
      for (int i = 0; i < fold.axes.parities(); ++i) {
        const int64_t channel = channel_of(fold, part, c, i) + column;
        s.out[i] = line + channel * channel_stride;
        if (m_.bias) s.bias[i] = turned_ ? local.bias + i * padded_ + column : m_.bias + channel;
      }
      local.stores.push_back(s);
    }
  }

  int64_t channel_of(const Fold& fold, const Part& part, const Chunk& c, int parity) const {
    return c.group * p_.filters + member_channel(*fold.segment, fold.axes.member(part.base, parity));
  }

  // The store of contiguous positions reads whole vectors of it.
  void pad_bias(const Fold& fold, const Part& part, const Chunk& c, const Local& local) const {
    for (int i = 0; i < fold.axes.parities() && m_.bias && turned_; ++i) {
      T* to = local.bias + i * padded_;
      std::copy_n(m_.bias + channel_of(fold, part, c, i), fold.segment->rows, to);
      std::fill(to + fold.segment->rows, to + padded_, T(0));
    }
  }

  // Results of the positions that are multiplied next: stores that miss the caches wait for each other.
  void ask_for_results(const StoreArgs<T>& s, int parities, int64_t positions) const {
    const int64_t rows = turned_ ? s.cols : positions, run = turned_ ? positions : s.cols;
    const int64_t* offset = turned_ ? s.col_offset : s.row_offset;
    for (int64_t r = 0; r < rows; ++r)
      for (int i = 0; i < parities; ++i)
        for (int64_t at = 0; at < run; at += kCacheLine / static_cast<int64_t>(sizeof(T)))
          __builtin_prefetch(s.out[i] + offset[r] + at, 1);
  }

  void multiply(const Fold& fold, const Part& part, const Chunk& c, int64_t o, const T* filters,
                Local& local) const {
    const int64_t position = m_.out.stride[2], step = turned_ ? m_.out.channel_stride : position;
    int64_t offset[kMaxVectors * kMostLanes + kMostRows];  // of the lanes or of the rows of a tile
    for (int64_t i = 0; i < static_cast<int64_t>(std::size(offset)); ++i) offset[i] = i * step;
    pad_bias(fold, part, c, local);
    list_stores(fold, part, c, o, offset, local);
    for_pieces(p_.out[2], stored(part), [&](int64_t p0, int64_t positions) {
      for (size_t b = 0; b < part.blocks.size(); ++b) {
        StoreArgs<T>& s = local.stores[b];
        ask_for_results(s, fold.axes.parities(), positions);
        multiply_block(fold, part, part.blocks[b], s, p0, positions, filters, local);
        s.rows = positions;
        (turned_ ? this->kernels_.store_turned : this->kernels_.store)[kPlain][fold.axes.folds()](s);
        for (int i = 0; i < fold.axes.parities(); ++i) s.out[i] += positions * position;
      }
    });
  }

  // Positions [p0, p0 + positions) of one block of orbits, all parities.
  void multiply_block(const Fold& fold, const Part& part, const ColumnBlock& block, const StoreArgs<T>& s,
                      int64_t p0, int64_t positions, const T* filters, const Local& local) const {
    TapsArgs<T> g{};
    g.lda = p_.stride[2] * p_.channels, g.ldb = part.filters.ld(), g.ldc = s.ld;
    for_pieces(positions, part.rows, [&](int64_t r0, int64_t count) {
      g.a = local.zeros + (p0 + r0) * g.lda;
      g.b = filters + block.vector * this->lanes_;
      for (int i = 0; i < fold.axes.parities(); ++i) {
        g.offset = local.offset[i].data(), g.taps = static_cast<int64_t>(local.offset[i].size());
        g.c = local.tile + i * s.parity_stride + r0 * s.ld;
        this->kernels_.taps(static_cast<int>(count), block.vectors, g);
        g.b += g.taps * g.ldb;
      }
    });
  }

  const MultiplyTensors<T>& m_;
  bool turned_;    // positions are contiguous in the result, and channels are not
  int64_t reach_;  // of the sums along the width that are read
  std::vector<Fold> folds_;
  int64_t filters_;     // elements of a group
  int64_t tile_ = 0;    // elements of the results of all parities
  int64_t padded_ = 0;  // orbits of a part, in whole vectors
};

}  // namespace

template <class T>
void direct_fold_fprop(const Problem& p, int axes, const MultiplyTensors<T>& tensors) {
  DirectFold<T>(p, axes, tensors)();
}

template void direct_fold_fprop<float>(const Problem&, int, const MultiplyTensors<float>&);
template void direct_fold_fprop<double>(const Problem&, int, const MultiplyTensors<double>&);

}  // namespace symconv
