// Copies of input lines with zeros on both sides, and runs of taps in them: what all `direct` passes share.
#pragma once

#include <algorithm>
#include <cstdint>

#include "convert.h"
#include "microkernels/kernels.h"
#include "packed/multiply.h"
#include "packed/weights.h"
#include "workspace.h"

namespace symconv {

constexpr int64_t kMostLines = 16;  // of results, whose input lines are copied together

// What the three passes have in common: copies of input lines with zeros on both sides, on which every window
// lies whole, and runs of taps that follow each other in them. A line is [position][channel], or in planes
// [channel][position], with the positions of each residue of the stride together.
//
// 16-bit elements are widened as they are copied, and multiplied in float32.
template <class T>
class DirectLines {
 public:
  explicit DirectLines(const Problem& p, bool planes = false)
      : p_(p),
        kernels_(select_kernels<Sum<T>>()),
        own_(select_kernels<T>()),
        lanes_(kernels_.lanes),
        threads_(thread_count(p.macs())),
        planes_(planes) {
    const int64_t reach = p.dilation[2] * (p.kernel[2] - 1) + 1;
    positions_ = std::max(p.in[2] + p.padding[2], p.stride[2] * (p.out[2] - 1) + reach);
    residue_ = odd_lines<Sum<T>>(ceil_div(positions_, p.stride[2]));
    line_ = planes ? odd_lines<Sum<T>>(p.channels * p.stride[2] * residue_) : p.channels * positions_;
    run_ = p.dilation[2] == 1 ? p.kernel[2] * p.channels : p.channels;
    taps_ = p.kernel[0] * p.kernel[1] * p.kernel[2] * p.channels;
    const int64_t lines = p.batch * p.groups * p.out[0] * p.out[1];
    chunk_ = std::clamp<int64_t>(threads_ > 1 ? ceil_div(lines, 4 * threads_) : lines, 1, kMostLines);
  }

 protected:
  using E = Element<T>;
  using S = Sum<T>;
  static constexpr bool kWidens = sizeof(E) < sizeof(S);

  // Result lines [begin, end) of one image, group and result plane.
  struct Chunk {
    int64_t group, image, plane, begin, end;
  };
  int64_t chunks(int64_t planes, int64_t lines) const {
    return p_.groups * p_.batch * planes * ceil_div(lines, chunk_);
  }
  Chunk chunk(int64_t i, int64_t planes, int64_t lines) const {
    const int64_t parts = ceil_div(lines, chunk_), part = i % parts;
    i /= parts;
    const int64_t plane = i % planes, image = i / planes % p_.batch;
    return {i / planes / p_.batch, image, plane, lines * part / parts, lines * (part + 1) / parts};
  }

  bool inside(int axis, int64_t at) const { return at >= 0 && at < p_.in[axis]; }
  int64_t source(int axis, int64_t result, int64_t tap) const {
    return p_.stride[axis] * result + p_.dilation[axis] * tap - p_.padding[axis];
  }

  // Copied lines of a chunk, by plane of the kernel.
  int64_t copied_lines() const {
    return (chunk_ - 1) * p_.stride[1] + p_.dilation[1] * (p_.kernel[1] - 1) + 1;
  }
  // In planes a line that is not split yet comes last.
  int64_t copy_elements() const {
    const int64_t whole = planes_ && p_.stride[2] > 1 ? p_.channels * positions_ : 0;
    return p_.kernel[0] * copied_lines() * line_ + whole;
  }
  int64_t copied(const Chunk& c, int64_t plane, int64_t line) const {
    return (plane * copied_lines() + line - source(1, c.begin, 0)) * line_;
  }

  void copy_lines(const Chunk& c, const View<const E>& input, S* to) const {
    const int64_t first = source(1, c.begin, 0), last = source(1, c.end - 1, p_.kernel[1] - 1);
    for (int64_t plane = 0; plane < p_.kernel[0]; ++plane) {
      const int64_t deep = source(0, c.plane, plane);
      for (int64_t line = first; line <= last && inside(0, deep); ++line)
        if (inside(1, line))
          copy_line(input.data + c.image * input.batch_stride + c.group * p_.channels * input.channel_stride +
                        deep * input.stride[0] + line * input.stride[1],
                    input, to + copied(c, plane, line), to + p_.kernel[0] * copied_lines() * line_);
    }
  }

  // Where tap `w` of a line's first position and of its first channel is read, and the steps from there.
  int64_t tap_at(int64_t w) const {
    const int64_t at = w * p_.dilation[2];
    return planes_ ? at % p_.stride[2] * residue_ + at / p_.stride[2] : at * p_.channels;
  }
  int64_t position_step() const { return planes_ ? 1 : p_.stride[2] * p_.channels; }
  int64_t channel_step() const { return planes_ ? p_.stride[2] * residue_ : 1; }

