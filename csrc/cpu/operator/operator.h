// The operators of `torch.ops.symconv_fast` as C++ calls them. operators.inc has their schemas and
// derivatives.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <array>
#include <memory>
#include <optional>
#include <utility>

#include "export.h"
#include "operator/call_cache.h"

namespace symconv {

// The arguments of a layer that are neither tensors nor sizes, without `channels_last`: as the dispatcher has
// them, symbols of a compiler included, and as the cache has them, where there are no symbols.
struct Static {
  std::array<c10::IValue, 7> values;
  Ints row;
};
using StaticPtr = std::shared_ptr<const Static>;
SYMCONV_API StaticPtr make_static(const Layer& layer);

// Would the dispatcher do nothing with such a tensor but call a kernel? Not with subclasses, views that are
// to be negated, and duals.
SYMCONV_API bool is_plain(const at::Tensor& t);
// Is there no mode, transform, profiler or tracer that wants to see operators?
SYMCONV_API bool nothing_listens();

// What autocast casts to on a CPU, where it is on; and its cast, of a weight once for as long as it is on.
SYMCONV_API std::optional<at::ScalarType> autocast_type();
SYMCONV_API at::Tensor autocast_to(const at::Tensor& t, at::ScalarType type);

// The output, with a node of the graph where a gradient is wanted. For plain tensors, where nothing listens.
SYMCONV_API at::Tensor fprop(const at::Tensor& input, const at::Tensor& weight,
                             const std::optional<at::Tensor>& bias, const StaticPtr& fixed,
                             bool channels_last, const Runner& runner);

// --- kernels, below autograd ---

at::Tensor run(const Runner& runner, const Call& call);
// The gradients of weight and bias, in one pass over the upstream gradient where the runner has one.
std::pair<at::Tensor, at::Tensor> run_wgrad_bias(const Runner& runner, const Call& call);

}  // namespace symconv
