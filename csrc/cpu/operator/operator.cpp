// The operators' schemas, and their kernels for the CPU. Kernels take the dispatcher's stack as it is: calls
// from Python, of compiled and exported programs bring it, and one kernel then serves every signature.
#include "operator/operator.h"

#include <ATen/ops/gelu.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/silu.h>
#include <torch/library.h>

#include <algorithm>
#include <string>

#include "operator/stack.h"

// Of ATen/autocast_mode.h, which reads the headers of every operator that torch has.
namespace at::autocast {
TORCH_API bool is_autocast_enabled(at::DeviceType device);
TORCH_API at::ScalarType get_autocast_dtype(at::DeviceType device);
TORCH_API at::Tensor cached_cast(at::ScalarType to, const at::Tensor& tensor, at::DeviceType device);
}  // namespace at::autocast

namespace symconv {
namespace {

using torch::jit::Stack;

struct Activation {
  const char* name;
  at::Tensor (*function)(const at::Tensor&);
  void (*in_place)(at::Tensor);
};
constexpr Activation kActivations[] = {
    {"relu", [](const at::Tensor& y) { return at::relu(y); }, [](at::Tensor y) { at::relu_(y); }},
    {"silu", [](const at::Tensor& y) { return at::silu(y); }, [](at::Tensor y) { at::silu_(y); }},
    {"gelu", [](const at::Tensor& y) { return at::gelu(y); }, [](at::Tensor y) { at::gelu_(y); }}};

const Activation& find_activation(const std::string& name) {
  for (const Activation& activation : kActivations)
    if (name == activation.name) return activation;
  TORCH_CHECK_VALUE(false, "activation='", name, "' is not valid; give None, 'relu', 'silu' or 'gelu'");
}

// Calls `f` with a call of `op` that has the arguments on the stack.
template <class F>
auto with_call(Op op, Kind kind, const Stack& stack, const F& f) {
  const Arguments a = arguments(stack, kind);
  c10::SmallVector<int64_t, 32> layer, size;
  bool numbers = append_layer(layer, &stack[a.geometry]);
  if (op != Op::fprop) numbers = numbers && append(size, a.third);
  TORCH_CHECK(numbers, "symbols are no sizes of a tensor on a CPU");
  return f(Call{op, a.first, a.second, a.bias, size, layer, stack.back().toBool()});
}

template <class... Results>
void replace_arguments(Stack& stack, Kind kind, Results&&... results) {
  stack.resize(arguments(stack, kind).begin);
  (stack.emplace_back(std::forward<Results>(results)), ...);
}

at::Tensor run_found(const Call& call) { return run(*find_runner(call), call); }

template <Op op, Kind kind>
void one_result(const c10::OperatorHandle&, Stack* stack) {
  replace_arguments(*stack, kind, with_call(op, kind, *stack, run_found));
}

void fprop_activated(const c10::OperatorHandle&, Stack* stack) {
  const Kind kind = Kind::fprop_activated;
  const std::string name = (*stack)[arguments(*stack, kind).begin + 3].toStringRef();
  const auto in_place = find_activation(name).in_place;
  replace_arguments(*stack, kind, with_call(Op::fprop, kind, *stack, [&](const Call& call) {
    const auto runner = find_runner(call);
    if (!runner->pass && chooser()) return chooser()->run_activated(call, name);
    at::Tensor output = run(*runner, call);
    in_place(output);
    return output;
  }));
}

void wgrad_bias(const c10::OperatorHandle&, Stack* stack) {
  auto [weight, bias] = with_call(Op::wgrad, Kind::wgrad_bias, *stack,
                                  [](const Call& call) { return run_wgrad_bias(*find_runner(call), call); });
  replace_arguments(*stack, Kind::wgrad_bias, std::move(weight), std::move(bias));
}

template <Kind kind>
void autograd(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  differentiable(kind, op, keys, stack);
}

}  // namespace

at::Tensor run(const Runner& runner, const Call& call) {
  if (!runner.pass) return runner.other(call.first, call.second, call.bias);
  if (call.op == Op::fprop) return runner.pass->fprop(call.first, call.second, call.bias);
  if (call.op == Op::dgrad) return runner.pass->dgrad(call.first, call.second);
  return runner.pass->wgrad(call.first, call.second);
}

std::pair<at::Tensor, at::Tensor> run_wgrad_bias(const Runner& runner, const Call& call) {
  if (runner.pass) return runner.pass->wgrad_and_bias(call.first, call.second);
  return {run(runner, call), channel_sums(call.first)};
}

void check_activation(const std::string& name) { find_activation(name); }

at::Tensor activated(const at::Tensor& output, const std::string& name) {
  return find_activation(name).function(output);
}

StaticPtr make_static(const c10::IValue* values) {
  auto fixed = std::make_shared<Static>();
  std::copy_n(values, fixed->values.size(), fixed->values.begin());
  if (!append_layer(fixed->row, values)) fixed->row.clear();
  return fixed;
}

StaticPtr make_static(const Layer& layer) {
  const auto list = [](const Ints& values) { return c10::IValue(at::IntArrayRef(values)); };
  return std::make_shared<const Static>(
      Static{{list(layer.ties), list(layer.stride), list(layer.padding), list(layer.dilation),
              list(layer.output_padding), layer.transposed, layer.groups},
             flatten(layer)});
}

std::optional<at::ScalarType> autocast_type() {
  if (!at::autocast::is_autocast_enabled(at::kCPU)) return std::nullopt;
  return at::autocast::get_autocast_dtype(at::kCPU);
}

at::Tensor autocast_to(const at::Tensor& t, at::ScalarType type) {
  return at::autocast::cached_cast(type, t, t.device().type());
}

TORCH_LIBRARY(symconv_fast, m) {
  m.set_python_module("symconv_fast.ops");  // which has what torch's tracers want to know
#define GEOMETRY(arguments) const std::string geometry = arguments;
#define OPERATOR(name, arguments, results) \
  m.def((#name "(" arguments ", " + geometry + ") -> " results).c_str());
#define DERIVATIVE(of, argument, is, left, right)
#include "../../../symconv_fast/operators.inc"
#undef GEOMETRY
#undef OPERATOR
#undef DERIVATIVE
}

TORCH_LIBRARY_IMPL(symconv_fast, CPU, m) {
  using torch::CppFunction;
  m.impl("fprop", CppFunction::makeFromBoxedFunction<&one_result<Op::fprop, Kind::fprop>>());
  m.impl("dgrad", CppFunction::makeFromBoxedFunction<&one_result<Op::dgrad, Kind::dgrad>>());
  m.impl("wgrad", CppFunction::makeFromBoxedFunction<&one_result<Op::wgrad, Kind::wgrad>>());
  m.impl("fprop_activated", CppFunction::makeFromBoxedFunction<&fprop_activated>());
  m.impl("wgrad_bias", CppFunction::makeFromBoxedFunction<&wgrad_bias>());
}

TORCH_LIBRARY_IMPL(symconv_fast, Autograd, m) {
  using torch::CppFunction;
  m.impl("fprop", CppFunction::makeFromBoxedFunction<&autograd<Kind::fprop>>());
  m.impl("dgrad", CppFunction::makeFromBoxedFunction<&autograd<Kind::dgrad>>());
  m.impl("wgrad", CppFunction::makeFromBoxedFunction<&autograd<Kind::wgrad>>());
  m.impl("wgrad_bias", CppFunction::makeFromBoxedFunction<&autograd<Kind::wgrad_bias>>());
  m.impl("fprop_activated", CppFunction::makeFromBoxedFunction<&differentiable_activated>());
}

}  // namespace symconv
