// Weights and ordinary filters with their input channels in the order of Problem::order, and back.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "problem.h"

namespace symconv {

// Where channels stay in place each function returns what it is given.
class ChannelOrder {
 public:
  explicit ChannelOrder(const Problem& p);

  bool moves_weights() const { return places_.defined() && !kept_; }

  at::Tensor sorted_filters(const at::Tensor& filters) const;
  at::Tensor restored_filters(const at::Tensor& sorted) const;
  // Weights that keep one channel of each orbit have them sorted already.
  at::Tensor sorted_weight(const at::Tensor& weight) const;
  at::Tensor restored_weight(const at::Tensor& sorted) const;

 private:
  int64_t dim_;                // of weights: that of input channels
  bool kept_ = false;          // do weights keep one channel of each orbit?
  at::Tensor order_, places_;  // the channel of each place, and the other way round
};

}  // namespace symconv
