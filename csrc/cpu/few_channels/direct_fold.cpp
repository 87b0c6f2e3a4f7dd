// Stems forward: short contractions without a panel, folded line by line, or each filter by itself.
#include "few_channels/direct_fold.h"

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "expand.h"
#include "few_channels/direct_filters.h"
#include "few_channels/folded_lines.h"
#include "few_channels/folded_products.h"
#include "streamed.h"

namespace symconv {

namespace {

// R: the way to run whose kernels store results, of the same element.
template <class T, class R = T>
class DirectFold : FoldedLines<T> {
 public:
  DirectFold(const Problem& p, const MultiplyTensors<T>& tensors, bool turned)
      : FoldedLines<T>(p, turned || tensors.out.channel_stride != 1), m_(tensors) {
    for (const Segment& segment : p.segments) {
      Fold fold{segment, elements_, {p, segment, this->lanes_}, this->taps_of({p, segment}), {}};
      for (int64_t k = 0; k < this->taps_; ++k) fold.filter_row.push_back(k * fold.filters.ld());
      elements_ += fold.filters.elements();
      folds_.push_back(std::move(fold));
    }
  }

  // `weight`: the reduced one, of the first group.
  void operator()(WeightView<const Sum<T>> weight, int64_t weight_group_stride) const {
    const FoldedProducts<T, R> products(p_, m_, planes_);
    Scratch<S> filters(elements_ * p_.groups);
    for (int64_t g = 0; g < p_.groups; ++g, weight.data += weight_group_stride)
      for (const Fold& fold : folds_) fold.filters.make(weight, filters.data() + g * elements_ + fold.first);
    const int64_t tasks = this->chunks(p_.out[0], p_.out[1]), slices = std::min(tasks, this->threads_);
    int64_t tile = 0;
    for (const Fold& fold : folds_)
      tile = std::max(tile, products.tile_elements(fold.filters.axes().parities()));
    const int64_t each = tile + this->lines_elements();
    Scratch<S> memory(each * slices);
    parallel_slices(tasks, slices, [&](int64_t begin, int64_t end, int64_t slice) {
      S* const own = memory.data() + slice * each;
      Lines local = this->lines_in(own + tile);
      for (int64_t i = begin; i < end; ++i) {
        const Chunk c = this->chunk(i, p_.out[0], p_.out[1]);
        this->copy_lines(c, m_.source, local.copies);
        for (const Fold& fold : folds_)
          run(fold, c, filters.data() + c.group * elements_ + fold.first, products, local, own);
      }
      publish_streamed();
    });
  }

 private:
  using typename FoldedLines<T>::Chunk, typename FoldedLines<T>::Lines, typename FoldedLines<T>::S;
  using typename FoldedLines<T>::FoldedTaps;
  using FoldedLines<T>::p_, FoldedLines<T>::planes_;

  struct Fold {
    const Segment& segment;
    int64_t first;  // element of its filters
    FoldedFilters<S> filters;
    FoldedTaps taps;
    std::vector<int64_t> filter_row;  // of each tap and channel
  };

  void run(const Fold& fold, const Chunk& c, const S* filters, const FoldedProducts<T, R>& products,
           Lines& local, S* tile) const {
    for (int64_t o = c.begin; o < c.end; ++o) {
      this->fold(fold.filters.axes(), fold.taps, c, o, local);
      products(
          {c.group, c.image, c.plane, o, fold.segment, fold.filters.axes(), filters, fold.filters.ld(),
           fold.filter_row.data(), local.zeros, local.offset.data(), this->position_step(), fold.taps.count},
          tile);
    }
  }

  const MultiplyTensors<T>& m_;
  std::vector<Fold> folds_;
  int64_t elements_ = 0;  // of the folded filters of a group
};

template <class T>
void run(const Problem& p, const WeightView<const Sum<T>>& weight, int64_t weight_group_stride,
         const MultiplyTensors<T>& tensors, bool turned) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    if (has_pairs())  // they round by an instruction
      return DirectFold<T, Pair>(p, tensors, turned)(weight, weight_group_stride);
  }
  DirectFold<T>(p, tensors, turned)(weight, weight_group_stride);
}

}  // namespace

template <class T>
void direct_fold_fprop(const Problem& p, const MultiplyTensors<T>& tensors, bool turned) {
  const WideWeight<T> weight(p, tensors.weight, tensors.weight_group_stride);
  run<T>(p, weight.of_group(0), weight.group_stride(), tensors, turned);
}

template <class T>
void direct_fprop(const Problem& p, const MultiplyTensors<T>& tensors) {
  Problem untied = p;
  untied.orbits = p.filters;
  untied.segments = {Segment(0, p.filters, 0, 0, {Blocks{Tie(), p.channels}})};
  const WideWeight<T> weight(p, tensors.weight, tensors.weight_group_stride);
  const int64_t row = p.channels * p.filters, size = kernel_taps(p) * row;
  Scratch<Sum<T>> memory(size * p.groups);
  const Triple tap_strides{p.kernel[1] * p.kernel[2] * row, p.kernel[2] * row, row};
  const WeightView<Sum<T>> filters{memory.data(), 1, p.filters, tap_strides};
  expand<Sum<T>>(p, weight.of_group(0), weight.group_stride(), filters, size);
  run<T>(untied, {memory.data(), 1, p.filters, tap_strides}, size, tensors, false);
}

#define SYMCONV_INSTANTIATE(T)                                                         \
  template void direct_fold_fprop<T>(const Problem&, const MultiplyTensors<T>&, bool); \
  template void direct_fprop<T>(const Problem&, const MultiplyTensors<T>&);
SYMCONV_INSTANTIATE(float)
SYMCONV_INSTANTIATE(double)
SYMCONV_INSTANTIATE(Half)
SYMCONV_INSTANTIATE(BFloat16)

}  // namespace symconv
