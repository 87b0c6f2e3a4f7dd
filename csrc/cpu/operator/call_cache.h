// Who runs a call, remembered by all that this depends on. There is no formula here: what is remembered is
// what the chooser said.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "export.h"
#include "pass.h"

namespace symconv {

// The arguments of an operator that are neither tensors nor sizes, without `channels_last`.
struct Layer {
  Ints ties, stride, padding, dilation, output_padding;
  bool transposed;
  int64_t groups;
};
// As a row of numbers, which is what calls are told apart by; and back.
SYMCONV_API Ints flatten(const Layer& layer);
SYMCONV_API Layer unflatten(at::IntArrayRef row);

// For gradients `size` is that of the result.
struct Call {
  Op op;
  const at::Tensor& first;
  const at::Tensor& second;
  const std::optional<at::Tensor>& bias;
  at::IntArrayRef size;
  at::IntArrayRef layer;
  bool channels_last;
};

// What runs calls of one kind: a pass, or where there is none a function of the chooser's.
struct Runner {
  std::shared_ptr<const Pass> pass;
  std::function<at::Tensor(const at::Tensor& first, const at::Tensor& second,
                           const std::optional<at::Tensor>& bias)>
      other;
};

// Who chooses: Python, which knows other backends, what the user pinned, and how long each way takes; or, in
// a program without Python, choose_standalone().
struct SYMCONV_API Chooser {
  virtual ~Chooser();
  // Checks the call, and throws where nobody can run it.
  virtual Runner choose(const Call& call) const = 0;
  // A call with an activation, of a kind of which the runner is no pass: backends may have kernels for both.
  virtual at::Tensor run_activated(const Call& call, const std::string& activation) const = 0;
  // A number for what is pinned in this thread. The runners that were chosen under it keep it from meaning
  // something else.
  virtual int64_t pin() const = 0;
};
// Never freed, and set before the first call.
SYMCONV_API void set_chooser(const Chooser* chooser);
// Or null.
const Chooser* chooser();

Runner choose_standalone(const Call& call);

// Any thread may ask.
SYMCONV_API std::shared_ptr<const Runner> find_runner(const Call& call);
// Have all be chosen anew: a switch that choices depend on was changed.
SYMCONV_API void forget_runners();
SYMCONV_API int64_t remembered_runners();

}  // namespace symconv
