// What the dispatcher's stack has for an operator of this library, and what is common to kernels and
// derivatives.
#pragma once

#include <ATen/core/stack.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/core/SymIntArrayRef.h>

#include <optional>
#include <string>
#include <utility>

#include "operator/operator.h"

namespace c10 {
class OperatorHandle;
}

namespace symconv {

enum class Kind { fprop, fprop_activated, dgrad, wgrad, wgrad_bias };

// fprop(first, second, bias, ...); of the others the third argument is a size. In fprop_activated a name
// follows the bias.
struct Arguments {
  const at::Tensor& first;
  const at::Tensor& second;
  std::optional<at::Tensor> bias;
  const c10::IValue& third;
  size_t begin, geometry;  // places of the first argument, and of `ties`, the first of the last eight
};

inline Arguments arguments(const torch::jit::Stack& stack, Kind kind) {
  constexpr size_t tensors = 3, geometry = 8;
  const size_t begin = stack.size() - (tensors + geometry + (kind == Kind::fprop_activated));
  const c10::IValue& third = stack[begin + 2];
  std::optional<at::Tensor> bias;
  if (third.isTensor() && third.toTensor().defined()) bias = third.toTensor();
  return {stack[begin].toTensor(), stack[begin + 1].toTensor(), std::move(bias), third, begin,
          stack.size() - geometry};
}

// Appends the numbers of a list; false where one of them is a symbol.
template <class Row>
bool append(Row& row, const c10::IValue& list) {
  for (const c10::IValue& value : list.toListRef()) {
    if (value.isSymInt() && value.toSymInt().is_symbolic()) return false;
    row.push_back(value.isInt() ? value.toInt() : value.toSymInt().expect_int());
  }
  return true;
}

// The arguments from `values` on in the form of flatten(); false where one of them is a symbol.
template <class Row>
bool append_layer(Row& row, const c10::IValue* values) {
  constexpr int lists = 5;
  for (int i = 0; i < lists; ++i) {
    row.push_back(static_cast<int64_t>(values[i].toListRef().size()));
    if (!append(row, values[i])) return false;
  }
  row.push_back(values[lists].toBool());
  row.push_back(values[lists + 1].toInt());
  return true;
}

inline c10::SymDimVector size_of(const c10::IValue& list) {
  c10::SymDimVector size;
  for (const c10::IValue& n : list.toListRef()) size.push_back(n.toSymInt());
  return size;
}

// The same arguments, kept; without numbers where one of them is a symbol.
StaticPtr make_static(const c10::IValue* values);

// Kernels of the dispatcher's key Autograd.
void differentiable(Kind kind, const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                    torch::jit::Stack* stack);
void differentiable_activated(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                              torch::jit::Stack* stack);

// Raises ValueError for what names no activation.
void check_activation(const std::string& name);
at::Tensor activated(const at::Tensor& output, const std::string& name);

}  // namespace symconv
