// Packing of boxes and of taps for the depthwise passes.
#include <algorithm>

#include "depthwise.h"

namespace symconv {

namespace {

// Lines of taps that one call can move: all of them where they are contiguous.
template <class T, class Move>
void move_taps(const Problem& p, const WeightView<T>& weight, int64_t group_stride, const ChannelBlock& block,
               int64_t orbit, int lanes, const Move& move) {
  const Triple& k = p.kernel;
  const Triple dense = {k[1] * k[2], k[2], 1};
  bool contiguous = true;
  for (int i = 0; i < kAxes; ++i) contiguous = contiguous && (k[i] == 1 || weight.tap_stride[i] == dense[i]);
  T* data = weight.data + block.first * group_stride + orbit * weight.orbit_stride;
  if (contiguous) return move(data, 0, kernel_taps(p), 1);
  for (int64_t d = 0; d < k[0]; ++d)
    for (int64_t h = 0; h < k[1]; ++h)
      move(data + d * weight.tap_stride[0] + h * weight.tap_stride[1], (d * k[1] + h) * k[2] * lanes, k[2],
           weight.tap_stride[2]);
}

// One orbit of at most four members a channel: its parities are made while packing.
bool is_one_orbit(const Problem& p) {
  return p.orbits == 1 && p.filters <= 4 && p.filters == 1 << __builtin_popcount(p.segments[0].mask);
}

// Member planes of every orbit to parity planes, in place. `vectors` of each plane.
template <class T>
void planes_to_parities(const DepthwiseKernels<T>& kernels, const Problem& p, Sum<T>* planes,
                        int64_t plane_stride, int64_t vectors) {
  for (const Segment& s : p.segments) {
    const int ties = __builtin_popcount(s.mask);
    for (int64_t r = 0; r < s.rows; ++r) {
      Sum<T>* member[kMaxSources];
      for (int g = 0; g < 1 << ties; ++g) member[g] = planes + (member_channel(s, g) + r) * plane_stride;
      kernels.butterfly(member, ties, vectors);
    }
  }
}

}  // namespace

template <class T>
void gather_taps(const DepthwiseKernels<T>& kernels, const Problem& p, const WeightView<const T>& weight,
                 int64_t group_stride, const ChannelBlock& block, int64_t orbit, int lanes, Sum<T>* out) {
  const WeightView<T> view{const_cast<T*>(weight.data), weight.orbit_stride, weight.channel_stride,
                           weight.tap_stride};
  move_taps(p, view, group_stride, block, orbit, lanes,
            [&](T* memory, int64_t at, int64_t taps, int64_t stride) {
              kernels.gather(
                  {out + at, 0, nullptr, 1, taps, block.lanes, memory, group_stride, stride, nullptr, false});
            });
}

template <class T>
void scatter_taps(const DepthwiseKernels<T>& kernels, const Problem& p, const WeightView<T>& weight,
                  int64_t group_stride, const ChannelBlock& block, int64_t orbit, int lanes, Sum<T>* from) {
  move_taps(
      p, weight, group_stride, block, orbit, lanes, [&](T* memory, int64_t at, int64_t taps, int64_t stride) {
        kernels.scatter(
            {from + at, 0, nullptr, 1, taps, block.lanes, memory, group_stride, stride, nullptr, false});
      });
}

template <class T>
void pack_box(const DepthwiseKernels<T>& kernels, int lanes, const Problem& p, const Packing<T>& from,
              int64_t image, const ChannelBlock& block, bool clear, Sum<T>* out) {
  const auto& [source, planes, parities, phase, box, pitch] = from;
  const int64_t plane = from.plane_vectors() * lanes;
  // Columns of a line that lie in the map; zeros on both sides.
  const int64_t width = phase.axis[2]->extent, height = box.source_end[1] - box.source_begin[1];
  const int64_t first = std::clamp<int64_t>(-phase.column, 0, pitch);
  const int64_t last = std::clamp<int64_t>(width - phase.column, first, pitch);
  const bool whole = last - first == width && source.stride[1] == width * source.stride[2];
  const Runs runs(height, last - first, pitch, first, whole);
  const bool at_once = parities && is_one_orbit(p);
  const T* data = source.data + image * source.batch_stride + block.first * planes * source.channel_stride +
                  (first + phase.column) * source.stride[2];
  for (int f = 0; clear && f < planes; ++f) {
    std::fill_n(out + f * plane, pitch * lanes, Sum<T>(0));
    for (int64_t i = 1; i <= box.source_lines(); ++i) {
      Sum<T>* line = out + f * plane + i * pitch * lanes;
      std::fill_n(line, first * lanes, Sum<T>(0));
      std::fill_n(line + last * lanes, (pitch - last) * lanes, Sum<T>(0));
    }
  }
  Sum<T>* line = out + pitch * lanes;
  for (int64_t d = box.source_begin[0]; first < last && d < box.source_end[0];
       ++d, line += height * pitch * lanes)
    for (int64_t r = 0; r < runs.count(); ++r) {
      const int64_t begin = runs.begin(r), end = runs.begin(r + 1);
      T* memory =
          const_cast<T*>(data) + d * source.stride[0] + (box.source_begin[1] + begin) * source.stride[1];
      kernels.gather({line + (begin * pitch + (runs.place() ? 0 : first)) * lanes, plane, runs.place(),
                      planes, (end - begin) * (last - first), block.lanes, memory, source.channel_stride,
                      source.stride[2], nullptr, at_once});
    }
  if (parities && !at_once) planes_to_parities(kernels, p, out, plane, plane / lanes);
}

#define SYMCONV_INSTANTIATE(T)                                                                             \
  template void gather_taps<T>(const DepthwiseKernels<T>&, const Problem&, const WeightView<const T>&,     \
                               int64_t, const ChannelBlock&, int64_t, int, Sum<T>*);                       \
  template void scatter_taps<T>(const DepthwiseKernels<T>&, const Problem&, const WeightView<T>&, int64_t, \
                                const ChannelBlock&, int64_t, int, Sum<T>*);                               \
  template void pack_box<T>(const DepthwiseKernels<T>&, int, const Problem&, const Packing<T>&, int64_t,   \
                            const ChannelBlock&, bool, Sum<T>*);
SYMCONV_INSTANTIATE(float)
SYMCONV_INSTANTIATE(double)
SYMCONV_INSTANTIATE(Half)
SYMCONV_INSTANTIATE(BFloat16)

}  // namespace symconv
