// Forward and input gradient: pack a panel, multiply it by the packed weights, store every member.
#pragma once

#include <cstdint>
#include <vector>

#include "geometry.h"
#include "kernels.h"
#include "panel.h"
#include "weights.h"

namespace symconv {

template <class T>
struct Multiply {
  const Problem& problem;
  const Plan& plan;
  View<const Element<T>> source;
  int64_t source_channels;  // of one group of the layer
  WeightView<const Element<T>> weight;
  int64_t weight_group_stride;
  View<Element<T>> out;
  int64_t out_channels;                 // of one group of the layer
  int64_t columns;                      // orbits (fold) or input channels (sum)
  int64_t contraction;                  // channels that a fold plan may be cut along
  std::vector<int64_t> member_channel;  // first output channel of each member
  const Element<T>* bias;               // null without; [groups * out_channels]
  bool planes;                          // the panel is [row][pixel], else [pixel][row]
  bool staged;                          // planes only: the source of a tile is copied into a Stage first
  bool pixel_lanes;                     // planes only: results are [column][pixel], else [pixel][column]
};

template <class T>
void multiply(const Multiply<T>& m);

}  // namespace symconv
