// Copies and sums over orbit members.
#include "expand.h"

#include "scratch.h"

namespace symconv {

namespace {

// Calls f(orbit offset in the reduced weight, first filter channel of each member, tied axes) by row.
template <class F>
void for_rows(const Problem& p, const F& f) {
  std::vector<std::pair<const Segment*, int64_t>> rows;
  for (const Segment& s : p.segments)
    for (int64_t r = 0; r < s.rows; ++r) rows.push_back({&s, r});
  const int64_t count = static_cast<int64_t>(rows.size()) * p.groups;
  const int64_t work = count * p.channels * p.kernel[0] * p.kernel[1] * p.kernel[2];
  const int64_t slices = work < (1 << 15) ? 1 : thread_count();
  parallel_slices(count, slices, [&](int64_t begin, int64_t end, int64_t) {
    for (int64_t i = begin; i < end; ++i) {
      const auto& [segment, row] = rows[i % rows.size()];
      f(*segment, row, i / static_cast<int64_t>(rows.size()));
    }
  });
}

// Offset of a tap mirrored on the axes of an orbit member.
int64_t mirrored(const Problem& p, const int (&axes)[kAxes], int ties, int member, const Taps& tap,
                 const Triple& stride) {
  Taps at = tap;
  for (int t = 0; t < ties; ++t)
    if (member >> t & 1) at[axes[t]] = static_cast<int>(p.kernel[axes[t]]) - 1 - tap[axes[t]];
  return at[0] * stride[0] + at[1] * stride[1] + at[2] * stride[2];
}

// Calls f(member, offset of the tap in the filters, offset of the tap in the weight).
template <class F>
void for_member_taps(const Problem& p, const Segment& segment, const Triple& filters, const Triple& weight,
                     const F& f) {
  int axes[kAxes];
  const int ties = tied_axes(segment.mask, axes);
  for (int d = 0; d < p.kernel[0]; ++d)
    for (int h = 0; h < p.kernel[1]; ++h)
      for (int w = 0; w < p.kernel[2]; ++w) {
        const int64_t at = d * weight[0] + h * weight[1] + w * weight[2];
        for (int member = 0; member < 1 << ties; ++member)
          f(member, mirrored(p, axes, ties, member, {d, h, w}, filters), at);
      }
}

}  // namespace

template <class T>
void expand(const Problem& p, const WeightView<const T>& weight, int64_t weight_group_stride,
            const WeightView<T>& filters, int64_t filters_group_stride) {
  for_rows(p, [&](const Segment& s, int64_t row, int64_t group) {
    const T* from = weight.data + group * weight_group_stride + (s.first + row) * weight.orbit_stride;
    for_member_taps(p, s, filters.tap_stride, weight.tap_stride, [&](int member, int64_t out, int64_t in) {
      T* to = filters.data + group * filters_group_stride + out +
              (member_channel(s, member) + row) * filters.orbit_stride;
      for (int64_t c = 0; c < p.channels; ++c)
        to[c * filters.channel_stride] = from[in + c * weight.channel_stride];
    });
  });
}

template <class T>
void reduce(const Problem& p, const WeightView<const T>& filters, int64_t filters_group_stride,
            const WeightView<T>& weight, int64_t weight_group_stride) {
  for_rows(p, [&](const Segment& s, int64_t row, int64_t group) {
    T* to = weight.data + group * weight_group_stride + (s.first + row) * weight.orbit_stride;
    for_member_taps(p, s, filters.tap_stride, weight.tap_stride, [&](int member, int64_t in, int64_t out) {
      const T* from = filters.data + group * filters_group_stride + in +
                      (member_channel(s, member) + row) * filters.orbit_stride;
      for (int64_t c = 0; c < p.channels; ++c) {
        T& sum = to[out + c * weight.channel_stride];
        sum = member == 0 ? from[c * filters.channel_stride] : sum + from[c * filters.channel_stride];
      }
    });
  });
}

template void expand<float>(const Problem&, const WeightView<const float>&, int64_t, const WeightView<float>&,
                            int64_t);
template void expand<double>(const Problem&, const WeightView<const double>&, int64_t,
                             const WeightView<double>&, int64_t);
template void reduce<float>(const Problem&, const WeightView<const float>&, int64_t, const WeightView<float>&,
                            int64_t);
template void reduce<double>(const Problem&, const WeightView<const double>&, int64_t,
                             const WeightView<double>&, int64_t);

}  // namespace symconv
