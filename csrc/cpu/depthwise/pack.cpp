// Lanes, and packing of boxes and of taps for the depthwise passes.
#include <algorithm>

#include "depthwise/depthwise.h"

namespace symconv {

namespace {

// Lines of taps that one call can move: all of them where they are contiguous.
template <class T, class Move>
void move_taps(const Kernels<T>& kernels, const Problem& p, const Lanes& lanes, const WeightView<T>& weight,
               int64_t group_stride, const LaneBlock& block, int64_t row, Sum<T>* at, const Move& move) {
  const Triple k = kept_kernel(p);
  const Triple dense = {k[1] * k[2], k[2], 1};
  bool contiguous = true;
  for (int i = 0; i < kAxes; ++i) contiguous = contiguous && (k[i] == 1 || weight.tap_stride[i] == dense[i]);
  const int64_t row_stride = lanes.contracts() ? weight.channel_stride : weight.orbit_stride;
  Lanes::Table table;
  LaneArgs<T> a{};
  a.planes = 1, a.channels = block.lanes;
  a.lane = lanes.places(group_stride, lanes.contracts() ? weight.orbit_stride : weight.channel_stride, table);
  a.channel_stride = a.lane ? 1 : group_stride;
  T* const data = weight.data + block.first * group_stride + row * row_stride;
  const auto taps = [&](T* memory, int64_t first, int64_t count, int64_t stride) {
    a.lanes = at + first * kernels.lanes, a.memory = memory;
    a.positions = count, a.position_stride = stride;
    move(a);
  };
  if (contiguous) return taps(data, 0, k[0] * k[1] * k[2], 1);
  for (int64_t d = 0; d < k[0]; ++d)
    for (int64_t h = 0; h < k[1]; ++h)
      taps(data + d * weight.tap_stride[0] + h * weight.tap_stride[1], (d * k[1] + h) * k[2], k[2],
           weight.tap_stride[2]);
}

// Parities of one tie with at most four members are made while packing; of several orbits only where lanes
// share them.
bool folds_at_once(const Problem& p, const Lanes& lanes) {
  const int members = p.segments[0].members();
  return p.segments.size() == 1 && members <= 4 && (p.orbits == 1 || lanes.of_group() > 1);
}

// Member planes of every orbit to parity planes, in place. `vectors` of each plane.
template <class T>
void planes_to_parities(const DepthwiseKernels<T>& kernels, const Problem& p, Sum<T>* planes,
                        int64_t plane_stride, int64_t vectors) {
  for (const Segment& s : p.segments) {
    for (int64_t r = 0; r < s.rows; ++r) {
      Sum<T>* member[kMaxSources];
      for (int g = 0; g < s.members(); ++g) member[g] = planes + (member_channel(s, g) + r) * plane_stride;
      kernels.butterfly(member, s.own_image ? 0 : s.tie.axes(), vectors);
    }
  }
}

}  // namespace

Lanes::Lanes(const Problem& p, bool forward, int vector)
    : groups_(p.groups), of_group_(1), rows_(p.orbits), contracts_(forward && p.channels > 1) {
  if (p.channels > 1) of_group_ = forward ? p.orbits : p.channels;
  if (contracts_) rows_ = p.channels;
  of_vector_ = vector / of_group_;
  blocks_ = ceil_div(groups_, of_vector_);
}

LaneBlock Lanes::block(int64_t b) const {
  const int64_t first = b * of_vector_, groups = std::min(of_vector_, groups_ - first);
  return {first, groups, static_cast<int>(groups * of_group_)};
}

const int32_t* Lanes::places(int64_t group, int64_t lane, Table& table) const {
  if (of_group_ == 1) return nullptr;
  for (int64_t l = 0; l < of_vector_ * of_group_; ++l)
    table[l] = static_cast<int32_t>(l / of_group_ * group + l % of_group_ * lane);
  return table.data();
}

template <class T>
void gather_taps(const Kernels<T>& kernels, const Problem& p, const Lanes& lanes,
                 const WeightView<const T>& weight, int64_t group_stride, const LaneBlock& block, int64_t row,
                 Sum<T>* out) {
  const WeightView<T> view{const_cast<T*>(weight.data), weight.orbit_stride, weight.channel_stride,
                           weight.tap_stride};
  move_taps(kernels, p, lanes, view, group_stride, block, row, out, kernels.depthwise.gather);
}

// Lanes with neighbouring rows of the weight, mirrored alike, together; those of a block are mostly such.
template <class T>
void gather_mirrored(const Kernels<T>& kernels, const Problem& p, const Lanes& lanes,
                     const WeightView<const T>& weight, const MirroredTaps& mirrored, const LaneBlock& block,
                     int64_t filter, Sum<T>* raw, Sum<T>* out) {
  const MirroredRow* of = p.across.data() + block.first * p.filters + filter;
  const int64_t apart = p.filters, vector = kernels.lanes;
  for (int lane = 0, count = 0; lane < block.lanes; lane += count) {
    const MirroredRow& first = of[lane * apart];
    const auto follows = [&](int64_t i) {
      const MirroredRow& next = of[(lane + i) * apart];
      return next.mirrors == first.mirrors && next.row == first.row + i * apart;
    };
    for (count = 1; lane + count < block.lanes && follows(count);) ++count;
    WeightView<const T> rows = weight;
    rows.data += first.row * rows.orbit_stride;
    gather_taps(kernels, p, lanes, rows, apart * rows.orbit_stride, {0, count, count}, 0, raw);
    const std::vector<TapGroup>& taps = mirrored[first.mirrors];
    if (count == block.lanes)
      return kernels.depthwise.fold_taps(taps.data(), static_cast<int64_t>(taps.size()), raw, out, false);
    if (lane == 0) std::fill_n(out, kernel_taps(p) * vector, Sum<T>(0));
    for (const TapGroup& tap : taps)
      std::copy_n(raw + tap.tap[0] * vector, count, out + tap.place[0] * vector + lane);
  }
}

template <class T>
void scatter_taps(const Kernels<T>& kernels, const Problem& p, const Lanes& lanes,
                  const WeightView<T>& weight, int64_t group_stride, const LaneBlock& block, int64_t row,
                  Sum<T>* from) {
  move_taps(kernels, p, lanes, weight, group_stride, block, row, from, kernels.depthwise.scatter);
}

template <class T>
void pack_box(const Kernels<T>& kernels, const Problem& p, const Lanes& lanes, const Packing<T>& from,
              int64_t image, const LaneBlock& block, bool clear, Sum<T>* out) {
  const auto& [source, shared, planes, parities, phase, box, pitch] = from;
  const int vector = kernels.lanes;
  const int64_t plane = from.plane_vectors() * vector, of_group = shared ? planes : lanes.of_group();
  // Columns of a line that lie in the map; zeros on both sides.
  const int64_t width = phase.axis[2]->extent, height = box.source_end[1] - box.source_begin[1];
  const int64_t first = std::clamp<int64_t>(-phase.column, 0, pitch);
  const int64_t last = std::clamp<int64_t>(width - phase.column, first, pitch);
  const bool whole = last - first == width && source.stride[1] == width * source.stride[2];
  const Runs runs(height, last - first, pitch, first, whole);
  const bool at_once = parities && folds_at_once(p, lanes);
  const T* data = source.data + image * source.batch_stride + block.first * of_group * source.channel_stride +
                  (first + phase.column) * source.stride[2];
  for (int f = 0; clear && f < planes; ++f) {
    std::fill_n(out + f * plane, pitch * vector, Sum<T>(0));
    for (int64_t i = 1; i <= box.source_lines(); ++i) {
      Sum<T>* line = out + f * plane + i * pitch * vector;
      std::fill_n(line, first * vector, Sum<T>(0));
      std::fill_n(line + last * vector, (pitch - last) * vector, Sum<T>(0));
    }
  }
  Lanes::Table table;
  LaneArgs<T> a{};
  a.plane_stride = plane, a.planes = planes, a.channels = block.lanes;
  a.channel_stride = source.channel_stride, a.position_stride = source.stride[2];
  a.butterfly = at_once, a.orbits = static_cast<int>(p.orbits);
  a.lane = shared ? lanes.places(planes, 0, table) : nullptr;
  a.span = block.groups * planes;
  Sum<T>* line = out + pitch * vector;
  for (int64_t d = box.source_begin[0]; first < last && d < box.source_end[0];
       ++d, line += height * pitch * vector)
    for (int64_t r = 0; r < runs.count(); ++r) {
      const int64_t begin = runs.begin(r), end = runs.begin(r + 1);
      T* memory =
          const_cast<T*>(data) + d * source.stride[0] + (box.source_begin[1] + begin) * source.stride[1];
      a.lanes = line + (begin * pitch + (runs.place() ? 0 : first)) * vector, a.place = runs.place();
      a.positions = (end - begin) * (last - first), a.memory = memory;
      kernels.depthwise.gather(a);
    }
  if (parities && !at_once) planes_to_parities(kernels.depthwise, p, out, plane, plane / vector);
}

#define SYMCONV_INSTANTIATE(T)                                                                              \
  template void gather_taps<T>(const Kernels<T>&, const Problem&, const Lanes&, const WeightView<const T>&, \
                               int64_t, const LaneBlock&, int64_t, Sum<T>*);                                \
  template void gather_mirrored<T>(const Kernels<T>&, const Problem&, const Lanes&,                         \
                                   const WeightView<const T>&, const MirroredTaps&, const LaneBlock&,       \
                                   int64_t, Sum<T>*, Sum<T>*);                                              \
  template void scatter_taps<T>(const Kernels<T>&, const Problem&, const Lanes&, const WeightView<T>&,      \
                                int64_t, const LaneBlock&, int64_t, Sum<T>*);                               \
  template void pack_box<T>(const Kernels<T>&, const Problem&, const Lanes&, const Packing<T>&, int64_t,    \
                            const LaneBlock&, bool, Sum<T>*);
SYMCONV_FOR_ELEMENTS(SYMCONV_INSTANTIATE)

}  // namespace symconv
