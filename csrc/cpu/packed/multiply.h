// Forward and input gradient: pack a panel, multiply it by the packed weights, store every member.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "microkernels/kernels.h"
#include "packed/panel.h"
#include "packed/plan.h"
#include "packed/weights.h"

namespace symconv {

// A multiplication without its tensors.
struct MultiplyShape {
  const Problem& problem;
  Plan plan;
  int64_t source_channels;     // of one group of the layer
  int64_t out_channels;        // of one group of the layer
  int64_t out_channel_stride;  // of the result
  int64_t columns;             // orbits (fold) or input channels (sum)
  int64_t contraction;         // channels that a fold plan may be cut along
  // First output channel of each member: as many as there are parities, and then those that repeat them.
  std::vector<int64_t> member_channel;
  bool orders_source, orders_result;  // by Problem::order: of the staged source, and of results in planes
  bool planes;                        // the panel is [row][pixel], else [pixel][row]
  bool staged;                        // planes only: the source of a tile is copied into a Stage first
  bool pixel_lanes;                   // planes only: results are [column][pixel], else [pixel][column]
  bool by_lines;                      // the panel is not folded along the width (packed/lines.h); pixel_lanes
};

template <class T>
struct MultiplyTensors {
  View<const Element<T>> source;
  WeightView<const Element<T>> weight;
  int64_t weight_group_stride;
  View<Element<T>> out;
  const Element<T>* bias;  // null without; [groups * out_channels]
};

// All that can be worked out before there are tensors: tiles, layouts of the panel and of the packed weights.
// May be used by several threads at a time.
template <class T>
struct Prepared;

template <class T>
std::shared_ptr<const Prepared<T>> prepare(MultiplyShape shape, int64_t threads);

template <class T>
void multiply(const Prepared<T>& prepared, const MultiplyTensors<T>& tensors);

}  // namespace symconv
