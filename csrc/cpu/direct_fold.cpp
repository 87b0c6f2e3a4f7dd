// Stems: short contractions without a panel, folded line by line.
#include "direct_fold.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "direct_filters.h"
#include "direct_lines.h"

namespace symconv {

namespace {

// Results that would fill the caches go past them, where runs of channels are whole cache lines: at half the
// traffic, since nothing is read for them.
constexpr int64_t kStreamedBytes = 8 << 20;
constexpr int64_t kMostRows = 32;         // of a tile of the matrix kernel
constexpr int64_t kPlaneTile = 32 << 10;  // bytes of a tile where positions are the lanes, about

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
        Part part{base, filters, {p, *fold.segment, fold.axes, base, this->lanes_}, {}, {}, kMostRows};
        planes_ ? plan_planes(fold, part) : plan_pixels(fold, part);
        filters += part.filters.elements();
        fold.parts.push_back(std::move(part));
      }
    }
    filters_ = filters;
    streams_ = !planes_ && !this->kWidens && may_stream();
  }

  void operator()() {
    const WideWeight<T> weight(p_, m_.weight, m_.weight_group_stride);
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
    const int64_t each = round_up(tile_ + this->copy_elements() + this->line_ + sums + past, this->lanes_);
    Scratch<S> memory(each * slices);
    parallel_slices(tasks, slices, [&](int64_t begin, int64_t end, int64_t slice) {
      Local local;
      local.tile = memory.data() + slice * each;
      local.copies = local.tile + tile_;
      local.zeros = local.copies + this->copy_elements();
      local.sums = local.zeros + this->line_;
      std::fill(local.zeros, local.sums, S(0));
      for (int64_t i = begin; i < end; ++i) {
        const Chunk c = this->chunk(i, p_.out[0], p_.out[1]);
        this->copy_lines(c, m_.source, local.copies);
        for (const Fold& fold : folds_) run(fold, c, filters.data() + c.group * filters_, local);
      }
      std::atomic_thread_fence(std::memory_order_seq_cst);  // of streamed results
    });
  }

 private:
  using typename DirectLines<T>::Chunk, typename DirectLines<T>::E, typename DirectLines<T>::S;
  using DirectLines<T>::p_, DirectLines<T>::planes_;

  // Pixels: rows of a tile are positions, columns orbits. Planes: the other way round.
  struct Part {
    int base;
    int64_t first;  // of its filters
    FoldedFilters<S> filters;
    std::vector<int64_t> filter_row;  // of each tap and channel of a parity
    std::vector<ColumnBlock> blocks;
    int64_t rows;           // of a tile
    int64_t positions = 0;  // of a tile (planes)
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
    std::vector<int64_t> offset[8];  // of taps from `zeros`, by parity
    std::vector<StoreArgs<R>> stores;
    int64_t folded;  // input lines of the chunk before this one are folded along the width
  };

  // Lines of the input from the first to the last one that a result needs.
  int64_t window() const { return p_.dilation[1] * (p_.kernel[1] - 1) + 1; }
  // Of a line and all that it is folded to.
  int64_t line_size() const { return (1 + p_.kernel[2]) * this->line_; }

  bool may_stream() const {
    const int64_t size = static_cast<int64_t>(sizeof(E)), line = kCacheLine / size;
    bool whole =
        reinterpret_cast<uintptr_t>(m_.out.data) % kCacheLine == 0 && m_.out.batch_stride % line == 0;
    for (const int64_t stride : m_.out.stride) whole = whole && stride % line == 0;
    for (const Segment& s : p_.segments)
      whole = whole && s.rows % line == 0 && s.first % line == 0 && s.copies % line == 0;
    return whole && p_.filters % line == 0 &&
           p_.batch * p_.groups * p_.filters * p_.out[0] * p_.out[1] * p_.out[2] * size >= kStreamedBytes;
  }

  void plan_pixels(const Fold& fold, Part& part) {
    list_filters(fold, part);
    part.blocks = column_blocks(fold.segment->rows, this->lanes_);
    for (const ColumnBlock& block : part.blocks)
      part.rows = std::min<int64_t>(part.rows, this->kernels_.max_rows[block.vectors]);
    for (const ColumnBlock& block : part.blocks)
      tile_ = std::max(tile_, fold.axes.parities() * part.rows * block.vectors * this->lanes_);
  }

  // Tiles of equal width; columns of the last vector may not exist.
  void plan_planes(const Fold& fold, Part& part) {
    list_filters(fold, part);
    const int64_t orbits = std::min<int64_t>(fold.segment->rows, this->kernels_.max_rows[2]);
    const int64_t bytes = fold.axes.parities() * orbits * static_cast<int64_t>(sizeof(S));
    const int64_t most = std::max<int64_t>(kMaxVectors * this->lanes_, kPlaneTile / bytes);
    part.positions = round_up(ceil_div(p_.out[2], ceil_div(p_.out[2], most)), this->lanes_);
    part.blocks = column_blocks(part.positions, this->lanes_);
    part.rows = orbits;
    for (const ColumnBlock& block : part.blocks)
      part.rows = std::min<int64_t>(part.rows, this->kernels_.max_rows[block.vectors]);
    tile_ = std::max(tile_, fold.axes.parities() * part.rows * part.positions);
  }

  void list_filters(const Fold& fold, Part& part) const {
    int64_t most = 1;  // taps of a parity
    for (int axis = 0; axis < kAxes; ++axis)
      most *= fold.axes.folds(axis) ? ceil_div(p_.kernel[axis], 2) : p_.kernel[axis];
    for (int64_t k = 0; k < most * p_.channels; ++k) part.filter_row.push_back(k * part.filters.ld());
  }

  bool folds_lines(const Fold& fold) const { return fold.axes.folds(0) || fold.axes.folds(1); }

  void run(const Fold& fold, const Chunk& c, const S* filters, Local& local) const {
    local.lines.resize(p_.kernel[0] * p_.kernel[1]);
    for (int64_t o = c.begin; o < c.end; ++o) {
      find_lines(fold, c, o, local);
      list_taps(fold, local);
      for (const Part& part : fold.parts) {
        planes_ ? multiply_planes(fold, part, c, o, filters + part.first, local)
                : multiply_pixels(fold, part, c, o, filters + part.first, local);
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

  void list_taps(const Fold& fold, Local& local) const {
    for (std::vector<int64_t>& offset : local.offset) offset.clear();
    const bool width = fold.axes.folds(2);
    for_taps(p_.kernel, [&](const Triple& tap) {
      const Line& l = line(local, tap[0], tap[1]);
      const bool pair = width && tap[2] != fold.axes.mirror(2, tap[2]);
      const S* at = l.whole + (pair ? 0 : this->tap_at(tap[2]));
      if (pair && l.folded) at = l.folded + tap[2] * this->line_;
      std::vector<int64_t>& offset = local.offset[fold.axes.parity(tap)];
      for (int64_t c = 0; c < p_.channels; ++c) offset.push_back(at + c * this->channel_step() - local.zeros);
    });
  }

  int64_t channel_of(const Fold& fold, const Part& part, const Chunk& c, int parity) const {
    return c.group * p_.filters + member_channel(*fold.segment, fold.axes.member(part.base, parity));
  }

  // Results of a line for one block of orbits, from position `at` on; `offset` is that of the rows.
  StoreArgs<R> stores(const Fold& fold, const Part& part, const Chunk& c, int64_t o, int64_t at,
                      int64_t orbit, const int64_t* offset, const Local& local) const {
    StoreArgs<R> s{};
    s.stream = streams_;
    s.tile = local.tile, s.lines = 1, s.row_offset = offset, s.bias_of_row = planes_;
    E* line = m_.out.data + c.image * m_.out.batch_stride + c.plane * m_.out.stride[0] +
              o * m_.out.stride[1] + at * m_.out.stride[2];
    for (int i = 0; i < fold.axes.parities(); ++i) {
      const int64_t channel = channel_of(fold, part, c, i) + orbit;
      s.out[i] = line + channel * m_.out.channel_stride;
      if (m_.bias) s.bias[i] = m_.bias + channel;
    }
    return s;
  }

  // Results of what is multiplied next: stores that miss the caches wait for each other.
  void ask_for_results(const StoreArgs<R>& s, int parities) const {
    for (int64_t r = 0; r < s.rows; ++r)
      for (int i = 0; i < parities; ++i)
        for (int64_t at = 0; at < s.cols; at += kCacheLine / static_cast<int64_t>(sizeof(E)))
          __builtin_prefetch(s.out[i] + s.row_offset[r] + at, 1);
  }

  // A line of results, a few positions of all orbits at a time.
  void multiply_pixels(const Fold& fold, const Part& part, const Chunk& c, int64_t o, const S* filters,
                       Local& local) const {
    int64_t offset[kMostRows];
    for (int64_t i = 0; i < kMostRows; ++i) offset[i] = i * m_.out.stride[2];
    local.stores.clear();
    for (const ColumnBlock& block : part.blocks) {
      const int64_t orbit = block.vector * this->lanes_;
      StoreArgs<R> s = stores(fold, part, c, o, 0, orbit, offset, local);
      s.ld = block.vectors * this->lanes_, s.parity_stride = part.rows * s.ld;
      s.cols = std::min(s.ld, fold.segment->rows - orbit);
      local.stores.push_back(s);
    }
    TapsArgs<S> g{};
    g.lda = this->position_step(), g.b_offset = part.filter_row.data();
    for_pieces(p_.out[2], part.rows, [&](int64_t p0, int64_t positions) {
      g.a = local.zeros + p0 * g.lda;
      for (size_t b = 0; b < part.blocks.size(); ++b) {
        StoreArgs<R>& s = local.stores[b];
        s.rows = positions;
        if (!streams_) ask_for_results(s, fold.axes.parities());
        g.b = filters + part.blocks[b].vector * this->lanes_, g.ldc = s.ld;
        for (int i = 0; i < fold.axes.parities(); ++i) {
          g.a_offset = local.offset[i].data(), g.taps = static_cast<int64_t>(local.offset[i].size());
          g.c = local.tile + i * s.parity_stride;
          this->kernels_.taps(static_cast<int>(positions), part.blocks[b].vectors, g);
          g.b += g.taps * part.filters.ld();
        }
        stores_.store[kPlain][fold.axes.folds()](s);
        for (int i = 0; i < fold.axes.parities(); ++i) s.out[i] += positions * m_.out.stride[2];
      }
    });
  }

  // A line of results, a few orbits at a time: each is stored in one run.
  void multiply_planes(const Fold& fold, const Part& part, const Chunk& c, int64_t o, const S* filters,
                       const Local& local) const {
    int64_t offset[kMostRows];
    for (int64_t i = 0; i < kMostRows; ++i) offset[i] = i * m_.out.channel_stride;
    TapsArgs<S> g{};
    g.a_offset = part.filter_row.data(), g.lda = 1, g.ldc = part.positions;
    for (int64_t p0 = 0; p0 < p_.out[2]; p0 += part.positions)
      for_pieces(fold.segment->rows, part.rows, [&](int64_t orbit, int64_t orbits) {
        StoreArgs<R> s = stores(fold, part, c, o, p0, orbit, offset, local);
        s.ld = part.positions, s.parity_stride = orbits * s.ld;
        s.rows = orbits, s.cols = std::min(part.positions, p_.out[2] - p0);
        ask_for_results(s, fold.axes.parities());
        g.a = filters + orbit;
        for (int i = 0; i < fold.axes.parities(); ++i) {
          g.b_offset = local.offset[i].data(), g.taps = static_cast<int64_t>(local.offset[i].size());
          for (const ColumnBlock& block : part.blocks) {
            const int64_t column = block.vector * this->lanes_;
            if (column >= s.cols) break;
            g.b = local.zeros + p0 + column, g.c = local.tile + i * s.parity_stride + column;
            this->kernels_.taps(static_cast<int>(orbits), block.vectors, g);
          }
          g.a += g.taps * part.filters.ld();
        }
        stores_.store[kPlain][fold.axes.folds()](s);
      });
  }

  const MultiplyTensors<T>& m_;
  const Kernels<R>& stores_ = select_kernels<R>();
  std::vector<Fold> folds_;
  bool streams_;
  int64_t filters_;   // elements of a group
  int64_t tile_ = 0;  // elements of the results of all parities
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
