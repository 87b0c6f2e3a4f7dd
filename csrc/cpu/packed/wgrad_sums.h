// From accumulators to the weight gradient: sums over splits, phases and products of minimal filtering,
// rounded once and brought into the layout of the weights.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "microkernels/kernels.h"
#include "packed/weights.h"

namespace symconv {

template <class T>
struct WeightTap {
  int64_t offset;  // in the output
  // The sum of orbit m and channel c is that of data[m * ld + c], or data[c * ld + m] with rows of orbits.
  std::vector<CombineTerm<T>> terms;
};

// Some orbits of one segment, whose accumulators lie alike: rows of channels, or of orbits.
template <class T>
class WeightSums {
 public:
  WeightSums(const WeightView<Element<T>>& out, bool rows_of_orbits, int64_t taps, int64_t channels)
      : kernels_(select_kernels<T>()),
        out_(out),
        rows_of_orbits_(rows_of_orbits),
        channels_(channels),
        together_(orbits_of_block(taps)) {}

  // Room that `store` wants.
  static int64_t elements(int64_t taps) { return (taps + 1) * orbits_of_block(taps) * kChannels; }

  // `out` is that of the first orbit. Taps in the order of their offsets.
  void store(const std::vector<WeightTap<T>>& taps, int64_t orbits, Element<T>* out, Element<T>* room) const {
    bool packed = out_.channel_stride == static_cast<int64_t>(taps.size());
    for (size_t t = 0; t < taps.size(); ++t) packed = packed && taps[t].offset == static_cast<int64_t>(t);
    for (int64_t m = 0; m < orbits; m += together_)
      for (int64_t c = 0; c < channels_; c += kChannels) {
        const Block block{m, std::min(together_, orbits - m), c, std::min(kChannels, channels_ - c)};
        Element<T>* at = out + m * out_.orbit_stride + c * out_.channel_stride;
        out_.channel_stride == 1 ? store_runs(taps, block, at, room)
                                 : store_taps(taps, block, packed, at, room);
      }
  }

 private:
  static constexpr int64_t kOrbits = 16, kChannels = 64;  // of a block, at most
  static constexpr int64_t kRoom = 1 << 16;               // elements, about

  static int64_t orbits_of_block(int64_t taps) {
    return std::clamp<int64_t>(kRoom / ((taps + 1) * kChannels), 1, kOrbits);
  }

  struct Block {
    int64_t orbit, orbits, channel, channels;
  };

  // Of one tap: [orbit][channel], orbits `stride` apart.
  void sum(const WeightTap<T>& tap, const Block& b, Element<T>* out, int64_t stride, Element<T>* room) const {
    CombineArgs<T> a{};
    a.term = tap.terms.data(), a.terms = static_cast<int64_t>(tap.terms.size());
    a.count = rows_of_orbits_ ? b.orbits : b.channels;
    a.first = rows_of_orbits_ ? b.orbit : b.channel;
    const int64_t row = rows_of_orbits_ ? b.channel : b.orbit;
    const int64_t rows = rows_of_orbits_ ? b.channels : b.orbits;
    for (int64_t r = 0; r < rows; ++r) {
      a.row = row + r;
      a.out = rows_of_orbits_ ? room + r * b.orbits : out + r * stride;
      kernels_.combine(a);
    }
    if (rows_of_orbits_) kernels_.stage_line(room, 1, b.orbits, b.orbits, b.channels, out, stride);
  }

  void store_runs(const std::vector<WeightTap<T>>& taps, const Block& b, Element<T>* out,
                  Element<T>* room) const {
    for (const WeightTap<T>& tap : taps) sum(tap, b, out + tap.offset, out_.orbit_stride, room);
  }

  // Taps inside of the channels: [orbit][tap][channel] first.
  void store_taps(const std::vector<WeightTap<T>>& taps, const Block& b, bool packed, Element<T>* out,
                  Element<T>* room) const {
    const auto count = static_cast<int64_t>(taps.size());
    Element<T>* block = room + together_ * kChannels;
    for (int64_t t = 0; t < count; ++t) sum(taps[t], b, block + t * b.channels, count * b.channels, room);
    for (int64_t m = 0; m < b.orbits; ++m) {
      const Element<T>* from = block + m * count * b.channels;
      Element<T>* to = out + m * out_.orbit_stride;
      if (packed) {
        kernels_.stage_line(from, 1, b.channels, b.channels, count, to, count);
        continue;
      }
      for (int64_t t = 0; t < count; ++t)
        for (int64_t c = 0; c < b.channels; ++c)
          to[taps[t].offset + c * out_.channel_stride] = from[t * b.channels + c];
    }
  }

  const Kernels<T>& kernels_;
  const WeightView<Element<T>>& out_;
  bool rows_of_orbits_;
  int64_t channels_, together_;
};

}  // namespace symconv
