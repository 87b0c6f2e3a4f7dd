// Copying the source of one tile into its stage.
#include "packed/stage.h"

#include <algorithm>

namespace symconv {

Stage::Stage(const Plan& plan, const Phase& phase, int64_t channels, int lanes,
             const std::vector<int64_t>* order)
    : sums_(plan.sums), order_(order), channels_(channels) {
  const Tiling& tiling = phase.tiling;
  for (int i = 0; i < kAxes; ++i) {
    const int axis = tiling.order[i];
    const AxisMap& map = *phase.axis[axis];
    const auto [low, high] = map.reach();
    low_[axis] = low;
    step_[axis] = axis == plan.offset_axis ? tiling.lines_out : map.a;
    const int64_t more = axis == plan.offset_axis && plan.filtering ? tiling.products - 1 : high - low;
    size_[axis] = step_[axis] * (tiling.block[i] - 1) + more + 1;
    if (axis == kDepthAxis && plan.sums_depth()) {
      planes_ = size_[axis];
      low_[axis] = 0, step_[axis] = 1, size_[axis] = tiling.block[i];
    }
  }
  residues_ = step_[kAxes - 1];
  pitch_ = ceil_div(size_[2], residues_);
  int64_t line = pitch_ * residues_;
  if (plan.sums_depth()) {
    line = round_up(line, lanes);  // sums are written in whole vectors
    lines_ = channels * planes_ * line + line;
    channels_ = plan.sums.back().to + plan.sums.back().channels;
  }
  stride_ = {size_[1] * line, line, 1};
  channel_stride_ = apart(size_[0] * stride_[0], lanes, 4 * lanes);
  slack_ = size_[2] * channels + lanes;
}

// Position (z, y) of the source: zeros if it is outside of the map.
template <class T>
void Stage::copy_line(const Copy<T>& copy, int64_t z, int64_t y, Element<T>* to) const {
  using E = Element<T>;
  const int64_t channels = copy.channels, channel_stride = copy.channel_stride;
  const auto inside = [&](int axis, int64_t at) { return at >= 0 && at < copy.phase.axis[axis]->extent; };
  if (!inside(0, z) || !inside(1, y)) {
    for (int64_t c = 0; c < channels; ++c) std::fill_n(to + c * channel_stride, pitch_ * residues_, E{});
    return;
  }
  const int64_t low = std::clamp<int64_t>(-copy.first[2], 0, size_[2]);
  const int64_t high = std::clamp<int64_t>(copy.phase.axis[2]->extent - copy.first[2], low, size_[2]);
  const bool split = residues_ > 1;
  E* line = split ? copy.room : to;
  const int64_t stride = split ? size_[2] : channel_stride;
  // A position of all channels after the other: a few elements of each are not worth a call of memset.
  const auto clear = [&](int64_t i) {
    for (int64_t c = 0; c < channels; ++c) line[c * stride + i] = E{};
  };
  for (int64_t i = 0; i < low; ++i) clear(i);
  for (int64_t i = high; i < size_[2]; ++i) clear(i);
  const View<const E>& source = copy.source;
  const E* from = source.data + copy.phase.axis[0]->source(z) * source.stride[0] +
                  copy.phase.axis[1]->source(y) * source.stride[1] + (copy.first[2] + low) * source.stride[2];
  const auto stage = [&](int64_t channel, int64_t place, int64_t count) {
    copy.kernels.stage_line(from + channel * source.channel_stride, source.channel_stride, source.stride[2],
                            count, high - low, line + place * stride + low, stride);
  };
  if (!order_) stage(0, 0, channels);
  for (int64_t c = 0; order_ && c < channels; ++c) stage((*order_)[c], c, 1);
  for (int64_t c = 0; split && c < channels; ++c)
    copy.kernels.split_line(line + c * stride, size_[2], residues_, to + c * channel_stride, pitch_);
}

// Line `h` of all planes of a stage of sums, from lines of the source, [channel][plane][position].
template <class T>
void Stage::sum_lines(const Copy<T>& copy, int64_t h, Element<T>* lines, const Element<T>* zeros,
                      Element<T>* out) const {
  const AxisMap& map = *copy.phase.axis[kDepthAxis];
  const int64_t low = map.reach().first;
  for (int64_t plane = 0; plane < planes_; ++plane)
    copy_line(copy, copy.first[0] + plane, copy.first[1] + h, lines + plane * stride_[1]);
  RunArgs<T> run{};
  run.positions = pitch_ * residues_, run.loose = true, run.ld = channel_stride_;
  for (const DepthSum& sum : sums_) {
    run.channels = sum.channels;
    for (int64_t d = 0; d < size_[0]; ++d) {
      for (int s = 0; s < 2; ++s) {
        const bool there = map.present[sum.tap[s]];
        const int64_t plane = map.a * d + map.b[sum.tap[s]] - low;
        run.source[0][s] = there ? lines + sum.channel[s] * copy.channel_stride + plane * stride_[1] : zeros;
        run.channel_step[0][s] = there ? copy.channel_stride : 0;
        run.position_step[0][s] = 1;
      }
      run.out[0] =
          reinterpret_cast<Stored<T>*>(out) + sum.to * channel_stride_ + d * stride_[0] + h * stride_[1];
      copy.kernels.sum_planes[kPlain][1](run);
    }
  }
}

template <class T>
void Stage::fill(const Kernels<T>& kernels, const Phase& phase, const Tile& tile,
                 const View<const Element<T>>& source, int64_t first_channel, int64_t channels,
                 Element<T>* out) const {
  Triple anchors;
  for (int i = 0; i < kAxes; ++i) anchors[phase.tiling.order[i]] = tile.begin[i];
  Element<T>* const lines = out + channels_ * channel_stride_;
  Copy<T> copy{kernels, phase, source, {}, channels, channel_stride_, lines + lines_};
  copy.source.data += source.batch_stride * tile.image + first_channel * source.channel_stride;
  for (int axis = 0; axis < kAxes; ++axis) copy.first[axis] = first(axis, anchors[axis]);
  if (sums_.empty()) {
    for (int64_t d = 0; d < size_[0]; ++d)
      for (int64_t h = 0; h < size_[1]; ++h)
        copy_line(copy, copy.first[0] + d, copy.first[1] + h, out + d * stride_[0] + h * stride_[1]);
    return;
  }
  const AxisMap& map = *phase.axis[kDepthAxis];
  copy.first[0] = map.a * anchors[0] + map.reach().first;
  copy.channel_stride = planes_ * stride_[1];
  Element<T>* const zeros = lines + lines_ - stride_[1];
  std::fill_n(zeros, stride_[1], Element<T>{});
  for (int64_t h = 0; h < size_[1]; ++h) sum_lines(copy, h, lines, zeros, out);
}

#define SYMCONV_INSTANTIATE(T)                                                                              \
  template void Stage::fill<T>(const Kernels<T>&, const Phase&, const Tile&, const View<const Element<T>>&, \
                               int64_t, int64_t, Element<T>*) const;
SYMCONV_FOR_ALL_TYPES(SYMCONV_INSTANTIATE)

}  // namespace symconv
