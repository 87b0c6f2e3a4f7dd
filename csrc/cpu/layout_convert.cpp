// Copies between contiguous and channels_last, lines transposed in registers.
#include "layout_convert.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "microkernels/kernels.h"
#include "selection/counters.h"
#include "views.h"

namespace symconv {
namespace {

constexpr int64_t kPositions = 128;  // that are transposed together, about

// Positions of one channel in both layouts: without a gap, in the same order.
struct Run {
  int64_t images, positions, channels;
  explicit Run(const at::Tensor& near)
      : images(near.size(0)), positions(near[0][0].numel()), channels(near.size(1)) {}
};

// Calls f(image, position, count) for pieces of all positions, shared by the threads.
template <class F>
void for_positions(const Run& run, const F& f) {
  const int64_t pieces = std::max<int64_t>(1, run.positions / kPositions);
  const int64_t worth = std::max<int64_t>(1, (1 << 13) * pieces / (run.positions * run.channels));
  at::parallel_for(0, run.images * pieces, worth, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t piece = i % pieces, first = run.positions * piece / pieces;
      f(i / pieces, first, run.positions * (piece + 1) / pieces - first);
    }
  });
}

// Channels of `far` are contiguous. Position `first` of it is the first one of `near`, whose others are zeros
// where `far` has none.
template <class T>
void copy_in(const at::Tensor& far, int64_t image, int64_t first, const at::Tensor& near) {
  using E = Element<T>;
  const Run run(near);
  const int64_t all = far[0][0].numel(), step = far.stride(1);
  const E* const from = static_cast<const E*>(far.const_data_ptr()) + image * far.stride(0);
  E* const to = static_cast<E*>(near.data_ptr());
  const int64_t begin = std::max<int64_t>(0, -first), end = std::min(run.positions, all - first);
  for_positions(run, [&](int64_t b, int64_t position, int64_t count) {
    E* const out = to + (b * run.positions + position) * run.channels;
    const int64_t there = std::clamp(begin - position, int64_t{0}, count);
    const int64_t past = std::clamp(end - position, there, count);
    std::fill_n(out, there * run.channels, E{});
    if (past > there)
      select_kernels<T>().stage_line(from + b * far.stride(0) + (first + position + there), 1, step,
                                     past - there, run.channels, out + there * run.channels, run.channels);
    std::fill_n(out + past * run.channels, (count - past) * run.channels, E{});
  });
}

// Positions of `near` from `count` on do not belong to `far`.
template <class T>
void copy_out(const at::Tensor& near, const at::Tensor& far, int64_t image, int64_t first,
              int64_t positions) {
  using E = Element<T>;
  const Run run(near);
  const E* const from = static_cast<const E*>(near.const_data_ptr());
  E* const to = static_cast<E*>(far.data_ptr()) + image * far.stride(0) + first;
  for_positions(run, [&](int64_t b, int64_t position, int64_t count) {
    count = std::min(count, positions - position);
    if (count > 0)
      select_kernels<T>().stage_line(from + (b * run.positions + position) * run.channels, 1, run.channels,
                                     run.channels, count, to + b * far.stride(0) + position, far.stride(1));
  });
}

at::Tensor allocate(const at::Tensor& like, int64_t images, int64_t lines) {
  std::vector<int64_t> sizes = like.sizes().vec();
  sizes[0] = images;
  if (lines) sizes[2] = lines;
  return at::empty(sizes, like.options().requires_grad(false), memory_format(sizes.size(), true));
}

// Do positions, or channels, follow each other as the layout has it?
bool lies_so(const at::Tensor& t, bool last) {
  const int64_t inner = last ? 1 : t.dim() - 1;
  if (t.is_contiguous(memory_format(t.dim(), last))) return true;
  return suggests_channels_last(t) == last && (t.stride(inner) == 1 || t.size(inner) == 1);
}

}  // namespace

bool suggests_channels_last(const at::Tensor& t) {
  const c10::MemoryFormat format = t.suggest_memory_format();
  return format == c10::MemoryFormat::ChannelsLast || format == c10::MemoryFormat::ChannelsLast3d;
}

at::Tensor laid_out(const at::Tensor& t, bool channels_last) {
  const bool last = channels_last && t.dim() > 3;
  if (lies_so(t, last)) return t;
  count_run(Ran::copy);
  const c10::MemoryFormat format = memory_format(t.dim(), last);
  if (!t.is_contiguous(memory_format(t.dim(), !last))) return t.contiguous(format);
  const at::Tensor out = at::empty(t.sizes(), t.options().requires_grad(false), format);
  SYMCONV_DISPATCH(t,
                   last ? copy_in<scalar>(t, 0, 0, out) : copy_out<scalar>(t, out, 0, 0, out[0][0].numel()));
  return out;
}

void Relay::operator()(
    const at::Tensor& source, const at::Tensor& out,
    const std::function<void(const at::Tensor& source, const at::Tensor& out)>& run) const {
  const at::Tensor far = source.contiguous();
  const at::Tensor from = allocate(source, parts_.images, parts_.source_lines);
  const at::Tensor to = allocate(out, parts_.images, parts_.lines);
  const int64_t lines = to.size(2), line = source[0][0][0].numel(), out_line = out[0][0][0].numel();
  for (int64_t image = 0; image < out.size(0); image += parts_.images)
    for (int64_t first = 0; first < out.size(2); first += lines) {
      const int64_t begin = parts_.lines ? parts_.first_source(first) : 0;
      const int64_t count = std::min(lines, out.size(2) - first);
      SYMCONV_DISPATCH(far, copy_in<scalar>(far, image, begin * line, from));
      count_run(Ran::part);
      run(from, to);
      SYMCONV_DISPATCH(out, copy_out<scalar>(to, out, image, first * out_line, count * out_line));
    }
}

void Relay::sum(const at::Tensor& gy, const at::Tensor& x,
                const std::function<void(const at::Tensor& gy, const at::Tensor& x,
                                         const std::function<bool()>& next)>& run) const {
  const at::Tensor far_gy = gy.contiguous(), far_x = x.contiguous();
  const at::Tensor near_gy = allocate(gy, parts_.images, 0), near_x = allocate(x, parts_.images, 0);
  int64_t image = 0;
  const auto next = [&] {
    if (image >= gy.size(0)) return false;
    SYMCONV_DISPATCH(gy, copy_in<scalar>(far_gy, image, 0, near_gy);
                     copy_in<scalar>(far_x, image, 0, near_x));
    count_run(Ran::part);
    image += parts_.images;
    return true;
  };
  next();
  const bool more = image < gy.size(0);
  run(near_gy, near_x, more ? std::function<bool()>(next) : nullptr);
}

}  // namespace symconv
