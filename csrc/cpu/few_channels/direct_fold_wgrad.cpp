// The weight gradient of stems: input lines folded as they are forward, upstream gradients folded over the
// members.
//
// Forward, results of a member are sums over the parities of folded filters times folded lines, with signs.
// So the gradient of a folded filter is its line times the upstream gradients of all members, summed with
// these signs, and the multiplications are those of the reduced weight.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "few_channels/direct_fold.h"
#include "few_channels/folded_lines.h"

namespace symconv {

namespace {

// Of upstream gradients that are folded and multiplied together: they stay in the first-level cache.
constexpr int64_t kPieceBytes = 40 << 10;
constexpr int64_t kLeastPositions = 32, kMostPositions = 384;  // the latter a chain of sums

template <class T>
class DirectFoldWgrad : FoldedLines<T> {
  using typename FoldedLines<T>::Chunk, typename FoldedLines<T>::Lines, typename FoldedLines<T>::E;
  using typename FoldedLines<T>::S, typename FoldedLines<T>::FoldedTaps;
  using FoldedLines<T>::p_;

 public:
  DirectFoldWgrad(const Problem& p, const View<const E>& grad) : FoldedLines<T>(p), grad_(grad) {
    for (const Segment& segment : p.segments) {
      const FoldedAxes axes(p, segment);
      Fold fold{&segment, axes, this->taps_of(axes), round_up(segment.rows, this->lanes_), sums_, 0};
      const int64_t position = axes.parities() * fold.ld;
      fold.positions =
          std::min(p.out[2], std::clamp(kPieceBytes / (position * static_cast<int64_t>(sizeof(S))),
                                        kLeastPositions, kMostPositions));
      sums_ += rows(fold) * fold.ld;
      folded_ = std::max(folded_, position * fold.positions);
      positions_ = std::max(positions_, fold.positions);
      folds_.push_back(std::move(fold));
    }
  }

  // Sums of each thread by themselves, added in fixed order. `bias`: null, or the gradients of all filters.
  void operator()(const View<const E>& input, const WeightView<E>& out, int64_t out_group_stride,
                  E* bias) const {
    const int64_t tasks = this->chunks(p_.out[0], p_.out[1]), slices = std::min(tasks, this->threads_);
    const int64_t sums = sums_ * p_.groups;
    const int64_t each =
        round_up(sums + folded_ + this->lines_elements() + this->line_ + room(), this->lanes_);
    Scratch<S> memory(each * slices);
    parallel_slices(tasks, slices, [&](int64_t begin, int64_t end, int64_t slice) {
      Local local{memory.data() + slice * each, {}, {}, {}, {}};
      local.folded = local.sums + sums;
      std::fill(local.sums, local.folded + folded_, S(0));
      local.ones = local.folded + folded_;
      local.room = local.ones + this->line_;
      std::fill(local.ones, local.room, S(1));
      local.lines = this->lines_in(local.room + room());
      for (int64_t i = begin; i < end; ++i) {
        const Chunk c = this->chunk(i, p_.out[0], p_.out[1]);
        this->copy_lines(c, input, local.lines.copies);
        for (const Fold& fold : folds_)
          for (int64_t o = c.begin; o < c.end; ++o) add(fold, c, o, bias != nullptr, local);
      }
    });
    S* const all = memory.data();
    for (int64_t slice = 1; slice < slices; ++slice)
      for (int64_t i = 0; i < sums; ++i) all[i] += all[slice * each + i];
    for (int64_t g = 0; g < p_.groups; ++g)
      for (const Fold& fold : folds_) {
        S* const own = all + g * sums_ + fold.first;
        WeightView<E> weight = out;
        weight.data += g * out_group_stride;
        if (bias) add_up(fold, own + taps() * fold.ld, bias + g * p_.filters);
        FoldedFilters<S>(p_, *fold.segment, this->lanes_).gradient(own, weight);
      }
  }

 private:
  struct Fold {
    const Segment* segment;
    FoldedAxes axes;
    FoldedTaps taps;
    int64_t ld, first;  // of its sums: [tap and channel, then one row for each parity][orbit]
    int64_t positions;  // folded together, at most
  };
  struct Local {
    S *sums, *folded, *ones, *room;
    Lines lines;
  };

  int64_t taps() const { return kernel_taps(p_) * p_.channels; }
  int64_t rows(const Fold& fold) const { return taps() + fold.axes.parities(); }
  // For upstream gradients whose channels are not contiguous.
  int64_t room() const { return grad_.channel_stride == 1 ? 0 : positions_ * p_.filters; }

