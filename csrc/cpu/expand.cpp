// Copies and sums over orbit members.
#include "expand.h"

#include <algorithm>

#include "convert.h"
#include "scratch.h"

namespace symconv {

namespace {

// One tap of one orbit member, as offsets in the ordinary filters and in the reduced weight.
struct MemberTap {
  int member;
  int64_t filter, weight;
};

// Offset of a tap mirrored on the axes of an orbit member.
int64_t mirrored(const Problem& p, const int (&axes)[kAxes], int ties, int member, const Taps& tap,
                 const Triple& stride) {
  Taps at = tap;
  for (int t = 0; t < ties; ++t)
    if (member >> t & 1) at[axes[t]] = static_cast<int>(p.kernel[axes[t]]) - 1 - tap[axes[t]];
  return at[0] * stride[0] + at[1] * stride[1] + at[2] * stride[2];
}

std::vector<MemberTap> member_taps(const Problem& p, const Segment& segment, const Triple& filter,
                                   const Triple& weight) {
  std::vector<MemberTap> taps;
  int axes[kAxes];
  const int ties = tied_axes(segment.mask, axes);
  taps.reserve((p.kernel[0] * p.kernel[1] * p.kernel[2]) << ties);
  for (int d = 0; d < p.kernel[0]; ++d)
    for (int h = 0; h < p.kernel[1]; ++h)
      for (int w = 0; w < p.kernel[2]; ++w)
        for (int member = 0; member < 1 << ties; ++member)
          taps.push_back({member, mirrored(p, axes, ties, member, {d, h, w}, filter),
                          d * weight[0] + h * weight[1] + w * weight[2]});
  return taps;
}

// Calls f(segment, its taps, row of the segment, group) for every row of the reduced weight.
template <class F>
void for_rows(const Problem& p, const Triple& filter, const Triple& weight, const F& f) {
  for (const Segment& segment : p.segments) {
    const std::vector<MemberTap> taps = member_taps(p, segment, filter, weight);
    const int64_t count = segment.rows * p.groups;
    const int64_t work = count * p.channels * static_cast<int64_t>(taps.size());
    parallel_slices(count, work < (1 << 14) ? 1 : thread_count(), [&](int64_t begin, int64_t end, int64_t) {
      for (int64_t i = begin; i < end; ++i) f(segment, taps, i % segment.rows, i / segment.rows);
    });
  }
}

}  // namespace

template <class T>
void expand(const Problem& p, const WeightView<const T>& weight, int64_t weight_group_stride,
            const WeightView<T>& filters, int64_t filters_group_stride) {
  for_rows(p, filters.tap_stride, weight.tap_stride,
           [&](const Segment& s, const std::vector<MemberTap>& taps, int64_t row, int64_t group) {
             const T* from =
                 weight.data + group * weight_group_stride + (s.first + row) * weight.orbit_stride;
             T* to = filters.data + group * filters_group_stride + row * filters.orbit_stride;
             for (const MemberTap& tap : taps) {
               T* out = to + tap.filter + member_channel(s, tap.member) * filters.orbit_stride;
               if (filters.channel_stride == 1 && weight.channel_stride == 1 && p.channels >= 16) {
                 std::copy_n(from + tap.weight, p.channels, out);
                 continue;
               }
               for (int64_t c = 0; c < p.channels; ++c)
                 out[c * filters.channel_stride] = from[tap.weight + c * weight.channel_stride];
             }
           });
}

template <class T>
void reduce(const Problem& p, const WeightView<const T>& filters, int64_t filters_group_stride,
            const WeightView<T>& weight, int64_t weight_group_stride) {
  for_rows(p, filters.tap_stride, weight.tap_stride,
           [&](const Segment& s, const std::vector<MemberTap>& taps, int64_t row, int64_t group) {
             T* to = weight.data + group * weight_group_stride + (s.first + row) * weight.orbit_stride;
             const T* from = filters.data + group * filters_group_stride + row * filters.orbit_stride;
             const int members = 1 << __builtin_popcount(s.mask);
             for (size_t t = 0; t < taps.size(); t += members) {
               for (int64_t c = 0; c < p.channels; ++c) {
                 Sum<T> sum = 0;
                 for (int i = 0; i < members; ++i) {
                   const MemberTap& tap = taps[t + i];
                   sum += widened(from[tap.filter + member_channel(s, tap.member) * filters.orbit_stride +
                                       c * filters.channel_stride]);
                 }
                 assign(to[taps[t].weight + c * weight.channel_stride], sum);
               }
             }
           });
}

#define SYMCONV_INSTANTIATE(T)                                                                       \
  template void expand<T>(const Problem&, const WeightView<const T>&, int64_t, const WeightView<T>&, \
                          int64_t);                                                                  \
  template void reduce<T>(const Problem&, const WeightView<const T>&, int64_t, const WeightView<T>&, int64_t);
SYMCONV_INSTANTIATE(float)
SYMCONV_INSTANTIATE(double)
SYMCONV_INSTANTIATE(Half)
SYMCONV_INSTANTIATE(BFloat16)

}  // namespace symconv
