// Copying the source of tiles into their stage.
#include "packed/stage.h"

#include <algorithm>
#include <array>
#include <utility>

#include "blocking.h"

namespace symconv {

namespace {

constexpr int64_t kKeptBytes = 512 << 10;  // of planes that stay, beside a panel in the second-level cache
constexpr int64_t kTransposed = 5;         // channels: fewer are taken apart quicker than they are transposed
template <class E>
constexpr int64_t kLineElements = kCacheLine / static_cast<int64_t>(sizeof(E));
constexpr HeldPlane kNone{INT64_MIN, 0, 0};

// First and last source position that anchor 0 reads on an axis, in any phase.
std::pair<int64_t, int64_t> reach_of(const std::vector<const Phase*>& phases, int axis) {
  auto [low, high] = phases[0]->axis[axis]->reach();
  for (const Phase* phase : phases) {
    const auto [least, most] = phase->axis[axis]->reach();
    low = std::min(low, least), high = std::max(high, most);
  }
  return {low, high};
}

// Of a tiling, by axis.
Triple by_axis(const Tiling& tiling, const Triple& in_order) {
  Triple t;
  for (int i = 0; i < kAxes; ++i) t[tiling.order[i]] = in_order[i];
  return t;
}

}  // namespace

void share_tiles(const Plan& plan, std::vector<Phase>& phases, int64_t channel_bytes) {
  if (plan.offset_axis >= 0 || phases.empty()) return;
  const Tiling& widest = phases[0].tiling;  // the first residue of every axis has most anchors
  std::vector<const Phase*> all;
  for (const Phase& phase : phases) all.push_back(&phase);
  std::array<int64_t, kAxes> reach, step;
  for (int axis = 0; axis < kAxes; ++axis) {
    const auto [low, high] = reach_of(all, axis);
    reach[axis] = high - low + 1, step[axis] = phases[0].axis[axis]->a;
  }
  const auto read = [&](int axis, int64_t anchors) { return step[axis] * (anchors - 1) + reach[axis]; };
  const int64_t planes = read(0, widest.block[0]), line = channel_bytes * read(2, widest.block[2]);
  int64_t strip = 1;
  if (widest.blocks[0] > 1)
    while (strip < widest.blocks[1] && planes * line * read(1, (strip + 1) * widest.block[1]) <= kKeptBytes)
      ++strip;
  strip = ceil_div(widest.blocks[1], ceil_div(widest.blocks[1], strip));
  for (Phase& phase : phases) {
    phase.tiling.block = widest.block, phase.tiling.blocks = widest.blocks;
    phase.tiling.strip = strip;
  }
}

std::vector<Stage> make_stages(const Plan& plan, const std::vector<const Phase*>& phases, int64_t channels,
                               int lanes, const std::vector<int64_t>* order) {
  std::vector<Stage> stages;
  if (!phases.empty() && phases[0]->tiling.strip)
    stages.emplace_back(plan, phases, channels, lanes, order);
  else
    for (const Phase* phase : phases) stages.emplace_back(plan, std::vector{phase}, channels, lanes, order);
  return stages;
}

Stage::Stage(const Plan& plan, const std::vector<const Phase*>& phases, int64_t channels, int lanes,
             const std::vector<int64_t>* order)
    : sums_(plan.sums), order_(order), tiling_(phases[0]->tiling), channels_(channels) {
  for (int axis = 0; axis < kAxes; ++axis) {
    const auto [low, high] = reach_of(phases, axis);
    const bool shifted = axis == plan.offset_axis;
    step_[axis] = shifted ? tiling_.lines_out : phases[0]->axis[axis]->a;
    low_[axis] = low;
    reach_[axis] = shifted && plan.filtering ? tiling_.products - 1 : high - low;
  }
  const Triple block = by_axis(tiling_, tiling_.block), count = by_axis(tiling_, tiling_.count);
  const auto read = [&](int axis, int64_t anchors) { return step_[axis] * (anchors - 1) + reach_[axis] + 1; };
  const int64_t tile_lines = read(1, block[1]);
  planes_ = read(0, block[0]);
  lines_ = turns() ? read(1, std::min(tiling_.strip * block[1], count[1])) : tile_lines;
  width_ = read(2, block[2]);
  residues_ = step_[2];
  pitch_ = ceil_div(width_, residues_);
  line_ = pitch_ * residues_;
  if (has_sums()) line_ = round_up(line_, lanes);  // sums are written in whole vectors
  const auto strides = [&](int64_t of, int64_t lines) {
    const int64_t line = apart(of * line_, lanes, 16 * lanes);
    return Triple{lines * line, line, 1};
  };
  stride_ = strides(channels_, lines_);
  kept_ = planes_ * stride_[0];
  summed_ = 0;
  if (has_sums()) {
    sum_stride_ = strides(plan.sums.back().to + plan.sums.back().channels, tile_lines);
    summed_ = block[0] * sum_stride_[0] + line_;  // a line of zeros
  }
  slack_ = width_ * channels_ + lanes;  // a line before its residues are set apart
}

int64_t Stage::plane_offset(int64_t z, int64_t first) const {
  return (turns() ? z - floor_div(z, planes_) * planes_ : z - first) * stride_[0];
}

// The tile that lies there in the phase with most anchors.
Tile Stage::widest(const Tile& tile) const {
  Tile t = tile;
  for (int i = 0; i < kAxes; ++i) t.size[i] = std::min(tiling_.block[i], tiling_.count[i] - tile.begin[i]);
  return t;
}

// Of a tensor, while it is copied.
template <class T>
struct Stage::Copy {
  const Kernels<T>& kernels;
  const Phase& phase;
  View<const Element<T>> source;
  Element<T>* room;  // for a line, [channel][position], before its residues are set apart
};

// Position (z, y) of the source, all channels: zeros if it is outside of the map.
template <class T>
void Stage::copy_line(const Copy<T>& copy, int64_t z, int64_t y, const Held<Element<T>>& held,
                      Element<T>* to) const {
  using E = Element<T>;
  const int64_t channels = held.channels, first = held.first[2];
  const auto inside = [&](int axis, int64_t at) { return at >= 0 && at < copy.phase.axis[axis]->extent; };
  if (!inside(0, z) || !inside(1, y)) {
    std::fill_n(to, channels * line_, E{});
    return;
  }
  const int64_t low = std::clamp<int64_t>(-first, 0, width_);
  const int64_t high = std::clamp<int64_t>(copy.phase.axis[2]->extent - first, low, width_);
  const View<const E>& source = copy.source;
  // Positions of one residue are transposed by themselves; lines of one channel are copied, and then split.
  const bool together = residues_ == 1 || (!order_ && source.channel_stride == 1 && channels >= kTransposed);
  E* const line = together ? to : copy.room;
  const int64_t stride = together ? line_ : width_;
  const auto place = [&](int64_t i) { return together ? i % residues_ * pitch_ + i / residues_ : i; };
  // A position of all channels after the other: a few elements of each are not worth a call of memset.
  const auto clear = [&](int64_t i) {
    for (int64_t c = 0; c < channels; ++c) line[c * stride + place(i)] = E{};
  };
  for (int64_t i = 0; i < low; ++i) clear(i);
  for (int64_t i = high; i < width_; ++i) clear(i);
  const E* from = source.data + copy.phase.axis[0]->source(z) * source.stride[0] +
                  copy.phase.axis[1]->source(y) * source.stride[1] + (first + low) * source.stride[2];
  // The line below comes next. Of few bytes a position the hardware, which stops at the end of a page,
  // foresees none.
  const bool narrow = channels <= 2 * kLineElements<E> && residues_ > 1;
  if (narrow && source.channel_stride == 1 && inside(1, y + 1)) {
    const E* below = from + copy.phase.axis[1]->source_step * source.stride[1];
    for (int64_t i = low; i < high; ++i, below += source.stride[2])
      for (int64_t c = 0; c < channels; c += kLineElements<E>) __builtin_prefetch(below + c);
  }
  const int64_t step = together ? residues_ : 1;
  const auto stage = [&](int64_t channel, int64_t to_channel, int64_t count) {
    for (int64_t r = 0; r < step && low + r < high; ++r)
      copy.kernels.stage_line(from + channel * source.channel_stride + r * source.stride[2],
                              source.channel_stride, step * source.stride[2], count,
                              ceil_div(high - low - r, step), line + to_channel * stride + place(low + r),
                              stride);
  };
  if (!order_) stage(0, 0, channels);
  for (int64_t c = 0; order_ && c < channels; ++c) stage((*order_)[c], c, 1);
  for (int64_t c = 0; !together && c < channels; ++c)
    copy.kernels.split_line(line + c * stride, width_, residues_, to + c * line_, pitch_);
}

// What of the tile is not there yet.
template <class T>
void Stage::copy_planes(const Copy<T>& copy, const Tile& tile, Held<Element<T>>& held) const {
  const Triple begin = by_axis(tiling_, tile.begin), size = by_axis(tiling_, tile.size);
  const auto [z, y] = std::pair{step_[0] * begin[0] + low_[0], step_[1] * begin[1] + low_[1]};
  const int64_t planes = step_[0] * (size[0] - 1) + reach_[0] + 1;
  const int64_t end = y + step_[1] * (size[1] - 1) + reach_[1] + 1;
  for (int64_t plane = z; plane < z + planes; ++plane) {
    const int64_t offset = plane_offset(plane, held.first[0]);
    HeldPlane& h = held.planes[offset / stride_[0]];
    if (h.plane != plane || y < h.begin || y > h.end) h = {plane, y, y};
    for (; h.end < end; ++h.end)
      copy_line(copy, plane, h.end, held, held.data + offset + (h.end - held.first[1]) * stride_[1]);
  }
}

// Lines of all sums, [plane][line][channel][position].
template <class T>
void Stage::sum_lines(const Copy<T>& copy, const Tile& tile, Held<Element<T>>& held) const {
  using E = Element<T>;
  const AxisMap& map = *copy.phase.axis[kDepthAxis];
  if (turns() && held.summed_by == &map && held.summed == tile.begin) return;
  held.summed_by = &map, held.summed = tile.begin;
  const Triple begin = by_axis(tiling_, tile.begin), size = by_axis(tiling_, tile.size);
  const int64_t lines = step_[1] * (size[1] - 1) + reach_[1] + 1;
  const int64_t y = step_[1] * begin[1] + low_[1] - held.first[1];
  E *const out = held.data + kept_, *const zeros = out + summed_ - line_;
  std::fill_n(zeros, line_, E{});
  std::vector<StagedRun<T>> runs;
  StagedLine<T> line{};
  line.positions = pitch_ * residues_, line.ld = line_;
  for (int64_t d = 0; d < size[0]; ++d) {
    runs.clear();
    for (const DepthSum& sum : sums_) {
      if (!map.present[sum.tap[0]] && !map.present[sum.tap[1]]) continue;
      StagedRun<T>& run = runs.emplace_back();
      run.log_sources = 1, run.channels = sum.channels, run.row[0] = sum.to * line_;
      for (int s = 0; s < 2; ++s) {
        const bool there = map.present[sum.tap[s]];
        const int64_t plane = plane_offset(map.a * (begin[0] + d) + map.b[sum.tap[s]], held.first[0]);
        run.source[s] = there ? held.data + plane + y * stride_[1] + sum.channel[s] * line_ : zeros;
        run.step[s] = there ? line_ : 0;
      }
    }
    line.run = runs.data(), line.runs = static_cast<int64_t>(runs.size());
    for (int64_t h = 0; h < lines; ++h) {
      line.from = h * stride_[1];
      line.out = reinterpret_cast<Stored<T>*>(out) + d * sum_stride_[0] + h * sum_stride_[1];
      copy.kernels.sum_line(line);
    }
  }
}

template <class T>
StagePlaces Stage::fill(const Kernels<T>& kernels, const Phase& phase, const Tile& tile,
                        const View<const Element<T>>& source, int64_t first_channel, int64_t channels,
                        Held<Element<T>>& held) const {
  const Triple begin = by_axis(tiling_, tile.begin), block = by_axis(tiling_, tiling_.block);
  Triple first;
  for (int axis = 0; axis < kAxes; ++axis) first[axis] = step_[axis] * begin[axis] + low_[axis];
  StagePlaces places{first, stride_, residues_, pitch_, turns() ? planes_ : 0};
  if (turns()) {
    const int64_t strip = tiling_.strip * block[1];
    first[0] = 0, first[1] = step_[1] * (begin[1] / strip * strip) + low_[1];
    places.origin[1] = first[1];
  }
  const bool same = turns() && held.of == this && held.image == tile.image && held.channel == first_channel &&
                    held.channels == channels && held.first == first;
  if (!same) {
    held.of = this, held.image = tile.image, held.channel = first_channel, held.channels = channels,
    held.first = first;
    held.planes.assign(planes_, kNone);
    held.summed_by = nullptr;
  }
  Copy<T> copy{kernels, phase, source, held.data + kept_ + summed_};
  copy.source.data += source.batch_stride * tile.image + first_channel * source.channel_stride;
  const Tile all = widest(tile);
  copy_planes(copy, all, held);
  if (!has_sums()) return places;
  sum_lines(copy, all, held);
  return {{begin[0], step_[1] * begin[1] + low_[1], first[2]}, sum_stride_, residues_, pitch_, 0};
}

#define SYMCONV_INSTANTIATE(T)                                                                            \
  template StagePlaces Stage::fill<T>(const Kernels<T>&, const Phase&, const Tile&,                       \
                                      const View<const Element<T>>&, int64_t, int64_t, Held<Element<T>>&) \
      const;
SYMCONV_FOR_ALL_TYPES(SYMCONV_INSTANTIATE)

}  // namespace symconv
