// Copies of what tiles read, and lines that are folded from them.
#include "packed/pixel_lines.h"

#include <algorithm>

#include "blocking.h"

namespace symconv {

template <class T>
PixelLines<T>::PixelLines(const Kernels<T>& kernels, const Plan& plan, const Phase& phase, int64_t channels)
    : kernels_(kernels),
      phase_(phase),
      axes_(plan.groups[0].log_sources - 1),
      channels_(channels),
      orbits_(plan.groups[0].channels) {
  for (int axis = 0; axis < kAxes; ++axis) {
    const AxisMap& map = *phase.axis[axis];
    const auto [low, high] = map.reach();
    taps_[axis] = static_cast<int64_t>(map.b.size());
    low_[axis] = low;
    size_[axis] = map.a * (phase.tiling.block[axis] - 1) + high - low + 1;
  }
  stride_ = {size_[1] * size_[2] * channels, size_[2] * channels, channels};
  for (int axis = 0; axis < kAxes; ++axis) step_[axis] = phase.axis[axis]->a * stride_[axis];
  for (const Group& g : plan.groups) {
    if (g.tap[0][2] != 0) continue;
    std::array<int64_t, kMaxSources>& sources = sources_.emplace_back();
    for (int s = 0; s < 2 << axes_; ++s) {
      sources[s] = g.channel[s];
      for (int axis = 0; axis < 2; ++axis)
        sources[s] += (phase.axis[axis]->b[g.tap[s][axis]] - low_[axis]) * stride_[axis];
    }
  }
  width_ = static_cast<int64_t>(sources_.size()) * orbits_;
  row_ = odd_lines<T>(width_);
}

// A line of positions that begins at `at`: zeros outside of the map.
template <class T>
void PixelLines<T>::copy_line(const View<const T>& source, const Triple& at, T* to) const {
  const auto extent = [&](int axis) { return phase_.axis[axis]->extent; };
  if (at[0] < 0 || at[0] >= extent(0) || at[1] < 0 || at[1] >= extent(1)) {
    std::fill_n(to, stride_[1], T{});
    return;
  }
  const int64_t low = std::clamp<int64_t>(-at[2], 0, size_[2]);
  const int64_t high = std::clamp<int64_t>(extent(2) - at[2], low, size_[2]);
  std::fill_n(to, low * channels_, T{});
  std::fill_n(to + high * channels_, (size_[2] - high) * channels_, T{});
  const T* from = source.data + dot(at, source.stride) + low * source.stride[2];
  const bool whole = source.stride[2] == channels_;
  const int64_t run = whole ? (high - low) * channels_ : channels_;
  for (int64_t i = low; i < high; i += whole ? high - low : 1, from += source.stride[2])
    std::copy_n(from, run, to + i * channels_);
}

template <class T>
void PixelLines<T>::copy(const Tile& tile, const View<const T>& source, int64_t first, T* to) const {
  View<const T> own = source;
  own.data += source.batch_stride * tile.image + first;
  Triple at;
  for (int axis = 0; axis < kAxes; ++axis) at[axis] = phase_.axis[axis]->a * tile.begin[axis] + low_[axis];
  for (int64_t d = 0; d < size_[0]; ++d)
    for (int64_t h = 0; h < size_[1]; ++h)
      copy_line(own, {at[0] + d, at[1] + h, at[2]}, to + d * stride_[0] + h * stride_[1]);
}

template <class T>
void PixelLines<T>::fold(const Tile& tile, const Tile& lines, const T* copied, int64_t most, T* out) const {
  const int members = 1 << axes_;
  BlocksArgs<T> r;
  r.step = channels_, r.rows = size_[2], r.length = orbits_;
  r.apart = parity(most), r.ld = row_;
  for (int axis = 0; axis < kAxes; ++axis) copied += (lines.begin[axis] - tile.begin[axis]) * step_[axis];
  for (int64_t line = 0; line < lines.size[1]; ++line, copied += step_[1], out += this->line())
    for (int64_t j = 0; j < static_cast<int64_t>(sources_.size()); ++j)
      for (int member = 0; member < 2; ++member) {
        for (int s = 0; s < members; ++s) r.source[s] = copied + sources_[j][s << 1 | member];
        r.out = out + member * this->member(most) + j * orbits_;
        kernels_.fold_blocks[axes_](r);
      }
}

template class PixelLines<float>;
template class PixelLines<double>;

}  // namespace symconv
