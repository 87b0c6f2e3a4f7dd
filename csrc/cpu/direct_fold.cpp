// Stems: short contractions without a panel, folded line by line.
#include "direct_fold.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "direct_filters.h"
#include "direct_lines.h"
#include "folded_products.h"

namespace symconv {

namespace {

// R: the way to run whose kernels store results, of the same element.
template <class T, class R = T>
class DirectFold : DirectLines<T> {
 public:
  DirectFold(const Problem& p, int axes, const MultiplyTensors<T>& tensors)
      : DirectLines<T>(p, tensors.out.channel_stride != 1), m_(tensors) {
    for (const Segment& segment : p.segments) folds_.push_back({&segment, FoldedAxes(p, segment, axes), {}});
    int64_t filters = 0;
    for (Fold& fold : folds_) {
      for (int base = 0; base < fold.axes.bases(); ++base) {
        Part part{base, filters, {p, *fold.segment, fold.axes, base, this->lanes_}, {}};
        for (int64_t k = 0; k < this->taps_; ++k) part.filter_row.push_back(k * part.filters.ld());
        filters += part.filters.elements();
        fold.parts.push_back(std::move(part));
      }
    }
    filters_ = filters;
  }

  void operator()() {
    const WideWeight<T> weight(p_, m_.weight, m_.weight_group_stride);
    const FoldedProducts<T, R> products(p_, m_, planes_);
    Scratch<S> filters(filters_ * p_.groups);
    for (int64_t g = 0; g < p_.groups; ++g)
      for (const Fold& fold : folds_)
        for (const Part& part : fold.parts)
          part.filters.make(weight.of_group(g), filters.data() + g * filters_ + part.first);
    const int64_t tasks = this->chunks(p_.out[0], p_.out[1]), slices = std::min(tasks, this->threads_);
    const int64_t lines = p_.kernel[0] * std::max(p_.kernel[1], window());
    const int64_t sums = lines * line_size();
    // Vectors of positions end past the last one.
    const int64_t past = planes_ ? kMaxVectors * this->lanes_ : 0;
    int64_t tile = 0;
    for (const Fold& fold : folds_) tile = std::max(tile, products.tile_elements(fold.axes.parities()));
    const int64_t each = round_up(tile + this->copy_elements() + this->line_ + sums + past, this->lanes_);
    Scratch<S> memory(each * slices);
    parallel_slices(tasks, slices, [&](int64_t begin, int64_t end, int64_t slice) {
      Local local;
      local.tile = memory.data() + slice * each;
      local.copies = local.tile + tile;
      local.zeros = local.copies + this->copy_elements();
      local.sums = local.zeros + this->line_;
      std::fill(local.zeros, local.sums, S(0));
      for (int64_t i = begin; i < end; ++i) {
        const Chunk c = this->chunk(i, p_.out[0], p_.out[1]);
        this->copy_lines(c, m_.source, local.copies);
        for (const Fold& fold : folds_) run(fold, c, filters.data() + c.group * filters_, products, local);
      }
      std::atomic_thread_fence(std::memory_order_seq_cst);  // of streamed results
    });
  }

 private:
  using typename DirectLines<T>::Chunk, typename DirectLines<T>::E, typename DirectLines<T>::S;
  using DirectLines<T>::p_, DirectLines<T>::planes_;

  // Members that share their folded filters, but for signs.
  struct Part {
    int base;
    int64_t first;  // of its filters
    FoldedFilters<S> filters;
    std::vector<int64_t> filter_row;  // of each tap and channel
  };
  struct Fold {
    const Segment* segment;
    FoldedAxes axes;
    std::vector<Part> parts;
  };

  // A line of the kernel: what its taps read. Along the width the line as it is, or sums and differences of
  // pairs of taps.
  struct Line {
    const S* whole;
    S* own;     // where sums and differences of lines go
    S* folded;  // by tap; null where all is zero
  };

  struct Local {
    S *tile, *copies, *zeros, *sums;
    std::vector<Line> lines;
    std::vector<int64_t> offset;  // of taps from `zeros`
    int64_t taps[kMaxSources];    // of each parity
    int64_t folded;               // input lines of the chunk before this one are folded along the width
  };

