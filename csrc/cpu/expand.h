// Ordinary filters from the reduced weight and back: for layers where neither the fold nor the
// gather-sum pays, so that torch's own convolution runs at the cost of one small copy.
#pragma once

#include <cstdint>

#include "geometry.h"
#include "weights.h"

namespace symconv {

// filters[member, channel, J tap] = weight[orbit, channel, tap], for every orbit member.
template <class T>
void expand(const Problem& p, const WeightView<const T>& weight, int64_t weight_group_stride,
            const WeightView<T>& filters, int64_t filters_group_stride);

// The adjoint: weight[orbit, channel, tap] = sum of filters[member, channel, J tap] over the members.
template <class T>
void reduce(const Problem& p, const WeightView<const T>& filters, int64_t filters_group_stride,
            const WeightView<T>& weight, int64_t weight_group_stride);

}  // namespace symconv
