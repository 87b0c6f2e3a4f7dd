// Copies of small tensors, along one dimension.
#include "channel_order.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/index_select.h>

namespace symconv {

ChannelOrder::ChannelOrder(const Problem& p) : dim_(p.transposed ? 0 : 1) {
  if (p.order.empty()) return;
  kept_ = p.segments[0].own_image;
  const int64_t groups = p.transposed ? p.groups : 1;  // that lie behind each other along that dimension
  order_ = at::empty({groups * p.channels}, at::kLong), places_ = at::empty_like(order_);
  auto* order = static_cast<int64_t*>(order_.data_ptr());
  auto* places = static_cast<int64_t*>(places_.data_ptr());
  for (int64_t group = 0; group < groups; ++group)
    for (int64_t place = 0; place < p.channels; ++place) {
      const int64_t first = group * p.channels, channel = first + p.order[place];
      order[first + place] = channel, places[channel] = first + place;
    }
}

at::Tensor ChannelOrder::sorted_filters(const at::Tensor& filters) const {
  return order_.defined() ? at::index_select(filters, dim_, order_) : filters;
}

at::Tensor ChannelOrder::restored_filters(const at::Tensor& sorted) const {
  return places_.defined() ? at::index_select(sorted, dim_, places_) : sorted;
}

at::Tensor ChannelOrder::sorted_weight(const at::Tensor& weight) const {
  return kept_ ? weight : sorted_filters(weight);
}

at::Tensor ChannelOrder::restored_weight(const at::Tensor& sorted) const {
  return kept_ ? sorted : restored_filters(sorted);
}

}  // namespace symconv
