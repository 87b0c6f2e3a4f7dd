// Copies of what tiles read, and slices of panels from them.
#include "packed/slices.h"

namespace symconv {

SliceSizes slice_sizes(int64_t channels, int64_t columns, int lanes, int64_t row) {
  for (int64_t vectors = 2;; --vectors) {
    const int64_t pixels = vectors * lanes;
    const int64_t groups = (kSliceBytes / pixels - columns * row) / (channels * row);
    if (groups * channels >= kSliceRows || vectors == 1) return {pixels, std::max<int64_t>(1, groups)};
  }
}

Triple slice_block(const Tiling& tiling, int64_t pixels) {
  const int64_t line = std::min(tiling.block[2], pixels);
  return {1, std::clamp<int64_t>(pixels / line, 1, tiling.block[1]), line};
}

template <class T>
Slicer<T>::Slicer(const Kernels<T>& kernels, const Plan& plan, const Phase& phase, const Stage* stage,
                  int64_t channels)
    : kernels_(kernels), phase_(phase), stage_(stage), channels_(channels), rows_(plan.groups[0].channels) {
  for (int axis = 0; axis < kAxes; ++axis) {
    const AxisMap& map = *phase.axis[axis];
    const auto [low, high] = map.reach();
    low_[axis] = low;
    size_[axis] = map.a * (phase.tiling.block[axis] - 1) + high - low + 1;
  }
  stride_ = {size_[1] * size_[2] * channels, size_[2] * channels, channels};
  for (int axis = 0; axis < kAxes; ++axis) {
    const int64_t a = phase.axis[axis]->a;
    step_[axis] = stage ? stage->offset(axis, a, 0) : a * stride_[axis];
  }
  for (const Group& g : plan.groups) {
    std::array<int64_t, kMaxSources>& sources = sources_.emplace_back();
    for (int s = 0; s < kMaxSources; ++s) {
      sources[s] = g.channel[s] * (stage ? stage->channel_stride() : 1);
      for (int axis = 0; axis < kAxes; ++axis) {
        const int64_t at = phase.axis[axis]->b[g.tap[s][axis]];
        sources[s] += stage ? stage->offset(axis, at, low_[axis]) : (at - low_[axis]) * stride_[axis];
      }
    }
  }
}

template <class T>
int64_t Slicer<T>::elements() const {
  return stage_ ? stage_->elements() : size_[0] * stride_[0];
}

// A line of positions that begins at `at`: zeros outside of the map.
template <class T>
void Slicer<T>::copy_line(const View<const Element<T>>& source, const Triple& at, Element<T>* to) const {
  using E = Element<T>;
  const auto extent = [&](int axis) { return phase_.axis[axis]->extent; };
  if (at[0] < 0 || at[0] >= extent(0) || at[1] < 0 || at[1] >= extent(1)) {
    std::fill_n(to, stride_[1], E{});
    return;
  }
  const int64_t low = std::clamp<int64_t>(-at[2], 0, size_[2]);
  const int64_t high = std::clamp<int64_t>(extent(2) - at[2], low, size_[2]);
  std::fill_n(to, low * channels_, E{});
  std::fill_n(to + high * channels_, (size_[2] - high) * channels_, E{});
  const E* from = source.data + dot(at, source.stride) + low * source.stride[2];
  const bool whole = source.stride[2] == channels_;
  const int64_t run = whole ? (high - low) * channels_ : channels_;
  for (int64_t i = low; i < high; i += whole ? high - low : 1, from += source.stride[2])
    std::copy_n(from, run, to + i * channels_);
}

template <class T>
void Slicer<T>::fill(const Tile& tile, const View<const Element<T>>& source, int64_t first_channel,
                     Held<Element<T>>& copy) const {
  if (stage_) {
    stage_->fill(kernels_, phase_, tile, source, first_channel, channels_, copy);
    return;
  }
  View<const Element<T>> own = source;
  own.data += source.batch_stride * tile.image + first_channel;
  Triple at;
  for (int axis = 0; axis < kAxes; ++axis) at[axis] = phase_.axis[axis]->a * tile.begin[axis] + low_[axis];
  for (int64_t d = 0; d < size_[0]; ++d)
    for (int64_t h = 0; h < size_[1]; ++h)
      copy_line(own, {at[0] + d, at[1] + h, at[2]}, copy.data + d * stride_[0] + h * stride_[1]);
}

template <class T>
void Slicer<T>::pack(const Tile& tile, const Tile& part, const Chunk& chunk, const Element<T>* copy,
                     int64_t apart, Stored<T>* panel, int64_t ld) const {
  if constexpr (!kNarrow<T>) {
    EightArgs<T> r;
    r.ld = ld;
    r.loose = stage_ != nullptr;
    r.step = stage_ ? stage_->channel_stride() : step_[2];
    r.rows = stage_ ? rows_ : part.size[2], r.length = stage_ ? part.size[2] : rows_;
    r.apart = stage_ ? apart * ld : apart;
    for (int axis = 0; axis < kAxes; ++axis) copy += (part.begin[axis] - tile.begin[axis]) * step_[axis];
    const int64_t groups = std::min(chunk.groups, static_cast<int64_t>(sources_.size()) - chunk.first_group);
    for (int64_t d = 0; d < part.size[0]; ++d)
      for (int64_t h = 0; h < part.size[1]; ++h) {
        const Element<T>* const line = copy + d * step_[0] + h * step_[1];
        const int64_t pixel = (d * part.size[1] + h) * part.size[2];
        for (int64_t g = 0; g < groups; ++g) {
          for (int s = 0; s < kMaxSources; ++s) r.source[s] = line + sources_[chunk.first_group + g][s];
          r.out = stage_ ? panel + g * rows_ * ld + pixel : panel + pixel * ld + g * rows_;
          kernels_.fold_eight(r);
        }
      }
  }
}

#define SYMCONV_INSTANTIATE(T) template class Slicer<T>;
SYMCONV_FOR_ALL_TYPES(SYMCONV_INSTANTIATE)

}  // namespace symconv
