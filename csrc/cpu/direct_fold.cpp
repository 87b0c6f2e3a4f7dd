// Stems: short contractions without a panel, folded line by line.
#include "direct_fold.h"

#include <algorithm>
#include <vector>

#include "direct_lines.h"

namespace symconv {

namespace {

constexpr int64_t kMostRows = 32;  // of a tile

// The fold of one segment along some of its tied axes.
class Axes {
 public:
  Axes(const Problem& p, const Segment& segment, int folded) : p_(p) {
    int tied[kAxes];
    ties_ = tied_axes(segment.mask, tied);
    for (int i = 0; i < ties_; ++i) {
      if (folded >> (kAxes - 1 - tied[i]) & 1) {
        axis_[folds_] = tied[i], bit_[folds_++] = 1 << i;
      } else {
        rest_.push_back(1 << i);
      }
    }
  }

  int parities() const { return 1 << folds_; }
  int folds() const { return folds_; }
  int axis(int i) const { return axis_[i]; }
  bool folds(int axis) const { return std::find(axis_, axis_ + folds_, axis) != axis_ + folds_; }
  int64_t mirror(int axis, int64_t tap) const { return p_.kernel[axis] - 1 - tap; }

  // Of folded filters: along a folded axis the first taps hold even parts, the last ones odd parts.
  int parity(const Triple& tap) const {
    int parity = 0;
    for (int i = 0; i < folds_; ++i) parity |= (tap[axis_[i]] > mirror(axis_[i], tap[axis_[i]])) << i;
    return parity;
  }

  // Members that are not each other's mirror image on a folded axis.
  int bases() const { return 1 << rest_.size(); }
  // Orbit member, as a subset of the tied axes.
  int member(int base, int parity) const {
    int member = 0;
    for (size_t i = 0; i < rest_.size(); ++i)
      if (base >> i & 1) member |= rest_[i];
    for (int i = 0; i < folds_; ++i)
      if (parity >> i & 1) member |= bit_[i];
    return member;
  }

 private:
  const Problem& p_;
  int ties_ = 0, folds_ = 0, axis_[kAxes], bit_[kAxes];
  std::vector<int> rest_;
};

template <class F>
void for_taps(const Triple& kernel, const F& f) {
  for (int64_t d = 0; d < kernel[0]; ++d)
    for (int64_t h = 0; h < kernel[1]; ++h)
      for (int64_t w = 0; w < kernel[2]; ++w) f(Triple{d, h, w});
}

// Filters of one base member of a segment, folded: [parity][tap][channel][orbit].
template <class T>
class FoldedFilters {
 public:
  FoldedFilters(const Problem& p, const Segment& segment, const Axes& axes, int base, int lanes)
      : p_(p), segment_(segment), axes_(axes), base_(base), ld_(round_up(segment.rows, lanes)) {
    row_.resize(p.kernel[0] * p.kernel[1] * p.kernel[2]);
    int64_t rows = 0;
    for (int parity = 0; parity < axes.parities(); ++parity)
      for_taps(p.kernel, [&](const Triple& tap) {
        if (axes.parity(tap) == parity) row_[index(tap)] = rows, rows += p.channels;
      });
  }

  int64_t ld() const { return ld_; }
  int64_t elements() const { return static_cast<int64_t>(row_.size()) * p_.channels * ld_; }

  void make(WeightView<const T> weight, T* out) const {
    weight.data += segment_.first * weight.orbit_stride;
    for_taps(p_.kernel, [&](const Triple& tap) {
      const Triple from = mirrored(tap);
      const T* at = weight.data;
      for (int axis = 0; axis < kAxes; ++axis) at += from[axis] * weight.tap_stride[axis];
      for (int64_t c = 0; c < p_.channels; ++c) {
        T* row = out + (row_[index(tap)] + c) * ld_;
        for (int64_t u = 0; u < segment_.rows; ++u)
          row[u] = at[c * weight.channel_stride + u * weight.orbit_stride];
        std::fill(row + segment_.rows, row + ld_, T(0));
      }
    });
    for (int i = 0; i < axes_.folds(); ++i) fold(axes_.axis(i), out);
  }

