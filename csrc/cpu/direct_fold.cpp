// Stems: short contractions without a panel, folded line by line.
#include "direct_fold.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "direct_filters.h"
#include "folded_lines.h"
#include "folded_products.h"

namespace symconv {

namespace {

// Has other threads see results that were streamed before what this one stores next. Fences of C++ order
// ordinary stores alone.
inline void publish_streamed() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// R: the way to run whose kernels store results, of the same element.
template <class T, class R = T>
class DirectFold : FoldedLines<T> {
 public:
  DirectFold(const Problem& p, int axes, const MultiplyTensors<T>& tensors)
      : FoldedLines<T>(p, tensors.out.channel_stride != 1), m_(tensors) {
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
    int64_t tile = 0;
    for (const Fold& fold : folds_) tile = std::max(tile, products.tile_elements(fold.axes.parities()));
    const int64_t each = tile + this->lines_elements();
    Scratch<S> memory(each * slices);
    parallel_slices(tasks, slices, [&](int64_t begin, int64_t end, int64_t slice) {
      S* const own = memory.data() + slice * each;
      Lines local = this->lines_in(own + tile);
      for (int64_t i = begin; i < end; ++i) {
        const Chunk c = this->chunk(i, p_.out[0], p_.out[1]);
        this->copy_lines(c, m_.source, local.copies);
        for (const Fold& fold : folds_)
          run(fold, c, filters.data() + c.group * filters_, products, local, own);
      }
      publish_streamed();
    });
  }

 private:
  using typename FoldedLines<T>::Chunk, typename FoldedLines<T>::Lines, typename FoldedLines<T>::S;
  using FoldedLines<T>::p_, FoldedLines<T>::planes_;

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

  void run(const Fold& fold, const Chunk& c, const S* filters, const FoldedProducts<T, R>& products,
           Lines& local, S* tile) const {
    for (int64_t o = c.begin; o < c.end; ++o) {
      this->fold(fold.axes, c, o, local);
      for (const Part& part : fold.parts) {
        products({c.group, c.image, c.plane, o, *fold.segment, fold.axes, part.base, filters + part.first,
                  part.filters.ld(), part.filter_row.data(), local.zeros, local.offset.data(),
                  this->position_step(), local.taps},
                 tile);
      }
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
