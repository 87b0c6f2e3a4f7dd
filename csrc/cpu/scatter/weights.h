// The raw weights of a block of orbits as a matrix: [contraction row][tap][orbit]. Included by
// scatter/scatter.cpp.
#pragma once

#include <algorithm>

#include "scatter/prepared.h"

namespace symconv {

template <class T>
class ScatterWeights {
 public:
  // Packed together: their taps share cache lines.
  static constexpr int64_t kChannels = 64;

  ScatterWeights(const PreparedScatter<T>& prepared, const MultiplyTensors<T>& tensors)
      : p_(prepared), m_(tensors), q_(prepared.problem), plan_(prepared.plan) {}

  // At most kChannels channels, from `channel` on. `block` counts those of all groups.
  void pack(int64_t block, int64_t channel, Word<T>* out) const {
    const int64_t count = std::min(kChannels, q_.channels - channel);
    const Segment& s = q_.segments[p_.segment];
    const int64_t first = block % p_.blocks * p_.width, orbits = std::min(p_.width, p_.orbits - first);
    WeightView<const Element<T>> w = m_.weight;
    w.data += block / p_.blocks * m_.weight_group_stride + (s.first + first) * w.orbit_stride +
              channel * w.channel_stride;
    // Strip by strip, where none of them ends amid a vector: what that writes past its orbits, the next tap
    // mends.
    const bool deal = p_.width % p_.lanes == 0 && deals_taps<T>(q_, w);
    if (!deal) return pack_strips(w, 0, orbits, channel, count, out);
    Element<T> room[kDealtElements];
    for (int64_t u = 0; u < orbits; u += p_.lanes) {
      const int64_t now = std::min<int64_t>(p_.lanes, orbits - u);
      pack_strips(deal_taps<T>(p_.kernels, q_, w, now, count, room), u, u + now, channel, count, out);
      w.data += p_.lanes * w.orbit_stride;
    }
  }

 private:
  static constexpr int kDepth = Format<T>::depth;

  // Orbits [begin, end) of a block; the view begins at the first one.
  void pack_strips(const WeightView<const Element<T>>& w, int64_t begin, int64_t end, int64_t channel,
                   int64_t count, Word<T>* out) const {
    WeightArgs<T> a{};
    a.lane_stride = w.orbit_stride, a.other_stride = w.channel_stride;
    a.others = count, a.stored = p_.lanes, a.vnni = kDepth > 1;
    a.tap_stride = plan_.filtering ? w.tap_stride[plan_.outer] : 0;
    for (int64_t shift = 0; shift < p_.shifts(); ++shift)
      for (size_t g = 0; g < p_.groups.size(); ++g)
        for (size_t l = 0; l < p_.line_classes(); ++l)
          for (size_t c = 0; c < plan_.line.classes.size(); ++c)
            pack_matrix(a, w, g, shift, l, c, words<T>(channel), begin, end, out);
  }

  // All taps of two classes, in the order of their columns: what one writes past its orbits, the next mends.
  void pack_matrix(WeightArgs<T>& a, const WeightView<const Element<T>>& w, size_t group, int64_t shift,
                   size_t l, size_t c, int64_t row, int64_t begin, int64_t end, Word<T>* out) const {
    const DeepGroup& g = p_.groups[group];
    const ScatterAxis::Class& positions = plan_.line.classes[c];
    const auto& tap_stride = w.tap_stride;
    const int64_t per_shift = static_cast<int64_t>(p_.groups.size());
    const int64_t even = p_.matrix(0, l, c).ld, odd = plan_.folded ? p_.matrix(1, l, c).ld : 0;
    a.scale = Sum<T>(1) / Sum<T>(g.odd < 0 ? 1 : 2);
    a.out_stride = even * kDepth;  // the same for both parities
    a.product_stride[0] =
        plan_.filtering ? kDepth * (p_.matrix(1, l, c).offset - p_.matrix(0, l, c).offset) : 0;
    int64_t column = 0;
    for (const int tap : positions.taps)
      for (int64_t o = 0; o < p_.outer_taps(l); ++o, column += p_.width) {
        const int64_t inner = plan_.summed ? tap : shift;
        const int64_t outer = plan_.ring ? plan_.lines.classes[l].taps[o] : shift;
        const int64_t at = inner * tap_stride[plan_.inner] + outer * tap_stride[plan_.outer];
        a.tap[0] = at + g.tap * tap_stride[plan_.deep];
        if (g.odd >= 0) a.tap[1] = at + g.mirror * tap_stride[plan_.deep];
        for (int64_t u = begin; u < end; u += p_.lanes) {
          a.source = w.data + (u - begin) * a.lane_stride;
          a.lanes = static_cast<int>(std::min<int64_t>(p_.lanes, end - u));
          const int64_t term = shift * per_shift + static_cast<int64_t>(group);
          set_out(a, 0, out + p_.matrix(0, l, c).offset + (term * p_.rows + row) * even + column + u);
          if (g.odd >= 0)
            set_out(a, 1,
                    out + p_.matrix(1, l, c).offset + (static_cast<int64_t>(group) * p_.rows + row) * odd +
                        column + u);
          p_.kernels.fold_weights[plan_.filtering][g.odd >= 0 ? 1 : 0](a);
        }
      }
  }

  static void set_out(WeightArgs<T>& a, int source, Word<T>* to) {
    a.out[source] = reinterpret_cast<Stored<T>*>(to);
  }

  const PreparedScatter<T>& p_;
  const MultiplyTensors<T>& m_;
  const Problem& q_;
  const ScatterPlan& plan_;
};

}  // namespace symconv
