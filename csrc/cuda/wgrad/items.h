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
enum WgradSetName { kOne0, kOne1, kOne2, kOne3, kNine0, kNine1, kNine2, kFlat2, kWgradSets };
template <class Set>
constexpr WgradShape wgrad_shape(const char* name) {
  return {name, Set::kM, Set::kN, Set::kSlots, Set::kSlices, Set::kSlots};
}
inline constexpr WgradShape kWgradShapes[kWgradSets] = {
    wgrad_shape<WgradOne0>("one0"),   wgrad_shape<WgradOne1>("one1"),   wgrad_shape<WgradOne2>("one2"),
    wgrad_shape<WgradOne3>("one3"),   wgrad_shape<WgradNine0>("nine0"), wgrad_shape<WgradNine1>("nine1"),
    wgrad_shape<WgradNine2>("nine2"), wgrad_shape<WgradFlat2>("flat2")};
inline constexpr WgradShape kWgradThin3 = wgrad_shape<WgradThin3>("one3");

// Of elements of so many bytes.
inline const WgradShape& wgrad_shape_of(int set, int bytes) {
  return set == kOne3 && bytes == 4 ? kWgradThin3 : kWgradShapes[set];
}

// The taps of an orbit: that of window w is mirrored along the axes of w, whose bits are those of `axes` in
// order.
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
inline WgradItems wgrad_pack(int set, int mask, int axes, size_t count,
                             const std::vector<std::vector<WgradOrbit>>& lists, const std::vector<int>& each,
                             const std::vector<int>& windows) {
  WgradItems items{set, static_cast<int>(count), {}, {}};
  for (size_t i = 0; i < count; ++i) {
    items.axes.push_back(wgrad_parity_bits(mask, axes));
    for (size_t l = 0; l < lists.size(); ++l)
      for (int j = 0; j < each[l]; ++j) {
        const size_t place = i * each[l] + j;
        for (int w = 0; w < windows[l]; ++w)
          items.taps.push_back(place < lists[l].size() ? lists[l][place].taps[w] : -1);
      }
  }
  return items;
}

// Ways to cut the taps of a tie up, each a launch or several: an orbit a warp, a launch for each number of
// axes; or nine products a warp, where some slots may stay empty.
inline std::vector<std::vector<WgradItems>> wgrad_ways(int mask, const int (&kernel)[3]) {
  std::vector<std::vector<WgradOrbit>> by(8);  // by axes
  for (auto& orbit : wgrad_orbits(mask, kernel)) by[orbit.axes].push_back(std::move(orbit));
  const int low = mask & -mask, high = mask & ~low;
  const auto count = [&](int axes, size_t each) { return (by[axes].size() + each - 1) / each; };
  std::vector<WgradItems> nine, ones;
  if (mask == 0) nine = {wgrad_pack(kNine0, 0, 0, count(0, 9), {by[0]}, {9}, {1})};
  if (mask && !high && !by[mask].empty())
    nine = {wgrad_pack(kNine1, mask, mask, std::max(count(mask, 3), count(0, 3)), {by[mask], by[0]}, {3, 3},
                       {2, 1})};
  if (high && !(high & (high - 1)) && !by[mask].empty()) {
    const size_t items = std::max({by[mask].size(), by[low].size(), by[high].size(), by[0].size()});
    nine = {wgrad_pack(kNine2, mask, mask, items, {by[mask], by[low], by[high], by[0]}, {1, 1, 1, 1},
                       {4, 2, 2, 1})};
  }
  for (int set = kOne3; set >= kOne0; --set) {
    WgradItems items{set, 0, {}, {}};
    for (int axes = 0; axes < 8; ++axes) {
      if ((axes & 1) + (axes >> 1 & 1) + (axes >> 2 & 1) != set - kOne0 || by[axes].empty()) continue;
      const WgradItems some =
          wgrad_pack(set, mask, axes, by[axes].size(), {by[axes]}, {1}, {1 << (set - kOne0)});
      items.count += some.count;
      items.taps.insert(items.taps.end(), some.taps.begin(), some.taps.end());
      items.axes.insert(items.axes.end(), some.axes.begin(), some.axes.end());
    }
    if (items.count) ones.push_back(items);
  }
  if (nine.empty() || nine[0].taps.size() > kWgradSlots) return {ones};
  if (nine[0].set != kNine2) return {nine, ones};
  std::vector<WgradItems> flat = nine;
  flat[0].set = kFlat2;
  return {nine, flat, ones};
}

}  // namespace symconv