  void copy_line(const E* from, const View<const E>& input, S* to, S* whole) const {
    if (planes_) return copy_planes(from, input, to, whole);
    const int64_t before = p_.padding[2] * p_.channels, size = p_.in[2] * p_.channels;
    std::fill(to, to + before, S(0));
    if (input.stride[2] == p_.channels && (input.channel_stride == 1 || p_.channels == 1)) {
      stage(from, size, 1, 1, size, to + before, size);
    } else {
      for (int64_t i = 0; i < p_.in[2]; ++i)
        for (int64_t c = 0; c < p_.channels; ++c)
          to[before + i * p_.channels + c] = widened(from[i * input.stride[2] + c * input.channel_stride]);
    }
    std::fill(to + before + size, to + line_, S(0));
  }

  void copy_planes(const E* from, const View<const E>& input, S* to, S* whole) const {
    const bool split = p_.stride[2] > 1;
    S* const line = split ? whole : to;
    const int64_t before = p_.padding[2], step = split ? positions_ : residue_;
    stage(from, input.channel_stride, input.stride[2], p_.channels, p_.in[2], line + before, step);
    for (int64_t c = 0; c < p_.channels; ++c) {
      std::fill_n(line + c * step, before, S(0));
      std::fill(line + c * step + before + p_.in[2], line + (c + 1) * step, S(0));
      if (split)
        kernels_.split_line(line + c * step, positions_, p_.stride[2], to + c * channel_step(), residue_);
    }
  }

  // out[c * out_stride + i] = from[c * channel_stride + i * step], widened.
  void stage(const E* from, int64_t channel_stride, int64_t step, int64_t channels, int64_t positions, S* out,
             int64_t out_stride) const {
    if constexpr (!kWidens) {
      kernels_.stage_line(from, channel_stride, step, channels, positions, out, out_stride);
    } else if (step == 0) {  // panels have another meaning for that
      for (int64_t c = 0; c < channels; ++c)
        std::fill_n(out + c * out_stride, positions, widened(from[c * channel_stride]));
    } else {
      // As panels are packed: runs of channels there are positions here, where these are contiguous.
      RunArgs<T> run{};
      run.source[0][0] = from, run.out[0] = out, run.ld = out_stride;
      run.position_step[0][0] = step == 1 ? channel_stride : step, run.channel_step[0][0] = channel_stride;
      run.positions = step == 1 ? channels : positions, run.channels = step == 1 ? positions : channels;
      (step == 1 ? own_.fold_pixels : own_.fold_planes)[kPlain][0](run);
    }
  }

  // A line of upstream gradients of one group as [position][filter], and the step from one position to the
  // next: in place where channels are contiguous, else transposed or widened to `room`.
  struct Gradients {
    const S* data;
    int64_t step;
  };
  Gradients gradients(const View<const E>& grad, int64_t image, int64_t group, int64_t plane, int64_t line,
                      S* room) const {
    const E* from = grad.data + image * grad.batch_stride + group * p_.filters * grad.channel_stride +
                    plane * grad.stride[0] + line * grad.stride[1];
    if constexpr (!kWidens) {
      if (grad.channel_stride == 1) return {from, grad.stride[2]};
    }
    if (!kWidens || grad.channel_stride == 1) {
      stage(from, grad.stride[2], grad.channel_stride, p_.out[2], p_.filters, room, p_.filters);
    } else {
      S* const planes = room + p_.out[2] * p_.filters;
      stage(from, grad.channel_stride, grad.stride[2], p_.filters, p_.out[2], planes, p_.out[2]);
      kernels_.stage_line(planes, 1, p_.out[2], p_.out[2], p_.filters, room, p_.filters);
    }
    return {room, p_.filters};
  }
  // Of the room that they need.
  int64_t gradient_elements(const View<const E>& grad) const {
    const bool last = grad.channel_stride == 1;
    return p_.out[2] * p_.filters * (kWidens ? (last ? 1 : 2) : last ? 0 : 1);
  }

  // Calls f(first tap row, offset from a line's start) for every run of taps of one line of the kernel.
  template <class F>
  void for_runs(int64_t plane, int64_t row, const F& f) const {
    const int64_t first = (plane * p_.kernel[1] + row) * p_.kernel[2] * p_.channels;
    const int64_t runs = p_.kernel[2] * p_.channels / run_;
    for (int64_t i = 0; i < runs; ++i) f(first + i * run_, i * p_.dilation[2] * p_.channels);
  }

  // The product for all pieces of `rows` rows and `columns` columns.
  void gemm(GemmArgs<S> g, int64_t rows, int64_t columns) const {
    const S *a = g.a, *b = g.b;
    S* c = g.c;
    for (const ColumnBlock& block : column_blocks(columns, lanes_)) {
      g.b = b + block.vector * lanes_;
      for_pieces(rows, kernels_.max_rows[block.vectors], [&](int64_t r0, int64_t count) {
        g.a = a + r0 * g.lda, g.c = c + r0 * g.ldc + block.vector * lanes_;
        kernels_.gemm(static_cast<int>(count), block.vectors, g);
      });
    }
  }

  const Problem& p_;
  const Kernels<Sum<T>>& kernels_;
  const Kernels<T>& own_;
  int lanes_;
  int64_t threads_;
  bool planes_;
  int64_t positions_, residue_, line_, run_, taps_, chunk_;
};

}  // namespace symconv
