// The node that an operator leaves in the graph of autograd.
#pragma once

#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <array>
#include <string>

#include "operator/operator.h"
#include "operator/stack.h"

namespace symconv {

using torch::autograd::variable_list;
using Size = c10::SymDimVector;

// Of a call all that its gradients depend on, but for the tensors.
struct Record {
  Kind kind;
  Size input_size, weight_size;
  bool channels_last, second_last;  // layouts of the result, and of the second tensor
  StaticPtr fixed;
};

using Wanted = std::array<bool, 3>;  // the gradients of the first tensor, the second and the bias

// By operators.inc: `count` gradients. A tensor that no wanted gradient needs may be undefined.
variable_list gradients(const Record& record, const at::Tensor& first, const at::Tensor& second,
                        const variable_list& grads, const Wanted& wanted, size_t count);

struct Backward : torch::autograd::Node {
  Record record;
  torch::autograd::SavedVariable first, second;

  std::string name() const override;
  Wanted wanted() const;
  variable_list apply(variable_list&& grads) override;
  void release_variables() override;

  // For compiled autograd, which traces the gradients with other tensors, once for calls that are alike.
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override;
  variable_list apply_with_saved(const variable_list& grads,
                                 torch::dynamo::autograd::SwapSavedVariables& saved) override;
};

}  // namespace symconv
