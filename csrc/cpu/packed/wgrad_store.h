// From the accumulators of a weight gradient to the gradient itself. Included by packed/wgrad.cpp.
#pragma once

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "packed/wgrad_sides.h"
#include "packed/wgrad_sums.h"

namespace symconv {

template <class T>
class WgradStore : public WgradSides<T> {
 public:
  using WgradSides<T>::WgradSides;

 protected:
  using Base = WgradSides<T>;
  using Base::parities, Base::same_orbits;
  using Base::plans_, Base::work_, Base::elements_;
  using Base::w_, Base::p_, Base::segment_, Base::blocks_, Base::channels_, Base::splits_, Base::own_;
  using typename Base::Orbits;

  // gw[m, c, k] = sum over splits and phases, in fixed order.
  void store(const Orbits& some, int64_t group, const Sum<T>* acc, Element<T>* room) const {
    const Plan& plan = *plans_[some.part];
    const Slot& first = plan.slots[some.slot];
    const int64_t shifts = plan.offset_axis >= 0 ? p_.kernel[plan.offset_axis] : 1;
    const int64_t row = p_.segments[first.segment].first + first.row + some.begin;
    Element<T>* const out = w_.out.data + group * w_.out_group_stride + row * w_.out.orbit_stride;
    if (w_.of_input) return store_blocks(some, acc, out, room);
    const WeightSums<T> sums(w_.out, !w_.planes, kernel_taps(p_), channels_);
    for (int block = 0; block < (keeps_one() ? 1 : parities()); ++block) {
      std::vector<WeightTap<T>> taps;
      for (const Group& g : plan.groups)
        for (int64_t shift = 0; shift < shifts && same_orbits(first, plan.slots[g.slot[0]]); ++shift)
          for (int image = 0; image < (keeps_one() ? g.slots : 1); ++image)
            taps.push_back(tap(some, g, keeps_one() ? image : block, shift, acc));
      std::sort(taps.begin(), taps.end(), [](const auto& a, const auto& b) { return a.offset < b.offset; });
      const int64_t channel = keeps_one() ? blocks_.kept : blocks_.at[block];
      sums.store(taps, some.count, out + channel * w_.out.channel_stride, room);
    }
  }

  // Of a panel of the input each block of its channels, with the taps that it has in its row.
  void store_blocks(const Orbits& some, const Sum<T>* acc, Element<T>* out, Element<T>* room) const {
    const Plan& plan = *plans_[some.part];
    const int64_t shifts = plan.offset_axis >= 0 ? p_.kernel[plan.offset_axis] : 1;
    std::map<int64_t, std::pair<int64_t, std::vector<WeightTap<T>>>> blocks;  // by their first channel
    for (const Group& g : plan.groups)
      for (int member = 0; member < g.slots; ++member)
        for (int64_t shift = 0; shift < shifts; ++shift) {
          auto& [channels, taps] = blocks[g.weight[member].channel];
          channels = g.channels;
          taps.push_back(tap(some, g, member, shift, acc));
        }
    for (auto& [first, block] : blocks) {
      auto& [channels, taps] = block;
      std::sort(taps.begin(), taps.end(), [](const auto& a, const auto& b) { return a.offset < b.offset; });
      const WeightSums<T> sums(w_.out, w_.planes, kernel_taps(p_), channels);
      sums.store(taps, some.count, out + first * w_.out.channel_stride, room);
    }
  }

 private:
  // What an accumulated tap, or product of minimal filtering, gives to the gradient of a tap.
  static double coefficient(const Plan& plan, int64_t have, int64_t tap) {
    if (!plan.filtering) return have == tap ? 1 : 0;
    return filter_coefficient(plan.filtering, static_cast<int>(have),
                              static_cast<int>(plan.reversed ? 2 - tap : tap));
  }

  // Do weights keep one block of those that mirrors exchange? Then members are taps of it, else blocks.
  bool keeps_one() const { return segment_.own_image; }

  // Of a member: the sum over the parities, each with the sign that it has there.
  WeightTap<T> tap(const Orbits& some, const Group& g, int member, int64_t shift, const Sum<T>* acc) const {
    const Plan& plan = *plans_[some.part];
    const Taps& at = g.weight[keeps_one() || w_.of_input ? member : 0].tap;
    WeightTap<T> tap{0, {}};
    for (int axis = 0; axis < kAxes; ++axis)
      tap.offset += (axis == plan.offset_axis ? shift : at[axis]) * w_.out.tap_stride[axis];
    for (const PhaseWork& work : work_[some.part]) {
      if (work.shares || work.layout.offset[g.slot[0]] < 0) continue;
      for (size_t j = 0; j < work.taps.size(); ++j) {
        const double scale = coefficient(plan, work.taps[j], shift) / g.slots;
        if (scale == 0) continue;
        const int64_t from = work.offset + static_cast<int64_t>(j) * work.shift_stride;
        for (int s = 0; s < g.slots; ++s) {
          const double sign = parity_sign(s, member);
          const int64_t slot = work.layout.offset[g.slot[s]] * (w_.planes ? work.acc_ld : 1);
          const int64_t first = from + slot + some.begin * (w_.planes == w_.of_input ? 1 : work.acc_ld);
          for (int64_t i = 0; i < (own_ ? 1 : splits_); ++i)
            tap.terms.push_back(
                {acc + i * elements_ + first, work.acc_ld, static_cast<Sum<T>>(sign * scale)});
        }
      }
    }
    return tap;
  }
};

}  // namespace symconv
