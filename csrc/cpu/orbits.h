// The index map of ties: which filters a row of the reduced weight stands for, and which of its weights each
// of them has. All else reads it; nothing else takes masks apart or mirrors a tap.
//
// Filter of member g of an orbit:  w_g[c, k] = w[pi_g c, J_g k].  J_g mirrors the taps along some of the tied
// axes, pi_g permutes input channels that are members of orbits themselves (Blocks). Members and parities are
// subsets of the tied axes, bit i for the i-th of them, width first: a butterfly takes results of all
// parities, in that order, to those of all members, in place.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <utility>
#include <vector>

namespace symconv {

constexpr int kAxes = 3;  // 0 = depth, 1 = height, 2 = width; 1-D and 2-D have extent 1 in front
using Triple = std::array<int64_t, kAxes>;
using Taps = Triple;  // the place of a tap in the kernel

constexpr int64_t dot(const Triple& a, const Triple& b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

// The image of a tap along an axis on which the kernel has `taps` of them.
template <class I>
constexpr I mirrored(int64_t taps, I tap) {
  return static_cast<I>(taps - 1 - tap);
}

inline int64_t tap_count(const Triple& kernel) { return kernel[0] * kernel[1] * kernel[2]; }

// Calls f(tap) for every tap of a kernel, width innermost.
template <class F>
void for_taps(const Triple& kernel, const F& f) {
  for (int64_t d = 0; d < kernel[0]; ++d)
    for (int64_t h = 0; h < kernel[1]; ++h)
      for (int64_t w = 0; w < kernel[2]; ++w) f(Taps{d, h, w});
}

// (-1)^|parity and member|: with which sign a member has that parity.
inline int parity_sign(int parity, int member) {
  return std::popcount(unsigned(parity & member)) & 1 ? -1 : 1;
}

// A set of tied axes, and so the group of their mirrors.
class Tie {
 public:
  // Bit 0 of the mask is width, bit 1 height, bit 2 depth.
  constexpr explicit Tie(int mask = 0) {
    for (int bit = 0; bit < kAxes; ++bit)
      if (mask >> bit & 1) axis_[axes_++] = kAxes - 1 - bit;
  }

  constexpr int mask() const {
    int mask = 0;
    for (int i = 0; i < axes_; ++i) mask |= 1 << (kAxes - 1 - axis_[i]);
    return mask;
  }
  constexpr int axes() const { return axes_; }
  constexpr int axis(int i) const { return axis_[i]; }
  constexpr int members() const { return 1 << axes_; }  // and as many parities
  // Which of the tied axes that is, or -1.
  constexpr int index(int axis) const {
    for (int i = 0; i < axes_; ++i)
      if (axis_[i] == axis) return i;
    return -1;
  }
  constexpr bool has(int axis) const { return index(axis) >= 0; }

  constexpr Tie without(int axis) const {
    return where([&](int other) { return other != axis; });
  }
  constexpr Tie without(const Tie& other) const {
    return where([&](int axis) { return !other.has(axis); });
  }
  // The axes along which a tap, or a channel where it is in one of some blocks, is not its own image.
  constexpr Tie paired(const Triple& kernel, const Taps& tap, const Tie& blocks = Tie()) const {
    return where(
        [&](int axis) { return blocks.has(axis) || tap[axis] != mirrored(kernel[axis], tap[axis]); });
  }
  bool operator==(const Tie& other) const {
    return axes_ == other.axes_ && std::equal(axis_, axis_ + axes_, other.axis_);
  }

  // The part of a member that mirrors axes of another tie, as a member of that.
  constexpr int part_of(int member, const Tie& other) const {
    int part = 0;
    for (int i = 0; i < axes_; ++i)
      if (member >> i & 1 && other.has(axis_[i])) part |= 1 << other.index(axis_[i]);
    return part;
  }
  // The axes along which any tap is not: along the others, which have one tap, members repeat each other.
  constexpr Tie moving(const Triple& kernel) const {
    return where([&](int axis) { return kernel[axis] > 1; });
  }
  constexpr Tie still(const Triple& kernel) const {
    return where([&](int axis) { return kernel[axis] == 1; });
  }
  // A member of a tie with some of these axes, as one of this tie.
  constexpr int member_of(const Tie& part, int member) const {
    int all = 0;
    for (int i = 0; i < part.axes_; ++i)
      if (member >> i & 1) all |= 1 << index(part.axis_[i]);
    return all;
  }

  // J_g: the image of a tap for member g.
  constexpr Taps image(const Triple& kernel, Taps tap, int member) const {
    for (int i = 0; i < axes_; ++i)
      if (member >> i & 1) tap[axis_[i]] = mirrored(kernel[axis_[i]], tap[axis_[i]]);
    return tap;
  }
  // Extent of the taps that stand for all their images: along a tied axis the first half, with the centre.
  constexpr Triple representatives(Triple kernel) const {
    for (int i = 0; i < axes_; ++i) kernel[axis_[i]] = (kernel[axis_[i]] + 1) / 2;
    return kernel;
  }

 private:
  template <class F>
  constexpr Tie where(const F& keep) const {
    Tie part;
    for (int i = 0; i < axes_; ++i)
      if (keep(axis_[i])) part.axis_[part.axes_++] = axis_[i];
    return part;
  }

  int axes_ = 0;
  int axis_[kAxes] = {};
};

// A weight of a row: input channels from `channel` on, at a tap.
struct Place {
  int64_t channel;
  Taps tap;
};

// Where the channels of a member are among those of all members, of which each has as many.
inline int place_of(const Tie& tie, int member) {
  // The published order puts the double mirrors of an octuple as DH, DW, HW.
  constexpr int kOctuple[8] = {0, 1, 2, 6, 3, 5, 4, 7};
  return tie.axes() == kAxes ? kOctuple[member] : member;
}

// Input channels of a group that the mirrors of a tie move alike: blocks of equal size, of which mirrors
// exchange that of m with that of m XOR g. Without a tie there is one block, which no mirror moves.
struct Blocks {
  Tie tie;
  int64_t size;
  std::array<int64_t, 1 << kAxes> at{};  // first channel, by member
  int64_t kept = 0;  // the first channel in a weight that keeps one channel of each orbit, that of block 0

  int count() const { return tie.members(); }
};

// All orbits of a layer with the same tie. Rows and channels count inside one group of the layer.
struct Segment {
  // By the mask of its axes, or the code of filters that are their own images up to a sign: kOwnImage, their
  // axes, and 16 times those along which they are odd. `inputs` are all channels of a group, in parts, whose
  // ties have axes of the segment's alone.
  Segment(int64_t code, int64_t rows, int64_t first, int64_t copies, std::vector<Blocks> inputs)
      : tie(static_cast<int>(code & 7)),
        inputs(std::move(inputs)),
        own_image((code & kOwnImage) != 0),
        odd(static_cast<int>(code >> 4 & 7)),
        rows(rows),
        first(first),
        copies(copies) {
    int mask = 0;
    for (const Blocks& part : this->inputs) mask |= part.tie.mask();
    moved = Tie(mask);
  }
  static constexpr int64_t kOwnImage = 8;

  // One filter for each member, of all parities; or a single one, of one parity, of whose weights only those
  // are kept that are no images of others.
  int members() const { return own_image ? 1 : tie.members(); }
  // The parity of such a filter.
  int parity() const { return tie.member_of(odd, odd.members() - 1); }

  // Do mirrors move input channels?
  bool moves_channels() const { return moved.axes() > 0; }
  // Are gradients folds too, and no sums over members?
  bool folds_gradients() const { return moves_channels() || own_image; }
  // The axes whose mirrors move any tap or channel.
  Tie moving(const Triple& kernel) const { return tie.without(tie.still(kernel).without(moved)); }
  // In the gradient of a part of the input: are there members that are exchanged by mirrors which do not move
  // it, beside those that are exchanged by mirrors which do?
  bool sums_members(const Blocks& part) const {
    return !own_image && part.tie.axes() > 0 && !(part.tie == tie);
  }
  // Channels that a weight keeps, of those of a group.
  int64_t kept_channels() const {
    int64_t kept = 0;
    for (const Blocks& part : inputs) kept += own_image ? part.size : part.size * part.count();
    return kept;
  }
  // Channels of the smallest block.
  int64_t shortest_block() const {
    int64_t size = inputs[0].size;
    for (const Blocks& part : inputs) size = std::min(size, part.size);
    return size;
  }

  // The index map, of the first channel of a block: which weight of its row a member has at a place.
  Place image(const Blocks& part, const Triple& kernel, int block, const Taps& tap, int member) const {
    return {part.at[block ^ tie.part_of(member, part.tie)], tie.image(kernel, tap, member)};
  }
  // Of a filter that is its own image: the sign with which it has one of the kept weights at a tap of a
  // block; 0 where it is its own negative. Along axes whose mirrors move no channel the first taps are kept.
  int sign(const Blocks& part, const Triple& kernel, int block, const Taps& tap) const {
    int sign = parity_sign(tie.part_of(parity(), part.tie), block);
    for (int i = 0; i < odd.axes(); ++i) {
      const int axis = odd.axis(i);
      const int64_t other = mirrored(kernel[axis], tap[axis]);
      if (!part.tie.has(axis) && other <= tap[axis]) sign = other == tap[axis] ? 0 : -sign;
    }
    return sign;
  }
  // Extents of the taps that a weight keeps: of filters that are their own images the first half, and of odd
  // ones no centre, which is zero. Where mirrors move channels these are kept instead.
  Triple kept(Triple kernel) const {
    const Tie still = tie.without(moved);
    for (int i = 0; own_image && i < still.axes(); ++i) {
      int64_t& taps = kernel[still.axis(i)];
      taps = (taps + (odd.has(still.axis(i)) ? 0 : 1)) / 2;
    }
    return kernel;
  }
  // Output channels beside the first members'.
  int64_t copied() const { return rows * (members() - 1); }

  Tie tie;
  std::vector<Blocks> inputs;
  Tie moved;  // the axes whose mirrors move any channel
  bool own_image;
  Tie odd;         // the axes along which filters that are their own images change their sign
  int64_t rows;    // orbits
  int64_t first;   // first row of the reduced weight
  int64_t copies;  // first output channel of the mirrored copies
};

// First output channel of an orbit member.
inline int64_t member_channel(const Segment& s, int member) {
  return member == 0 ? s.first : s.copies + (place_of(s.tie, member) - 1) * s.rows;
}

}  // namespace symconv
