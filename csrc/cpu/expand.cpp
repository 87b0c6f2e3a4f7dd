// Copies and sums over orbit members.
#include "expand.h"

#include <algorithm>
#include <vector>

#include "convert.h"
#include "workspace.h"

namespace symconv {

namespace {

// Some channels of a tap in the ordinary filters, from those of a row: its weights, or their negatives.
struct Copy {
  int64_t filter;
  int sign;  // 0 where a filter is its own negative
};

// Of some channels of a tap in a row of the reduced weight: the copies that are made of them.
struct Copied {
  int64_t weight, channels;
  size_t begin, end;
};

struct Places {
  std::vector<Copied> weights;
  std::vector<Copy> copies;

  void add(int64_t filter, int sign) { copies.push_back({filter, sign}); }
  void add_weight(int64_t weight, int64_t channels, size_t begin) {
    weights.push_back({weight, channels, begin, copies.size()});
  }
};

// Offset of a channel at a tap.
template <class V>
int64_t offset(const V& view, int64_t channel, const Taps& tap) {
  return channel * view.channel_stride + dot(tap, view.tap_stride);
}

template <class F, class W>
void place_members(const Problem& p, const Segment& s, const Blocks& part, const Taps& tap, const F& filters,
                   const W& weight, Places& places) {
  for (int block = 0; block < part.count(); ++block) {
    const size_t begin = places.copies.size();
    for (int g = 0; g < s.tie.members(); ++g) {  // a mirror leads back
      const Place place = s.image(part, p.kernel, block, tap, g);
      places.add(member_channel(s, g) * filters.orbit_stride + offset(filters, place.channel, place.tap), 1);
    }
    places.add_weight(offset(weight, part.at[block], tap), part.size, begin);
  }
}

// Of filters that are their own images, along the axes whose mirrors move no channel.
template <class F, class W>
void place_images(const Problem& p, const Segment& s, const Blocks& part, const Taps& tap, const Tie& still,
                  const F& filters, const W& weight, Places& places) {
  const Tie paired = still.paired(p.kernel, tap);
  const size_t begin = places.copies.size();
  for (int block = 0; block < part.count(); ++block)
    for (int g = 0; g < paired.members(); ++g) {
      const Taps at = part.tie.image(p.kernel, paired.image(p.kernel, tap, g), block);
      places.add(member_channel(s, 0) * filters.orbit_stride + offset(filters, part.at[block], at),
                 s.sign(part, p.kernel, block, at));
    }
  places.add_weight(offset(weight, part.kept, tap), part.size, begin);
}

template <class F, class W>
Places places_of(const Problem& p, const Segment& s, const F& filters, const W& weight) {
  Places places;
  places.copies.reserve(kernel_taps(p) * s.tie.members());
  for (const Blocks& part : s.inputs) {
    const Tie still = s.own_image ? s.tie.without(part.tie) : Tie();
    for_taps(still.representatives(p.kernel), [&](const Taps& tap) {
      s.own_image ? place_images(p, s, part, tap, still, filters, weight, places)
                  : place_members(p, s, part, tap, filters, weight, places);
    });
  }
  return places;
}

// Calls f(segment, its places, row of the segment, group) for every row of the reduced weight.
template <class V, class W, class F>
void for_rows(const Problem& p, const V& filters, const W& weight, const F& f) {
  for (const Segment& segment : p.segments) {
    const Places places = places_of(p, segment, filters, weight);
    const int64_t count = segment.rows * p.groups;
    const int64_t work = count * p.channels * kernel_taps(p) * segment.members();
    parallel_slices(count, work < (1 << 14) ? 1 : thread_count(), [&](int64_t begin, int64_t end, int64_t) {
      for (int64_t i = begin; i < end; ++i) f(segment, places, i % segment.rows, i / segment.rows);
    });
  }
}

// Sums of all copies of some weights, in their order, channel by channel.
template <class T>
void add_copies(const Copy* copies, int count, const T* filters, int64_t from_stride, T* to,
                int64_t to_stride, int64_t channels) {
  constexpr int64_t kBlock = 64;
  Sum<T> sums[kBlock];
  for (int64_t first = 0; first < channels; first += kBlock) {
    const int64_t some = std::min(kBlock, channels - first);
    std::fill_n(sums, some, Sum<T>(0));
    for (int i = 0; i < count; ++i) {
      const T* source = filters + copies[i].filter + first * from_stride;
      if (copies[i].sign < 0)
        for (int64_t c = 0; c < some; ++c) sums[c] -= widened(source[c * from_stride]);
      else if (from_stride == 1)
        for (int64_t c = 0; c < some; ++c) sums[c] += widened(source[c]);
      else
        for (int64_t c = 0; c < some; ++c) sums[c] += widened(source[c * from_stride]);
    }
    for (int64_t c = 0; c < some; ++c) assign(to[(first + c) * to_stride], sums[c]);
  }
}

template <class T>
void copy_channels(const T* from, int64_t from_stride, int sign, T* to, int64_t to_stride, int64_t channels) {
  if (sign <= 0)
    for (int64_t c = 0; c < channels; ++c)
      assign(to[c * to_stride], sign ? -widened(from[c * from_stride]) : Sum<T>(0));
  else if (from_stride == 1 && to_stride == 1 && channels >= 16)
    std::copy_n(from, channels, to);
  else
    for (int64_t c = 0; c < channels; ++c) to[c * to_stride] = from[c * from_stride];
}

}  // namespace

template <class T>
void expand(const Problem& p, const WeightView<const T>& weight, int64_t weight_group_stride,
            const WeightView<T>& filters, int64_t filters_group_stride) {
  for_rows(p, filters, weight, [&](const Segment& s, const Places& places, int64_t row, int64_t group) {
    const T* from = weight.data + group * weight_group_stride + (s.first + row) * weight.orbit_stride;
    T* to = filters.data + group * filters_group_stride + row * filters.orbit_stride;
    for (const Copied& copied : places.weights)
      for (size_t i = copied.begin; i < copied.end; ++i) {
        const Copy& copy = places.copies[i];
        // A weight that is nowhere is not kept, and behind the others.
        copy_channels(copy.sign ? from + copied.weight : from, weight.channel_stride, copy.sign,
                      to + copy.filter, filters.channel_stride, copied.channels);
      }
  });
}

template <class T>
void reduce(const Problem& p, const WeightView<const T>& filters, int64_t filters_group_stride,
            const WeightView<T>& weight, int64_t weight_group_stride) {
  for_rows(p, filters, weight, [&](const Segment& s, const Places& places, int64_t row, int64_t group) {
    T* to = weight.data + group * weight_group_stride + (s.first + row) * weight.orbit_stride;
    const T* from = filters.data + group * filters_group_stride + row * filters.orbit_stride;
    for (const Copied& copied : places.weights) {
      const Copy* copies = places.copies.data() + copied.begin;
      if (copies->sign == 0) continue;
      add_copies(copies, static_cast<int>(copied.end - copied.begin), from, filters.channel_stride,
                 to + copied.weight, weight.channel_stride, copied.channels);
    }
  });
}

#define SYMCONV_INSTANTIATE(T)                                                                       \
  template void expand<T>(const Problem&, const WeightView<const T>&, int64_t, const WeightView<T>&, \
                          int64_t);                                                                  \
  template void reduce<T>(const Problem&, const WeightView<const T>&, int64_t, const WeightView<T>&, int64_t);
SYMCONV_FOR_ELEMENTS(SYMCONV_INSTANTIATE)

}  // namespace symconv
