// Depthwise convolutions, and those of groups that are narrower than a vector: every vector has a position of
// channels of several groups. A box of source lines is packed with its padding, folded line by line, and
// multiplied in registers; nothing else is stored between source and result.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "depthwise/plan.h"
#include "microkernels/kernels.h"
#include "packed/panel.h"
#include "packed/weights.h"
#include "problem.h"

namespace symconv {

// Tensors hold T; boxes, packed weights and results are Sum<T> until they are stored.

// Forward (fold) from the input, or input gradient from the upstream gradient.
template <class T>
struct Depthwise {
  const Problem& problem;
  bool fold;
  View<const T> source;
  WeightView<const T> weight;
  int64_t weight_group_stride;  // from one channel to the next
  View<T> out;
  const T* bias;  // null without; forward only
};
template <class T>
void depthwise(const Depthwise<T>& d);

template <class T>
struct DepthwiseGrad {
  const Problem& problem;
  View<const T> grad, input;
  WeightView<T> out;
  int64_t out_group_stride;
};
template <class T>
void depthwise_wgrad(const DepthwiseGrad<T>& d);

// The pieces that both share.

// Groups from `first` on of the layer, as many as a vector holds; lanes that are left over are zero.
struct LaneBlock {
  int64_t first, groups;
  int lanes;
};

// Who the lanes are. In a depthwise layer each is a group, whose orbits come one after the other. Where
// groups have several channels, their orbits are the lanes forward, since each of them is a sum of its own;
// input channels are the planes, and all orbits of a group read the same one. In the gradients the input
// channels are the lanes, and those of a group read the same filters.
class Lanes {
 public:
  static constexpr int kMost = 16;  // of a vector
  using Table = std::array<int32_t, kMost>;

  Lanes(const Problem& p, bool forward, int vector);

  LaneBlock block(int64_t b) const;
  int64_t blocks() const { return blocks_; }
  int64_t of_group() const { return of_group_; }
  // Are channels of a group summed, each with weights of its own?
  bool contracts() const { return contracts_; }
  // Rows of taps that a lane has: its orbits, or the channels that it sums.
  int64_t rows() const { return rows_; }

  // The place of every lane, where those of a group lie `lane` apart and groups lie `group` apart; null where
  // each lane is a group.
  const int32_t* places(int64_t group, int64_t lane, Table& table) const;

 private:
  int64_t groups_, of_group_, of_vector_, blocks_, rows_;
  bool contracts_;
};

// What a box takes from a tensor: `planes` planes, each after a line of zeros: [plane][1 +
// line][pitch][lanes]. The planes are all channels of a group, or else the one plane is the lanes.
template <class T>
struct Packing {
  View<const T> source;
  bool shared;
  int planes;
  bool parities;  // the planes are the members of orbits, and become their parities
  const LinePhase& phase;
  const Box& box;
  int64_t pitch;
  int64_t plane_vectors() const { return (1 + box.source_lines()) * pitch; }
};
// `clear`: write the zeros around the map too; the box that `out` held before was not the same one.
template <class T>
void pack_box(const Kernels<T>& kernels, const Problem& p, const Lanes& lanes, const Packing<T>& from,
              int64_t image, const LaneBlock& block, bool clear, Sum<T>* out);

// Moves one row of taps of a block between the weight and lanes, [tap][lanes].
template <class T>
void gather_taps(const Kernels<T>& kernels, const Problem& p, const Lanes& lanes,
                 const WeightView<const T>& weight, int64_t group_stride, const LaneBlock& block, int64_t row,
                 Sum<T>* out);
// The same of filters that are rows of the weight, mirrored: one of each group. `raw` is room for a row.
template <class T>
void gather_mirrored(const Kernels<T>& kernels, const Problem& p, const Lanes& lanes,
                     const WeightView<const T>& weight, const MirroredTaps& taps, const LaneBlock& block,
                     int64_t filter, Sum<T>* raw, Sum<T>* out);
template <class T>
void scatter_taps(const Kernels<T>& kernels, const Problem& p, const Lanes& lanes,
                  const WeightView<T>& weight, int64_t group_stride, const LaneBlock& block, int64_t row,
                  Sum<T>* from);

}  // namespace symconv
