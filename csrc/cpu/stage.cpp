// Copying the source of one tile into its stage.
#include "stage.h"

#include <algorithm>

namespace symconv {

namespace {

// First and last source position that the anchor 0 reads on an axis that is not shifted along.
std::pair<int64_t, int64_t> reach(const AxisMap& map) {
  int64_t low = 0, high = 0;
  bool any = false;
  for (size_t tap = 0; tap < map.b.size(); ++tap) {
    if (!map.present[tap]) continue;
    low = any ? std::min(low, map.b[tap]) : map.b[tap];
    high = any ? std::max(high, map.b[tap]) : map.b[tap];
    any = true;
  }
  return {low, high};
}

}  // namespace

Stage::Stage(const Plan& plan, const Phase& phase, int64_t channels, int lanes) : channels_(channels) {
  const Tiling& tiling = phase.tiling;
  for (int i = 0; i < kAxes; ++i) {
    const int axis = tiling.order[i];
    const AxisMap& map = *phase.axis[axis];
    const auto [low, high] = reach(map);
    low_[axis] = low;
    step_[axis] = axis == plan.offset_axis ? tiling.lines_out : map.a;
    const int64_t more = axis == plan.offset_axis && plan.filtering ? tiling.products - 1 : high - low;
    size_[axis] = step_[axis] * (tiling.block[i] - 1) + more + 1;
  }
  residues_ = step_[kAxes - 1];
  pitch_ = (size_[2] + residues_ - 1) / residues_;
  stride_ = {size_[1] * pitch_ * residues_, pitch_ * residues_, 1};
  channel_stride_ = size_[0] * stride_[0];
  // Planes a power of two apart would collide in the first-level cache.
  if (channel_stride_ % (4 * lanes) == 0) channel_stride_ += lanes;
  slack_ = size_[2] * channels + lanes;
}

template <class T>
void Stage::fill(const Kernels<T>& kernels, const Phase& phase, const Tile& tile,
                 const View<const Element<T>>& source, int64_t first_channel, int64_t channels,
                 Element<T>* out) const {
  using E = Element<T>;
  Triple first, anchors;
  for (int i = 0; i < kAxes; ++i) anchors[phase.tiling.order[i]] = tile.begin[i];
  for (int axis = 0; axis < kAxes; ++axis) first[axis] = this->first(axis, anchors[axis]);
  const int64_t extent = phase.axis[2]->extent;
  const int64_t low = std::clamp<int64_t>(-first[2], 0, size_[2]);
  const int64_t high = std::clamp<int64_t>(extent - first[2], low, size_[2]);
  const bool split = residues_ > 1;
  E* line = out + channels_ * channel_stride_;  // [channel][position], before its residues are set apart
  const E* from = source.data + source.batch_stride * tile.image + first_channel * source.channel_stride;
  for (int64_t d = 0; d < size_[0]; ++d)
    for (int64_t h = 0; h < size_[1]; ++h) {
      const int64_t z = first[0] + d, y = first[1] + h;
      const bool inside = z >= 0 && z < phase.axis[0]->extent && y >= 0 && y < phase.axis[1]->extent;
      E* to = out + d * stride_[0] + h * stride_[1];
      if (!inside) {
        for (int64_t c = 0; c < channels; ++c) std::fill_n(to + c * channel_stride_, pitch_ * residues_, E{});
        continue;
      }
      E* copy = split ? line : to;
      const int64_t stride = split ? size_[2] : channel_stride_;
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t i = 0; i < low; ++i) copy[c * stride + i] = E{};
        for (int64_t i = high; i < size_[2]; ++i) copy[c * stride + i] = E{};
      }
      kernels.stage_line(
          from + z * source.stride[0] + y * source.stride[1] + (first[2] + low) * source.stride[2],
          source.channel_stride, source.stride[2], channels, high - low, copy + low, stride);
      for (int64_t c = 0; split && c < channels; ++c)
        kernels.split_line(line + c * stride, size_[2], residues_, to + c * channel_stride_, pitch_);
    }
}

#define SYMCONV_INSTANTIATE(T)                                                                              \
  template void Stage::fill<T>(const Kernels<T>&, const Phase&, const Tile&, const View<const Element<T>>&, \
                               int64_t, int64_t, Element<T>*) const;
SYMCONV_FOR_ALL_TYPES(SYMCONV_INSTANTIATE)

}  // namespace symconv