 private:
  int64_t index(const Triple& tap) const { return (tap[0] * p_.kernel[1] + tap[1]) * p_.kernel[2] + tap[2]; }

  Triple mirrored(Triple tap) const {
    int tied[kAxes];
    const int ties = tied_axes(segment_.mask, tied), member = axes_.member(base_, 0);
    for (int i = 0; i < ties; ++i)
      if (member >> i & 1) tap[tied[i]] = axes_.mirror(tied[i], tap[tied[i]]);
    return tap;
  }

  void fold(int axis, T* out) const {
    for_taps(p_.kernel, [&](const Triple& tap) {
      Triple other = tap;
      other[axis] = axes_.mirror(axis, tap[axis]);
      if (tap[axis] >= other[axis]) return;
      T *a = out + row_[index(tap)] * ld_, *b = out + row_[index(other)] * ld_;
      for (int64_t i = 0; i < p_.channels * ld_; ++i) {
        const T sum = a[i] + b[i], difference = a[i] - b[i];
        a[i] = sum / 2, b[i] = difference / 2;
      }
    });
  }

  const Problem& p_;
  const Segment& segment_;
  const Axes& axes_;
  int base_;
  int64_t ld_;
  std::vector<int64_t> row_;  // first one, by tap
};

template <class T>
class DirectFold : DirectLines<T> {
 public:
  DirectFold(const Problem& p, int axes, const MultiplyTensors<T>& tensors)
      : DirectLines<T>(p), m_(tensors), reach_((p.stride[2] * (p.out[2] - 1) + 1) * p.channels) {
    for (const Segment& segment : p.segments) folds_.push_back({&segment, Axes(p, segment, axes), {}});
    int64_t filters = 0;
    for (Fold& fold : folds_) {
      for (int base = 0; base < fold.axes.bases(); ++base) {
        Part part{base, filters, {p, *fold.segment, fold.axes, base, this->lanes_}, {}, kMostRows};
        part.blocks = column_blocks(fold.segment->rows, this->lanes_);
        for (const ColumnBlock& block : part.blocks)
          part.rows = std::min<int64_t>(part.rows, this->kernels_.max_rows[block.vectors]);
        for (const ColumnBlock& block : part.blocks)
          tile_ = std::max(tile_, fold.axes.parities() * part.rows * block.vectors * this->lanes_);
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
    const int64_t each = round_up(tile_ + this->copy_elements() + this->line_ + sums, this->lanes_);
    Scratch<T> memory(each * slices);
    parallel_slices(tasks, slices, [&](int64_t begin, int64_t end, int64_t slice) {
      Local local;
      local.tile = memory.data() + slice * each;
      local.copies = local.tile + tile_;
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
    Axes axes;
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
    T *tile, *copies, *zeros, *sums;
    std::vector<Line> lines;
    std::vector<int64_t> offset[8];  // of left sides from `zeros`, by parity
    std::vector<StoreArgs<T>> stores;
    int64_t folded;  // input lines of the chunk before this one are folded along the width
  };

  // Lines of the input from the first to the last one that a result needs.
  int64_t window() const { return p_.dilation[1] * (p_.kernel[1] - 1) + 1; }
  // Of a line and all that it is folded to.
  int64_t line_size() const { return (1 + p_.kernel[2]) * this->line_; }

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

  void fold_lines(const Axes& axes, int axis, Local& local) const {
    for (int64_t d = 0; d < p_.kernel[0]; ++d)
      for (int64_t h = 0; h < p_.kernel[1]; ++h) {
        const int64_t tap = axis == 0 ? d : h, other = axes.mirror(axis, tap);
        if (tap >= other) continue;
        Line &a = line(local, d, h), &b = axis == 0 ? line(local, other, h) : line(local, d, other);
        this->kernels_.add_subtract(a.whole, b.whole, this->line_, a.own, b.own);
        a.whole = a.own, b.whole = b.own;
      }
  }

  void fold_width(const Axes& axes, const Line& l) const {
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
  void list_stores(const Fold& fold, const Part& part, const Chunk& c, int64_t o, const int64_t* rows,
                   Local& local) const {
    T* line = m_.out.data + c.image * m_.out.batch_stride + c.plane * m_.out.stride[0] + o * m_.out.stride[1];
    local.stores.clear();
    for (const ColumnBlock& block : part.blocks) {
      const int64_t column = block.vector * this->lanes_;
      StoreArgs<T> s{};
      s.tile = local.tile, s.ld = block.vectors * this->lanes_, s.parity_stride = part.rows * s.ld;
      s.cols = std::min(s.ld, fold.segment->rows - column), s.lines = 1, s.row_offset = rows;
      for (int i = 0; i < fold.axes.parities(); ++i) {
        const int64_t channel =
            c.group * p_.filters + member_channel(*fold.segment, fold.axes.member(part.base, i)) + column;
        s.out[i] = line + channel;
        s.bias[i] = m_.bias ? m_.bias + channel : nullptr;
      }
      local.stores.push_back(s);
    }
  }

  void ask_for_results(const StoreArgs<T>& s, int parities, int64_t rows) const {
    for (int64_t r = 0; r < rows; ++r)
      for (int i = 0; i < parities; ++i)
        for (int64_t c = 0; c < s.cols; c += kCacheLine / static_cast<int64_t>(sizeof(T)))
          __builtin_prefetch(s.out[i] + s.row_offset[r] + c, 1);
  }

  void multiply(const Fold& fold, const Part& part, const Chunk& c, int64_t o, const T* filters,
                Local& local) const {
    const int parities = fold.axes.parities();
    int64_t rows[kMostRows + 1];
    for (int64_t i = 0; i <= part.rows; ++i) rows[i] = i * m_.out.stride[2];
    list_stores(fold, part, c, o, rows, local);
    TapsArgs<T> g{};
    g.lda = p_.stride[2] * p_.channels;
    for_pieces(p_.out[2], part.rows, [&](int64_t r0, int64_t count) {
      g.a = local.zeros + r0 * g.lda;
      for (size_t b = 0; b < part.blocks.size(); ++b) {
        const ColumnBlock& block = part.blocks[b];
        StoreArgs<T>& s = local.stores[b];
        ask_for_results(s, parities, count);
        g.b = filters + block.vector * this->lanes_, g.ldb = part.filters.ld(), g.ldc = s.ld;
        for (int i = 0; i < parities; ++i) {
          g.offset = local.offset[i].data(), g.taps = static_cast<int64_t>(local.offset[i].size());
          g.c = local.tile + i * s.parity_stride;
          this->kernels_.taps(static_cast<int>(count), block.vectors, g);
          g.b += g.taps * g.ldb;
        }
        s.rows = count;
        this->kernels_.store[kPlain][fold.axes.folds()](s);
        for (int i = 0; i < parities; ++i) s.out[i] += rows[count];
      }
    });
  }

  const MultiplyTensors<T>& m_;
  int64_t reach_;  // of the sums along the width that are read
  std::vector<Fold> folds_;
  int64_t filters_;   // elements of a group
  int64_t tile_ = 0;  // elements of the results of all parities
};

}  // namespace

template <class T>
void direct_fold_fprop(const Problem& p, int axes, const MultiplyTensors<T>& tensors) {
  DirectFold<T>(p, axes, tensors)();
}

template void direct_fold_fprop<float>(const Problem&, int, const MultiplyTensors<float>&);
template void direct_fold_fprop<double>(const Problem&, int, const MultiplyTensors<double>&);

}  // namespace symconv
