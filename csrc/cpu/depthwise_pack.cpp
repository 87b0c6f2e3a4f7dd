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

}  // namespace

template <class T>
void gather_taps(const DepthwiseKernels<T>& kernels, const Problem& p, const WeightView<const T>& weight,
                 int64_t group_stride, const ChannelBlock& block, int64_t orbit, int lanes, T* out) {
  const WeightView<T> view{const_cast<T*>(weight.data), weight.orbit_stride, weight.channel_stride,
                           weight.tap_stride};
  move_taps(
      p, view, group_stride, block, orbit, lanes, [&](T* memory, int64_t at, int64_t taps, int64_t stride) {
        kernels.gather({out + at, 0, 1, taps, block.lanes, memory, group_stride, stride, nullptr, false});
      });
}

template <class T>
void scatter_taps(const DepthwiseKernels<T>& kernels, const Problem& p, const WeightView<T>& weight,
                  int64_t group_stride, const ChannelBlock& block, int64_t orbit, int lanes, T* from) {
  move_taps(
      p, weight, group_stride, block, orbit, lanes, [&](T* memory, int64_t at, int64_t taps, int64_t stride) {
        kernels.scatter({from + at, 0, 1, taps, block.lanes, memory, group_stride, stride, nullptr, false});
      });
}

template <class T>
void pack_box(const DepthwiseKernels<T>& kernels, int lanes, const View<const T>& source, int64_t image,
              const ChannelBlock& block, int planes, bool parities, const LinePhase& phase, const Box& box,
              int64_t pitch, T* out) {
  const int64_t plane = (1 + box.source_lines()) * pitch * lanes;
  // Columns of a line that lie in the map; zeros on both sides.
  const int64_t first = std::clamp<int64_t>(-phase.column, 0, pitch);
  const int64_t last = std::clamp<int64_t>(phase.axis[2]->extent - phase.column, first, pitch);
  for (int f = 0; f < planes; ++f) std::fill_n(out + f * plane, pitch * lanes, T(0));
  const T* data = source.data + image * source.batch_stride + block.first * planes * source.channel_stride +
                  (first + phase.column) * source.stride[2];
  T* line = out + pitch * lanes;
  for (int64_t d = box.source_begin[0]; d < box.source_end[0]; ++d)
    for (int64_t h = box.source_begin[1]; h < box.source_end[1]; ++h, line += pitch * lanes) {
      for (int f = 0; f < planes; ++f) {
        std::fill_n(line + f * plane, first * lanes, T(0));
        std::fill_n(line + f * plane + last * lanes, (pitch - last) * lanes, T(0));
      }
      if (first == last) continue;
      T* memory = const_cast<T*>(data) + d * source.stride[0] + h * source.stride[1];
      kernels.gather({line + first * lanes, plane, planes, last - first, block.lanes, memory,
                      source.channel_stride, source.stride[2], nullptr, parities});
    }
}

template <class T>
void planes_to_parities(const DepthwiseKernels<T>& kernels, const Problem& p, T* planes, int64_t plane_stride,
                        int64_t vectors) {
  for (const Segment& s : p.segments) {
    const int ties = __builtin_popcount(s.mask);
    for (int64_t r = 0; r < s.rows; ++r) {
      T* member[kMaxSources];
      for (int g = 0; g < 1 << ties; ++g) member[g] = planes + (member_channel(s, g) + r) * plane_stride;
      kernels.butterfly(member, ties, vectors);
    }
  }
}

#define SYMCONV_INSTANTIATE(T)                                                                             \
  template void gather_taps<T>(const DepthwiseKernels<T>&, const Problem&, const WeightView<const T>&,     \
                               int64_t, const ChannelBlock&, int64_t, int, T*);                            \
  template void scatter_taps<T>(const DepthwiseKernels<T>&, const Problem&, const WeightView<T>&, int64_t, \
                                const ChannelBlock&, int64_t, int, T*);                                    \
  template void pack_box<T>(const DepthwiseKernels<T>&, int, const View<const T>&, int64_t,                \
                            const ChannelBlock&, int, bool, const LinePhase&, const Box&, int64_t, T*);    \
  template void planes_to_parities<T>(const DepthwiseKernels<T>&, const Problem&, T*, int64_t, int64_t);
SYMCONV_INSTANTIATE(float)
SYMCONV_INSTANTIATE(double)

}  // namespace symconv
