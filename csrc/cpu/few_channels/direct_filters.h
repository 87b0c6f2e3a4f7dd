// Filters of a segment folded along its tied axes, for layers that fold their lines.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "blocking.h"
#include "convert.h"
#include "packed/weights.h"
#include "problem.h"
#include "workspace.h"

namespace symconv {

// The reduced weight, of the taps that it keeps, in the type of sums: where it lies, or widened.
template <class T>
class WideWeight {
 public:
  WideWeight(const Problem& p, const WeightView<const Element<T>>& weight, int64_t group_stride)
      : kept_(kept_kernel(p)),
        group_stride_(kWidens ? p.orbits * p.channels * tap_count(kept_) : group_stride),
        memory_(kWidens ? group_stride_ * p.groups : 0) {
    if constexpr (!kWidens) {
      view_ = weight;
    } else {
      Sum<T>* out = memory_.data();
      const int64_t taps = tap_count(kept_);
      view_ = {out, p.channels * taps, taps, {kept_[1] * kept_[2], kept_[2], 1}};
      for (int64_t g = 0; g < p.groups; ++g)
        for (int64_t u = 0; u < p.orbits; ++u)
          for (int64_t c = 0; c < p.channels; ++c)
            for_taps(kept_, [&](const Triple& tap) {
              const Element<T>* from =
                  weight.data + g * group_stride + u * weight.orbit_stride + c * weight.channel_stride;
              for (int axis = 0; axis < kAxes; ++axis) from += tap[axis] * weight.tap_stride[axis];
              *out++ = widened(*from);
            });
    }
  }

  WeightView<const Sum<T>> of_group(int64_t group) const {
    WeightView<const Sum<T>> view = view_;
    view.data += group * group_stride_;
    return view;
  }
  int64_t group_stride() const { return group_stride_; }

 private:
  static constexpr bool kWidens = sizeof(Element<T>) < sizeof(Sum<T>);
  Triple kept_;
  int64_t group_stride_;
  Scratch<Sum<T>> memory_;
  WeightView<const Sum<T>> view_;
};

// The fold of a segment along its tied axes. Parities and orbit members are subsets of these, bit i for the
// i-th one.
class FoldedAxes {
 public:
  FoldedAxes(const Problem& p, const Segment& segment) : p_(p), folds_(segment.tie.axes()) {
    for (int i = 0; i < folds_; ++i) axis_[i] = segment.tie.axis(i);
  }

  int parities() const { return 1 << folds_; }
  int folds() const { return folds_; }
  int axis(int i) const { return axis_[i]; }
  bool folds(int axis) const { return std::find(axis_, axis_ + folds_, axis) != axis_ + folds_; }
  int64_t mirror(int axis, int64_t tap) const { return mirrored(p_.kernel[axis], tap); }

  // Of folded filters: along a folded axis the first taps hold even parts, the last ones odd parts.
  int parity(const Triple& tap) const {
    int parity = 0;
    for (int i = 0; i < folds_; ++i) parity |= (tap[axis_[i]] > mirror(axis_[i], tap[axis_[i]])) << i;
    return parity;
  }

 private:
  const Problem& p_;
  int folds_, axis_[kAxes];
};

// Filters of a segment, folded: [parity][tap][channel][orbit].
template <class T>
class FoldedFilters {
 public:
  FoldedFilters(const Problem& p, const Segment& segment, int lanes)
      : p_(p), segment_(segment), axes_(p, segment), ld_(round_up(segment.rows, lanes)) {
    row_.resize(p.kernel[0] * p.kernel[1] * p.kernel[2]);
    int64_t rows = 0;
    for (int parity = 0; parity < axes_.parities(); ++parity)
      for_taps(p.kernel, [&](const Triple& tap) {
        if (axes_.parity(tap) == parity) row_[index(tap)] = rows, rows += p.channels;
      });
  }

  const FoldedAxes& axes() const { return axes_; }
  int64_t ld() const { return ld_; }
  int64_t elements() const { return static_cast<int64_t>(row_.size()) * p_.channels * ld_; }

  void make(WeightView<const T> weight, T* out) const {
    weight.data += segment_.first * weight.orbit_stride;
    for_taps(p_.kernel, [&](const Triple& tap) {
      const T* at = weight.data;
      for (int axis = 0; axis < kAxes; ++axis) at += tap[axis] * weight.tap_stride[axis];
      for (int64_t c = 0; c < p_.channels; ++c) {
        T* row = out + (row_[index(tap)] + c) * ld_;
        for (int64_t u = 0; u < segment_.rows; ++u)
          row[u] = at[c * weight.channel_stride + u * weight.orbit_stride];
        std::fill(row + segment_.rows, row + ld_, T(0));
      }
    });
    for (int i = 0; i < axes_.folds(); ++i) fold(axes_.axis(i), out);
  }

  // The adjoint: the gradient of the weight from that of the folded filters, which are overwritten. Folding
  // is its own adjoint.
  template <class E>
  void gradient(T* rows, WeightView<E> weight) const {
    for (int i = 0; i < axes_.folds(); ++i) fold(axes_.axis(i), rows);
    weight.data += segment_.first * weight.orbit_stride;
    for_taps(p_.kernel, [&](const Triple& tap) {
      E* at = weight.data;
      for (int axis = 0; axis < kAxes; ++axis) at += tap[axis] * weight.tap_stride[axis];
      for (int64_t c = 0; c < p_.channels; ++c)
        for (int64_t u = 0; u < segment_.rows; ++u)
          assign(at[c * weight.channel_stride + u * weight.orbit_stride],
                 rows[(row_[index(tap)] + c) * ld_ + u]);
    });
  }

 private:
  int64_t index(const Triple& tap) const { return (tap[0] * p_.kernel[1] + tap[1]) * p_.kernel[2] + tap[2]; }

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
  FoldedAxes axes_;
  int64_t ld_;
  std::vector<int64_t> row_;  // first one, by tap
};

}  // namespace symconv