  // Lines of the input from the first to the last one that a result needs.
  int64_t window() const { return p_.dilation[1] * (p_.kernel[1] - 1) + 1; }
  // Of a line and all that it is folded to.
  int64_t line_size() const { return (1 + p_.kernel[2]) * this->line_; }

  bool folds_lines(const Fold& fold) const { return fold.axes.folds(0) || fold.axes.folds(1); }

  void run(const Fold& fold, const Chunk& c, const S* filters, const FoldedProducts<T, R>& products,
           Local& local) const {
    local.lines.resize(p_.kernel[0] * p_.kernel[1]);
    for (int64_t o = c.begin; o < c.end; ++o) {
      find_lines(fold, c, o, local);
      list_taps(fold, local);
      for (const Part& part : fold.parts) {
        products({c.group, c.image, c.plane, o, *fold.segment, fold.axes, part.base, filters + part.first,
                  part.filters.ld(), part.filter_row.data(), local.zeros, local.offset.data(),
                  this->position_step(), local.taps},
                 local.tile);
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
        S* own = outer ? local.sums + (d * p_.kernel[1] + h) * line_size() : window_line(c, d, at, local);
        const S* whole = there ? local.copies + this->copied(c, d, at) : local.zeros;
        line(local, d, h) = {whole, own, there || outer ? own + this->line_ : nullptr};
      }
    for (int i = 0; i < fold.axes.folds(); ++i)
      if (fold.axes.axis(i) < 2) fold_lines(fold.axes, fold.axes.axis(i), local);
    if (width && outer)
      for (Line& l : local.lines) fold_width(fold.axes, l);
  }

  S* window_line(const Chunk& c, int64_t d, int64_t at, const Local& local) const {
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
        S* own = window_line(c, d, at, local);
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
    const int64_t runs = planes_ ? p_.channels : 1, step = this->channel_step();
    const int64_t run = planes_ ? p_.out[2] : (p_.stride[2] * (p_.out[2] - 1) + 1) * p_.channels;
    for (int64_t w = 0; w < axes.mirror(2, w); ++w) {
      const int64_t other = axes.mirror(2, w);
      const S *a = l.whole + this->tap_at(w), *b = l.whole + this->tap_at(other);
      S *sum = l.folded + w * this->line_, *difference = l.folded + other * this->line_;
      for (int64_t at = 0; at < runs * step; at += step)
        this->kernels_.add_subtract(a + at, b + at, run, sum + at, difference + at);
    }
  }

  // Where taps are read, one parity after the other.
  void list_taps(const Fold& fold, Local& local) const {
    local.offset.clear();
    const bool width = fold.axes.folds(2);
    for (int parity = 0; parity < fold.axes.parities(); ++parity) {
      const size_t first = local.offset.size();
      for_taps(p_.kernel, [&](const Triple& tap) {
        if (fold.axes.parity(tap) != parity) return;
        const Line& l = line(local, tap[0], tap[1]);
        const bool pair = width && tap[2] != fold.axes.mirror(2, tap[2]);
        const S* at = l.whole + (pair ? 0 : this->tap_at(tap[2]));
        if (pair && l.folded) at = l.folded + tap[2] * this->line_;
        for (int64_t c = 0; c < p_.channels; ++c)
          local.offset.push_back(at + c * this->channel_step() - local.zeros);
      });
      local.taps[parity] = static_cast<int64_t>(local.offset.size() - first);
    }
  }

  const MultiplyTensors<T>& m_;
  std::vector<Fold> folds_;
  int64_t filters_;  // elements of a group
};

}  // namespace

template <class T>
void direct_fold_fprop(const Problem& p, int axes, const MultiplyTensors<T>& tensors) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    if (has_pairs()) return DirectFold<T, Pair>(p, axes, tensors)();  // they round by an instruction
  }
  DirectFold<T>(p, axes, tensors)();
}

template void direct_fold_fprop<float>(const Problem&, int, const MultiplyTensors<float>&);
template void direct_fold_fprop<double>(const Problem&, int, const MultiplyTensors<double>&);
template void direct_fold_fprop<Half>(const Problem&, int, const MultiplyTensors<Half>&);
template void direct_fold_fprop<BFloat16>(const Problem&, int, const MultiplyTensors<BFloat16>&);

}  // namespace symconv
