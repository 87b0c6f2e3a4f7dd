// Input lines of direct algorithms, folded: whole lines are added and subtracted in mirrored pairs, and what
// the taps of each parity read is found for one line of results after the other.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "few_channels/direct_filters.h"
#include "few_channels/direct_lines.h"

namespace symconv {

template <class T>
class FoldedLines : protected DirectLines<T> {
 public:
  using DirectLines<T>::DirectLines;

 protected:
  using typename DirectLines<T>::Chunk, typename DirectLines<T>::E, typename DirectLines<T>::S;
  using DirectLines<T>::p_, DirectLines<T>::planes_;

  // A line of the kernel: what its taps read. Along the width the line as it is, or sums and differences of
  // pairs of taps.
  struct Line {
    const S* whole;
    S* own;     // where sums and differences of lines go
    S* folded;  // by tap; null where all is zero
  };

  // What the taps of a fold read, one parity after the other: a line of the kernel, and a place in that line
  // or in what it is folded to.
  struct Tap {
    int64_t line, place;
    bool folded;
  };
  struct FoldedTaps {
    std::vector<Tap> list;
    int64_t count[kMaxSources];  // of each parity, times channels
  };

  // Of one thread: copied lines, and what they are folded to.
  struct Lines {
    S *copies, *zeros, *sums;
    std::vector<Line> lines;
    std::vector<int64_t> offset;  // of taps and channels from `zeros`
    int64_t folded;               // input lines of the chunk before this one are folded along the width
  };

  FoldedTaps taps_of(const FoldedAxes& axes) const {
    FoldedTaps taps;
    const bool width = axes.folds(2);
    for (int parity = 0; parity < axes.parities(); ++parity) {
      const size_t first = taps.list.size();
      for_taps(p_.kernel, [&](const Triple& tap) {
        if (axes.parity(tap) != parity) return;
        const bool pair = width && tap[2] != axes.mirror(2, tap[2]);
        const int64_t place = pair ? tap[2] * this->line_ : this->tap_at(tap[2]);
        taps.list.push_back({tap[0] * p_.kernel[1] + tap[1], place, pair});
      });
      taps.count[parity] = static_cast<int64_t>(taps.list.size() - first) * p_.channels;
    }
    return taps;
  }

  int64_t lines_elements() const {
    const int64_t lines = p_.kernel[0] * std::max(p_.kernel[1], window());
    // Vectors of positions end past the last one.
    const int64_t past = planes_ ? kMaxVectors * this->lanes_ : 0;
    return round_up(this->copy_elements() + this->line_ + lines * line_size() + past, this->lanes_);
  }
  Lines lines_in(S* memory) const {
    Lines lines;
    lines.copies = memory;
    lines.zeros = lines.copies + this->copy_elements();
    lines.sums = lines.zeros + this->line_;
    std::fill(lines.zeros, lines.sums, S(0));
    lines.lines.resize(p_.kernel[0] * p_.kernel[1]);
    lines.offset.resize(this->taps_);
    return lines;
  }

  // What the taps of result line `o` read. The lines of the chunk have been copied.
  void fold(const FoldedAxes& axes, const FoldedTaps& taps, const Chunk& c, int64_t o, Lines& local) const {
    find_lines(axes, c, o, local);
    list_taps(taps, local);
  }

 private:
  // Lines of the input from the first to the last one that a result needs.
  int64_t window() const { return p_.dilation[1] * (p_.kernel[1] - 1) + 1; }
  // Of a line and all that it is folded to.
  int64_t line_size() const { return (1 + p_.kernel[2]) * this->line_; }

  Line& line(Lines& local, int64_t d, int64_t h) const { return local.lines[d * p_.kernel[1] + h]; }

  // The lines of the kernel at result line `o`, folded. What is folded along the width alone is kept for the
  // result lines that follow.
  void find_lines(const FoldedAxes& axes, const Chunk& c, int64_t o, Lines& local) const {
    const bool outer = (axes.folds(0) || axes.folds(1)), width = axes.folds(2);
    if (width && !outer) fold_window(axes, c, o, local);
    for (int64_t d = 0; d < p_.kernel[0]; ++d)
      for (int64_t h = 0; h < p_.kernel[1]; ++h) {
        const int64_t deep = this->source(0, c.plane, d), at = this->source(1, o, h);
        const bool there = this->inside(0, deep) && this->inside(1, at);
        const S* whole = there ? local.copies + this->copied(c, d, at) : local.zeros;
        S* own = nullptr;
        if (outer)
          own = local.sums + (d * p_.kernel[1] + h) * line_size();
        else if (width)
          own = window_line(c, d, at, local);
        line(local, d, h) = {whole, own, width && (there || outer) ? own + this->line_ : nullptr};
      }
    for (int i = 0; i < axes.folds(); ++i)
      if (axes.axis(i) < 2) fold_lines(axes, axes.axis(i), local);
    if (width && outer)
      for (Line& l : local.lines) fold_width(axes, l);
  }

  S* window_line(const Chunk& c, int64_t d, int64_t at, const Lines& local) const {
    const int64_t place = (at - this->source(1, c.begin, 0)) % window();
    return local.sums + (d * window() + place) * line_size();
  }

  // Folds the lines of the window that were not in the last one.
  void fold_window(const FoldedAxes& axes, const Chunk& c, int64_t o, Lines& local) const {
    const int64_t first = this->source(1, o, 0), end = first + window();
    if (o == c.begin) local.folded = first;
    for (int64_t at = std::max(first, local.folded); at < end; ++at)
      for (int64_t d = 0; d < p_.kernel[0]; ++d) {
        if (!this->inside(0, this->source(0, c.plane, d)) || !this->inside(1, at)) continue;
        S* own = window_line(c, d, at, local);
        fold_width(axes, {local.copies + this->copied(c, d, at), own, own + this->line_});
      }
    local.folded = end;
  }

  void fold_lines(const FoldedAxes& axes, int axis, Lines& local) const {
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

  void list_taps(const FoldedTaps& taps, Lines& local) const {
    int64_t* offset = local.offset.data();
    for (const Tap& tap : taps.list) {
      const Line& l = local.lines[tap.line];
      const S* const at = !tap.folded ? l.whole + tap.place : l.folded ? l.folded + tap.place : l.whole;
      for (int64_t c = 0; c < p_.channels; ++c) *offset++ = at + c * this->channel_step() - local.zeros;
    }
  }
};

}  // namespace symconv