  // Result line `o`, some positions at a time: the gradients of all members folded, times what each tap
  // reads, and alone for the bias.
  void add(const Fold& fold, const Chunk& c, int64_t o, bool bias, Local& local) const {
    this->fold(fold.axes, fold.taps, c, o, local.lines);
    const E* const line = grad_.data + c.image * grad_.batch_stride +
                          c.group * p_.filters * grad_.channel_stride + c.plane * grad_.stride[0] +
                          o * grad_.stride[1];
    S* const sums = local.sums + c.group * sums_ + fold.first;
    const int64_t ones = local.ones - local.lines.zeros;
    for_pieces(p_.out[2], fold.positions, [&](int64_t first, int64_t count) {
      fold_gradients(fold, line + first * grad_.stride[2], count, local);
      const S* const lines = local.lines.zeros + first * this->position_step();
      const int64_t* offset = local.lines.offset.data();
      S* to = sums;
      for (int i = 0; i < fold.axes.parities(); ++i) {
        const int64_t rows = fold.taps.count[i];
        const S* const grad = local.folded + i * count * fold.ld;
        multiply(fold, grad, count, lines, offset, rows, to);
        if (bias) multiply(fold, grad, count, local.lines.zeros, &ones, 1, sums + (taps() + i) * fold.ld);
        offset += rows, to += rows * fold.ld;
      }
    });
  }

  // As [parity][position][orbit].
  void fold_gradients(const Fold& fold, const E* line, int64_t positions, Local& local) const {
    int64_t step = grad_.stride[2];
    if (grad_.channel_stride != 1) {
      E* const room = reinterpret_cast<E*>(local.room);
      this->own_.stage_line(line, step, grad_.channel_stride, positions, p_.filters, room, p_.filters);
      line = room, step = p_.filters;
    }
    RunArgs<T> run{};
    run.ld = fold.ld, run.positions = positions, run.channels = fold.segment->rows;
    for (int i = 0; i < fold.axes.parities(); ++i) {
      run.source[0][i] = line + member_channel(*fold.segment, i), run.position_step[0][i] = step;
      run.out[i] = local.folded + i * positions * fold.ld;
    }
    this->own_.fold_pixels[kPlain][fold.axes.folds()](run);
  }

  // sums[row][orbit] += sum over positions of lines[offset[row] + position * step] * grad[position][orbit]
  void multiply(const Fold& fold, const S* grad, int64_t positions, const S* lines, const int64_t* offset,
                int64_t rows, S* sums) const {
    const int64_t vectors = fold.ld / this->lanes_, most = ceil_div(vectors, ceil_div(vectors, kMaxVectors));
    CorrelateArgs<S> g{};
    g.a = lines, g.a_step = this->position_step(), g.positions = positions, g.ldb = g.ldc = fold.ld;
    for_pieces(rows, this->kernels_.correlate_rows[most], [&](int64_t row, int64_t count) {
      g.a_offset = offset + row;
      for_pieces(vectors, most, [&](int64_t vector, int64_t now) {
        g.b = grad + vector * this->lanes_, g.c = sums + row * fold.ld + vector * this->lanes_;
        this->kernels_.correlate(static_cast<int>(count), static_cast<int>(now), g);
      });
    });
  }

  // Members from sums over positions of each parity: the butterfly again, over their number.
  void add_up(const Fold& fold, const S* sums, E* bias) const {
    const int parities = fold.axes.parities();
    for (int member = 0; member < parities; ++member)
      for (int64_t u = 0; u < fold.segment->rows; ++u) {
        S total = 0;
        for (int i = 0; i < parities; ++i) total += parity_sign(i, member) * sums[i * fold.ld + u];
        assign(bias[member_channel(*fold.segment, member) + u], total / parities);
      }
  }

  View<const E> grad_;
  std::vector<Fold> folds_;
  int64_t sums_ = 0;    // elements of a group
  int64_t folded_ = 0;  // of folded upstream gradients
  int64_t positions_ = 0;
};

}  // namespace

template <class T>
void direct_fold_wgrad(const Problem& p, const View<const Element<T>>& grad,
                       const View<const Element<T>>& input, const WeightView<Element<T>>& out,
                       int64_t out_group_stride, Element<T>* bias) {
  DirectFoldWgrad<T>(p, grad)(input, out, out_group_stride, bias);
}

#define SYMCONV_INSTANTIATE(T)                                                                              \
  template void direct_fold_wgrad<T>(const Problem&, const View<const Element<T>>&,                         \
                                     const View<const Element<T>>&, const WeightView<Element<T>>&, int64_t, \
                                     Element<T>*);
SYMCONV_INSTANTIATE(float)
SYMCONV_INSTANTIATE(double)
SYMCONV_INSTANTIATE(Half)
SYMCONV_INSTANTIATE(BFloat16)

}  // namespace symconv
