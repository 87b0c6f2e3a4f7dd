// Filters of a segment folded along some of its tied axes, for layers that fold their lines.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "convert.h"
#include "geometry.h"
#include "scratch.h"
#include "sizes.h"
#include "weights.h"

namespace symconv {

template <class F>
void for_taps(const Triple& kernel, const F& f) {
  for (int64_t d = 0; d < kernel[0]; ++d)
    for (int64_t h = 0; h < kernel[1]; ++h)
      for (int64_t w = 0; w < kernel[2]; ++w) f(Triple{d, h, w});
}

// The reduced weight in the type of sums: where it lies, or widened.
template <class T>
class WideWeight {
 public:
  WideWeight(const Problem& p, const WeightView<const Element<T>>& weight, int64_t group_stride)
      : taps_(p.kernel[0] * p.kernel[1] * p.kernel[2]),
        group_stride_(kWidens ? p.orbits * p.channels * taps_ : group_stride),
        memory_(kWidens ? group_stride_ * p.groups : 0) {
    if constexpr (!kWidens) {
      view_ = weight;
    } else {
      Sum<T>* out = memory_.data();
      view_ = {out, p.channels * taps_, taps_, {p.kernel[1] * p.kernel[2], p.kernel[2], 1}};
      for (int64_t g = 0; g < p.groups; ++g)
        for (int64_t u = 0; u < p.orbits; ++u)
          for (int64_t c = 0; c < p.channels; ++c)
            for_taps(p.kernel, [&](const Triple& tap) {
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
  int64_t taps_, group_stride_;
  Scratch<Sum<T>> memory_;
  WeightView<const Sum<T>> view_;
};

// The fold of one segment along some of its tied axes.
class FoldedAxes {
 public:
  FoldedAxes(const Problem& p, const Segment& segment, int folded) : p_(p) {
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

// Filters of one base member of a segment, folded: [parity][tap][channel][orbit].
template <class T>
class FoldedFilters {
 public:
  FoldedFilters(const Problem& p, const Segment& segment, const FoldedAxes& axes, int base, int lanes)
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

  // The adjoint, where all axes are folded: the gradient of the weight from that of the folded filters, which
  // are overwritten. Folding is its own adjoint.
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
  const FoldedAxes& axes_;
  int base_;
  int64_t ld_;
  std::vector<int64_t> row_;  // first one, by tap
};

}  // namespace symconv
