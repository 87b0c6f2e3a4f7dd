// The operators' derivatives, for every order and every transform of torch.func: a node of the graph that
// calls the operators which operators.inc names.
#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/variable.h>

#include <initializer_list>
#include <mutex>

#include "operator/node.h"
#include "operator/operator.h"
#include "operator/stack.h"

namespace symconv {
namespace {

using torch::jit::Stack;

// --- the table ---

enum class Operand { grad, first, second };
struct Derivative {
  Kind of;
  Operand argument;
  Kind is;
  Operand left, right;
};
constexpr Derivative kDerivatives[] = {
#define GEOMETRY(arguments)
#define OPERATOR(name, arguments, results)
#define DERIVATIVE(of, argument, is, left, right) \
  {Kind::of, Operand::argument, Kind::is, Operand::left, Operand::right},
#include "../../../symconv_fast/operators.inc"
#undef GEOMETRY
#undef OPERATOR
#undef DERIVATIVE
};

const c10::OperatorHandle& handle(Kind kind) {
  const auto find = [](const char* name) { return c10::Dispatcher::singleton().findSchemaOrThrow(name, ""); };
  static const std::array handles{find("symconv_fast::fprop"), find("symconv_fast::fprop_activated"),
                                  find("symconv_fast::dgrad"), find("symconv_fast::wgrad"),
                                  find("symconv_fast::wgrad_bias")};
  return handles[static_cast<size_t>(kind)];
}

// --- tensors ---

// Not by the dispatcher, where a mode may be listening.
c10::DispatchKeySet keys_of_empty() {
  return at::detail::empty_cpu({0}, at::TensorOptions(at::kFloat)).key_set();
}

bool has_tangent(const at::Tensor& t) { return t._fw_grad(0).defined(); }

// Operators without a formula for forward mode would give zeros without a word.
void refuse_tangents(const Arguments& a) {
  const bool any = has_tangent(a.first) || has_tangent(a.second) || (a.bias && has_tangent(*a.bias));
  TORCH_CHECK_NOT_IMPLEMENTED(
      !any,
      "symconv_fast does not implement forward-mode automatic differentiation (torch.func.jvp, jacfwd, dual "
      "tensors); use reverse mode: torch.autograd.grad, torch.func.vjp or jacrev");
}

bool wants_gradient(const at::Tensor& first, const at::Tensor& second,
                    const std::optional<at::Tensor>& bias) {
  return at::GradMode::is_enabled() &&
         (first.requires_grad() || second.requires_grad() || (bias && bias->requires_grad()));
}

bool wants_gradient(const Arguments& a) { return wants_gradient(a.first, a.second, a.bias); }

// --- the gradients ---

// One or two results of an operator: run here where the dispatcher would do nothing but that.
variable_list call(Kind kind, const at::Tensor& first, const at::Tensor& second,
                   const std::optional<at::Tensor>& bias, const Record& record, bool last) {
  const Size& size = kind == Kind::dgrad ? record.input_size : record.weight_size;
  const auto here = [](const at::Tensor& t) { return is_plain(t) && !has_tangent(t); };
  const bool direct = !at::GradMode::is_enabled() && here(first) && here(second) && (!bias || here(*bias)) &&
                      nothing_listens() && !record.fixed->row.empty();
  const auto ints = direct ? c10::asIntArrayRefSlowOpt(size) : std::nullopt;
  if (ints) {
    const Op op = kind == Kind::fprop ? Op::fprop : kind == Kind::dgrad ? Op::dgrad : Op::wgrad;
    const at::IntArrayRef own_size = op == Op::fprop ? at::IntArrayRef() : *ints;
    const Call own{op, first, second, bias, own_size, record.fixed->row, last};
    const auto runner = find_runner(own);
    if (kind != Kind::wgrad_bias) return {run(*runner, own)};
    auto [weight, sums] = run_wgrad_bias(*runner, own);
    return {std::move(weight), std::move(sums)};
  }
  Stack stack{first, second,
              kind == Kind::fprop ? c10::IValue(bias) : c10::IValue(c10::SymIntArrayRef(size))};
  stack.insert(stack.end(), record.fixed->values.begin(), record.fixed->values.end());
  stack.emplace_back(last);
  handle(kind).callBoxed(stack);
  variable_list results;
  for (const c10::IValue& result : stack) results.push_back(result.toTensor());
  return results;
}

// Of a gradient as the layer would give it: by its input and its weight, one of which is `grad`.
bool is_last(const Record& record, Kind is, const at::Tensor& grad) {
  if (is == Kind::wgrad) return record.second_last;
  if (record.kind == Kind::fprop) return record.channels_last;
  return record.second_last || suggests_channels_last(grad);
}

// An upstream gradient that lies otherwise than its layer's output is copied once for all that read it: both
// gradients would, and in another layout they are slower by more than the copy takes.
at::Tensor as_output(const Record& record, const at::Tensor& grad, const Wanted& wanted) {
  const bool read = record.kind == Kind::fprop && (wanted[0] || wanted[1]);
  const bool here = !at::GradMode::is_enabled() && grad.device().is_cpu() && is_plain(grad);
  return read && here && grad.numel() > 0 ? laid_out(grad, record.channels_last) : grad;
}

// --- nodes ---

using NodePtr = decltype(torch::autograd::Edge::function);

// torch 2.13 counts references to nodes in the nodes, earlier ones beside them.
template <class Pointer>
Pointer new_node() {
  if constexpr (requires { typename Pointer::weak_type; }) {
    return Pointer(new Backward, [](typename Pointer::element_type* node) { deleteNode(node); });
  } else {
    return c10::make_intrusive<Backward>();
  }
}

NodePtr make_node(Record record, const at::Tensor& first, const at::Tensor& second,
                  const std::optional<at::Tensor>& bias) {
  NodePtr made = new_node<NodePtr>();
  auto& node = static_cast<Backward&>(*made);
  node.set_next_edges(record.kind == Kind::fprop ? torch::autograd::collect_next_edges(first, second, bias)
                                                 : torch::autograd::collect_next_edges(first, second));
  if (second.requires_grad()) node.first = torch::autograd::SavedVariable(first, false);
  if (first.requires_grad()) node.second = torch::autograd::SavedVariable(second, false);
  node.record = std::move(record);
  return made;
}

Size sizes(const at::Tensor& t) { return Size(t.sym_sizes().begin(), t.sym_sizes().end()); }

NodePtr make_node(Kind kind, const Arguments& a, const Stack& stack) {
  const bool of_weight = kind == Kind::wgrad || kind == Kind::wgrad_bias;
  Size input = kind == Kind::fprop ? sizes(a.first) : of_weight ? sizes(a.second) : size_of(a.third);
  Size weight = of_weight ? size_of(a.third) : sizes(a.second);
  return make_node({kind, std::move(input), std::move(weight), stack.back().toBool(),
                    suggests_channels_last(a.second), make_static(&stack[a.geometry])},
                   a.first, a.second, a.bias);
}

void attach(const NodePtr& node, const at::Tensor& output) {
  torch::autograd::impl::set_gradient_edge(output, {node, node->add_input_metadata(output)});
}

}  // namespace

variable_list gradients(const Record& record, const at::Tensor& first, const at::Tensor& second,
                        const variable_list& grads, const Wanted& wanted, size_t count) {
  variable_list result(count);
  at::Tensor grad = grads[0];
  std::optional<at::Tensor> bias_grad;  // of what wgrad_bias gave
  if (grads.size() > 1 && grads[1].defined()) bias_grad = grads[1];
  if (!grad.defined() && !bias_grad) return result;
  if (!grad.defined()) grad = at::zeros_symint(record.weight_size, bias_grad->options());
  grad = as_output(record, grad, wanted);
  const auto operand = [&](Operand which) {
    return which == Operand::grad ? grad : which == Operand::first ? first : second;
  };
  const bool bias = record.kind == Kind::fprop && wanted[2];
  for (const Derivative& d : kDerivatives) {
    const size_t place = d.argument == Operand::first ? 0 : 1;
    if (d.of != record.kind || !wanted[place]) continue;
    const bool both = d.is == Kind::wgrad && bias && grad.device().is_cpu();
    const variable_list found =
        call(both ? Kind::wgrad_bias : d.is, operand(d.left), operand(d.right),
             d.is == Kind::fprop ? bias_grad : std::nullopt, record, is_last(record, d.is, grad));
    result[place] = found[0];
    if (both) result[2] = found[1];
  }
  if (bias && !result[2].defined()) result[2] = channel_sums(grad);
  return result;
}

std::string Backward::name() const {
  constexpr std::array names{"SymconvFpropBackward", "SymconvFpropActivatedBackward", "SymconvDgradBackward",
                             "SymconvWgradBackward", "SymconvWgradBiasBackward"};
  return names[static_cast<size_t>(record.kind)];
}

Wanted Backward::wanted() const {
  return {task_should_compute_output(0), task_should_compute_output(1),
          num_outputs() > 2 && task_should_compute_output(2)};
}

variable_list Backward::apply(variable_list&& grads) {
  const std::lock_guard<std::mutex> guard(mutex_);
  return gradients(record, first.unpack(), second.unpack(), grads, wanted(), num_outputs());
}

void Backward::release_variables() {
  const std::lock_guard<std::mutex> guard(mutex_);
  first.reset_data(), second.reset_data();
}

bool is_plain(const at::Tensor& t) {
  static const c10::DispatchKeySet plain = keys_of_empty();
  static const c10::DispatchKeySet inference = [] {
    const c10::InferenceMode mode;
    return keys_of_empty();
  }();
  return (t.key_set() == plain || t.key_set() == inference) && !has_tangent(t);
}

bool nothing_listens() {
  const c10::DispatchKeySet included = c10::impl::tls_local_dispatch_key_set().included_;
  const c10::DispatchKeySet inference = c10::default_included_set.remove(c10::DispatchKey::ADInplaceOrView);
  return (included == c10::default_included_set || included == inference) &&
         !at::getStepCallbacksUnlessEmpty(at::RecordScope::FUNCTION).has_value();
}

at::Tensor fprop(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                 const StaticPtr& fixed, bool channels_last, const Runner& runner) {
  NodePtr node;
  if (wants_gradient(input, weight, bias))
    node = make_node(
        {Kind::fprop, sizes(input), sizes(weight), channels_last, suggests_channels_last(weight), fixed},
        input, weight, bias);
  const at::AutoDispatchBelowADInplaceOrView guard;
  const at::Tensor output =
      run(runner, {Op::fprop, input, weight, bias, at::IntArrayRef(), fixed->row, channels_last});
  if (node) attach(node, output);
  return output;
}

// --- kernels ---

void differentiable(Kind kind, const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  NodePtr node;
  size_t begin = 0;
  {
    const Arguments a = arguments(*stack, kind);
    begin = a.begin;
    refuse_tangents(a);
    if (wants_gradient(a)) node = make_node(kind, a, *stack);
  }
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    op.redispatchBoxed(keys & c10::after_autograd_keyset, stack);
  }
  for (size_t i = begin; node && i < stack->size(); ++i) attach(node, (*stack)[i].toTensor());
}

// Two operations with derivatives of their own, or the one operator where none is wanted.
void differentiable_activated(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  const Arguments a = arguments(*stack, Kind::fprop_activated);
  refuse_tangents(a);
  if (!wants_gradient(a)) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return op.redispatchBoxed(keys & c10::after_autograd_keyset, stack);
  }
  const auto place = stack->begin() + static_cast<int64_t>(a.begin) + 3;
  const std::string activation = place->toStringRef();
  check_activation(activation);
  stack->erase(place);
  handle(Kind::fprop).callBoxed(stack);
  stack->back() = activated(stack->back().toTensor(), activation);
}

}  // namespace symconv
