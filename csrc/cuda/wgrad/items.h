// Which warps make which taps: orbits of a tie's taps, packed into items of the sets that are compiled.
#pragma once
#include <algorithm>
#include <vector>

#include "work.h"

namespace symconv {

// Numbers of a WgradSet, as the planner knows it.
struct WgradShape {
  const char* name;
  int m, n, slots, slices, windows;  // windows: loaded a step and 16 channels
};
enum WgradSetName { kOne0, kOne1, kOne2, kOne3, kNine0, kNine1, kNine2, kWgradSets };
template <class Set>
constexpr WgradShape wgrad_shape(const char* name) {
  return {name, Set::kM, Set::kN, Set::kSlots, Set::kSlices, Set::kSlots};
}
inline constexpr WgradShape kWgradShapes[kWgradSets] = {
    wgrad_shape<WgradOne0>("one0"),   wgrad_shape<WgradOne1>("one1"),   wgrad_shape<WgradOne2>("one2"),
    wgrad_shape<WgradOne3>("one3"),   wgrad_shape<WgradNine0>("nine0"), wgrad_shape<WgradNine1>("nine1"),
    wgrad_shape<WgradNine2>("nine2")};

// The taps of an orbit: that of window w is mirrored along the axes of w, whose bits are those of `axes` in order.
struct WgradOrbit {
  int axes;  // as a mask: bit 0 width
  std::vector<int> taps;
};

inline std::vector<WgradOrbit> wgrad_orbits(int mask, const int (&kernel)[3]) {
  std::vector<WgradOrbit> all;
  const int taps = kernel[0] * kernel[1] * kernel[2];
  for (int tap = 0; tap < taps; ++tap) {
    const int at[3] = {tap % kernel[2], tap / kernel[2] % kernel[1], tap / kernel[2] / kernel[1]};
    const int step[3] = {1, kernel[2], kernel[1] * kernel[2]};
    WgradOrbit orbit{0, {tap}};
    bool first = true;
    for (int a = 0; a < 3; ++a) {
      const int distance = kernel[2 - a] - 1 - 2 * at[a];
      if (!(mask >> a & 1) || distance == 0) continue;
      first &= distance > 0;
      orbit.axes |= 1 << a;
      for (size_t w = 0, n = orbit.taps.size(); w < n; ++w)
        orbit.taps.push_back(orbit.taps[w] + distance * step[a]);
    }
    if (first) all.push_back(orbit);
  }
  return all;
}

// Items of one set: their slots' taps, and the axes of each item's first orbit as parity bits of the tie.
struct WgradItems {
  int set, count;
  std::vector<int> taps, axes;
};

// A mask's axes become numbers from 0 on: bits of the parities that the members are folded to.
inline int wgrad_parity_bits(int mask, int axes) {
  int bits = 0, place = 0;
  for (int a = 0; a < 3; ++a)
    if (axes >> a & 1) {
      int below = 0;
      for (int b = 0; b < a; ++b) below += mask >> b & 1;
      bits |= 1 << below << 3 * place++;
    }
  return bits;
}

// Item i takes the i-th part of each list; where a list ends early its slots stay empty (-1).
inline WgradItems wgrad_pack(int set, int mask, int axes, int count, const std::vector<std::vector<WgradOrbit>>& lists,
                             const std::vector<int>& each) {
  WgradItems items{set, count, {}, {}};
  for (int i = 0; i < count; ++i) {
    items.axes.push_back(wgrad_parity_bits(mask, axes));
    for (size_t l = 0; l < lists.size(); ++l)
      for (int j = 0; j < each[l]; ++j) {
        const size_t place = static_cast<size_t>(i) * each[l] + j;
        const int windows = static_cast<int>(lists[l].empty() ? 1 : lists[l][0].taps.size());
        for (int w = 0; w < windows; ++w)
          items.taps.push_back(place < lists[l].size() ? lists[l][place].taps[w] : -1);
      }
  }
  return items;
}

// Nine products a warp where they are (nearly) all of use; else an orbit a warp, a launch for each number of axes.
inline std::vector<WgradItems> wgrad_items(int mask, const int (&kernel)[3]) {
  const auto up = [](size_t n, int by) { return static_cast<int>((n + by - 1) / by); };
  const auto useful = [](int items, size_t taps) { return items * 9 * 5 <= static_cast<int>(taps) * 6; };
  std::vector<std::vector<WgradOrbit>> by(8);  // by axes
  for (auto& orbit : wgrad_orbits(mask, kernel)) by[orbit.axes].push_back(std::move(orbit));
  const size_t taps = static_cast<size_t>(kernel[0]) * kernel[1] * kernel[2];
  const int low = mask & -mask, high = mask & ~low, order = (low != 0) + (high != 0) + ((high & (high - 1)) != 0);
  if (order == 0 && useful(up(taps, 9), taps))
    return {wgrad_pack(kNine0, mask, 0, up(taps, 9), {by[0]}, {9})};
  if (order == 1 && !by[0].empty() && !by[mask].empty()) {
    const int items = std::max(up(by[mask].size(), 3), up(by[0].size(), 3));
    if (useful(items, taps)) return {wgrad_pack(kNine1, mask, mask, items, {by[mask], by[0]}, {3, 3})};
  }
  if (order == 2) {
    const size_t n = by[mask].size();
    if (n && by[low].size() == n && by[high].size() == n && by[0].size() == n)
      return {wgrad_pack(kNine2, mask, mask, static_cast<int>(n), {by[mask], by[low], by[high], by[0]}, {1, 1, 1, 1})};
  }
  std::vector<WgradItems> all;
  for (int set = kOne3; set >= kOne0; --set) {
    WgradItems items{set, 0, {}, {}};
    for (int axes = 0; axes < 8; ++axes) {
      if ((axes & 1) + (axes >> 1 & 1) + (axes >> 2 & 1) != set - kOne0 || by[axes].empty()) continue;
      const WgradItems some = wgrad_pack(set, mask, axes, static_cast<int>(by[axes].size()), {by[axes]}, {1});
      items.count += some.count;
      items.taps.insert(items.taps.end(), some.taps.begin(), some.taps.end());
      items.axes.insert(items.axes.end(), some.axes.begin(), some.axes.end());
    }
    if (items.count) all.push_back(items);
  }
  return all;
}

}  // namespace symconv
