// The parameters of a call as the kernels of one tile take them.
#pragma once
#include "launch.h"
#include "patch/fold.h"

namespace symconv {

// Is the map of a tie along rows alone walked with rows and columns exchanged?
inline bool exchanged(const PatchParams& p) { return p.mask == 2; }

inline WeightStrides weight_strides(const PatchParams& p) {
  return {p.w_group, p.w_row, p.w_channel, exchanged(p) ? p.w_x : p.w_y, exchanged(p) ? p.w_y : p.w_x};
}

constexpr int64_t whole_blocks(int64_t size, int64_t block) { return (size + block - 1) / block; }

// Can a lane store `together` orbits at once, wherever they are?
inline bool stores_whole(const PatchParams& p, const void* y, int together) {
  const auto divides = [&](int64_t stride) { return stride % together == 0; };
  return divides(p.orbits) && divides(p.y_n) && divides(p.y_z) && divides(p.y_y) && divides(p.y_x) &&
         reinterpret_cast<uintptr_t>(y) % (2 * together) == 0;
}

template <class T>
Layer layer_of(const PatchParams& p, const Pointers& pointers) {
  const bool v = exchanged(p);
  Layer l{};
  l.images = static_cast<int>(p.batch * p.depth);
  l.depth = static_cast<int>(p.depth);
  l.height = static_cast<int>(v ? p.width : p.height);
  l.width = static_cast<int>(v ? p.height : p.width);
  l.chunks = static_cast<int>(p.channels / 8);
  l.orbits = static_cast<int>(p.orbits);
  l.down = static_cast<int>(whole_blocks(l.height, T::kHeight));
  l.across = static_cast<int>(whole_blocks(l.width, T::kWidth));
  l.orbit_blocks = static_cast<int>(whole_blocks(p.orbits, T::kOrbits));
  l.blocks = static_cast<int>(p.groups) * l.orbit_blocks;
  l.steps = static_cast<int>(whole_blocks(p.channels, T::kChannels));
  l.tiles = static_cast<int>(whole_blocks(int64_t{l.images} * l.down * l.across, T::kPatches)) * l.blocks;
  l.x_image = static_cast<int>(p.x_n / 8);
  l.x_plane = static_cast<int>(p.x_z / 8);
  l.x_row = static_cast<int>((v ? p.x_x : p.x_y) / 8);
  l.x_column = static_cast<int>((v ? p.x_y : p.x_x) / 8);
  l.y_image = p.y_n;
  l.y_plane = p.y_z;
  l.y_row = static_cast<int>(v ? p.y_x : p.y_y);
  l.y_column = static_cast<int>(v ? p.y_y : p.y_x);
  l.activation = static_cast<int>(p.activation);
  l.whole = stores_whole(p, pointers.y, T::kTogether);
  return l;
}

}  // namespace symconv
