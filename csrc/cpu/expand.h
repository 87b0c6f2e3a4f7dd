// Ordinary filters from the reduced weight and back: for layers where neither the fold nor the
// gather-sum pays, so that torch's own convolution runs at the cost of one small copy.
#pragma once

#include <cstdint>

#include "packed/weights.h"
#include "problem.h"

namespace symconv {

// filters[member, pi channel, J tap] = weight[orbit, channel, tap], for every orbit member; and of filters
// that are their own images each kept weight, with its sign, wherever it is. Channels are in the order of the
// problem.
template <class T>
void expand(const Problem& p, const WeightView<const T>& weight, int64_t weight_group_stride,
            const WeightView<T>& filters, int64_t filters_group_stride);

// The adjoint: weight[orbit, channel, tap] = sum of filters[member, pi channel, J tap] over the members.
template <class T>
void reduce(const Problem& p, const WeightView<const T>& filters, int64_t filters_group_stride,
            const WeightView<T>& weight, int64_t weight_group_stride);

}  // namespace symconv
