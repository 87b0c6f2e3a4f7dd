// A call is looked up by everything that its checks and the choice of its kernels depend on; where it was
// seen, and the dispatcher would do nothing but call the kernel, it runs here. Where a gradient is wanted it
// leaves a node of C++ in the graph, which finds its own passes in the same way.
#include "eager.h"

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/profiler.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/jit/frontend/tracer.h>

#include <iterator>
#include <memory>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "pass.h"

namespace symconv {
namespace {

namespace py = pybind11;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr size_t kMaxCalls = 8192;

// --- what Python gives once ---

// Never freed: the interpreter is gone when statics are destroyed.
struct Python {
  py::object parameter;     // the class torch.nn.Parameter
  py::object pin;           // ContextVar: what the user pinned, or None
  py::object plan;          // (op, first, second, size, static) -> the function of a gradient
  py::object dgrad, wgrad;  // the operators
};
Python& python() {
  static auto* const held = new Python;
  return *held;
}

int64_t epoch = 0;  // of the settings: what was chosen in an older one is not used

// --- which tensors, and when ---

// Not by the dispatcher, where a mode may be listening.
c10::DispatchKeySet keys_of_empty() {
  return at::detail::empty_cpu({0}, at::TensorOptions(at::kFloat)).key_set();
}

bool is_plain(const at::Tensor& t) {
  static const c10::DispatchKeySet plain = keys_of_empty();
  static const c10::DispatchKeySet inference = [] {
    const c10::InferenceMode mode;
    return keys_of_empty();
  }();
  return t.key_set() == plain || t.key_set() == inference;
}

// No mode, transform, profiler or tracer wants to see operators, and autocast is off.
bool nothing_listens() {
  const c10::DispatchKeySet included = c10::impl::tls_local_dispatch_key_set().included_;
  const c10::DispatchKeySet inference = c10::default_included_set.remove(c10::DispatchKey::ADInplaceOrView);
  return (included == c10::default_included_set || included == inference) &&
         !at::autocast::is_autocast_enabled(at::kCPU) && !torch::autograd::profiler::profilerEnabled() &&
         !torch::jit::tracer::isTracing();
}

// Subclasses may want to see the operator.
bool is_tensor(const py::handle& object) {
  return THPVariable_CheckExact(object.ptr()) ||
         reinterpret_cast<PyObject*>(Py_TYPE(object.ptr())) == python().parameter.ptr();
}

bool has_tangent(const at::Tensor& t) { return t._fw_grad(0).defined(); }

bool suggests_channels_last(const at::Tensor& t) {
  const c10::MemoryFormat format = t.suggest_memory_format();
  return format == c10::MemoryFormat::ChannelsLast || format == c10::MemoryFormat::ChannelsLast3d;
}

// --- keys ---

using Key = std::vector<int64_t>;

struct Hash {
  size_t operator()(const Key& key) const {
    uint64_t h = key.size();
    for (const int64_t v : key) h = (h ^ static_cast<uint64_t>(v)) * 0x9E3779B97F4A7C15ull, h ^= h >> 29;
    return h;
  }
};

void add(Key& key, const at::Tensor& t) {
  key.push_back(t.dim() << 8 | static_cast<int64_t>(t.scalar_type()) << 1 | suggests_channels_last(t));
  key.insert(key.end(), t.sizes().begin(), t.sizes().end());
}

int64_t identity(const py::handle& object) { return reinterpret_cast<int64_t>(object.ptr()); }

py::object current_pin() {
  PyObject* value = nullptr;
  if (PyContextVar_Get(python().pin.ptr(), nullptr, &value) < 0) throw py::error_already_set();
  return value ? py::reinterpret_steal<py::object>(value) : py::none();
}

struct Arguments {
  at::Tensor input, weight;
  std::optional<at::Tensor> bias;
};

// The tensors, if Python's way round would do nothing else with them.
std::optional<Arguments> unpack(const py::handle& input, const py::handle& weight, const py::handle& bias) {
  if (!is_tensor(input) || !is_tensor(weight) || !(bias.is_none() || is_tensor(bias))) return std::nullopt;
  Arguments a{THPVariable_Unpack(input.ptr()), THPVariable_Unpack(weight.ptr()), std::nullopt};
  if (!bias.is_none()) a.bias = THPVariable_Unpack(bias.ptr());
  const auto bars = [](const at::Tensor& t) { return !is_plain(t) || has_tangent(t); };
  if (bars(a.input) || bars(a.weight) || (a.bias && bars(*a.bias)) || !nothing_listens()) return std::nullopt;
  return a;
}

// `spec` are objects that cannot change; they are told apart by identity, and whoever keeps the key keeps
// them.
Key make_key(const Arguments& a, PyObject* const* spec, size_t parts, const py::handle& pin) {
  Key key;
  key.reserve(32);
  for (size_t i = 0; i < parts; ++i) key.push_back(identity(spec[i]));
  key.push_back(identity(pin));
  key.push_back(at::get_num_threads());
  add(key, a.input), add(key, a.weight);
  if (a.bias) add(key, *a.bias);
  return key;
}

// --- remembered calls ---

// A function of Python's: if it is a method of a native pass, that pass is called without Python.
struct Runner {
  py::object function;
  const Pass* pass = nullptr;

  explicit Runner(py::object callable) : function(std::move(callable)) {
    const py::object owner = py::getattr(function, "__self__", py::none());
    if (py::isinstance<Pass>(owner)) pass = owner.cast<const Pass*>();
  }
};

// The passes of the gradients, by what their choice depends on beside the shapes.
struct Gradients {
  py::object pin;
  int64_t threads, epoch;
  bool last;  // layout of the output's gradient
  std::optional<Runner> dgrad, wgrad;
};

struct Call : torch::CustomClassHolder {
  py::tuple spec;
  py::object pin;
  py::tuple dgrad_static, wgrad_static;
  Runner forward;
  Ints input_size, weight_size;
  bool has_bias;
  std::vector<std::unique_ptr<Gradients>> gradients;  // guarded by the GIL; grows only

  Call(py::tuple spec, py::object pin, py::tuple dgrad_static, py::tuple wgrad_static, py::object forward,
       Ints input_size, Ints weight_size, bool has_bias)
      : spec(std::move(spec)),
        pin(std::move(pin)),
        dgrad_static(std::move(dgrad_static)),
        wgrad_static(std::move(wgrad_static)),
        forward(std::move(forward)),
        input_size(std::move(input_size)),
        weight_size(std::move(weight_size)),
        has_bias(has_bias) {}

  // The last node of a graph may go in any thread.
  ~Call() override {
    const py::gil_scoped_acquire gil;
    spec = py::tuple(), dgrad_static = py::tuple(), wgrad_static = py::tuple();
    pin = py::object(), forward.function = py::object();
    gradients.clear();
  }
};

using CallPtr = c10::intrusive_ptr<Call>;

std::unordered_map<Key, CallPtr, Hash>& calls() {
  static auto* const held = new std::unordered_map<Key, CallPtr, Hash>;
  return *held;
}

at::Tensor run_forward(const Call& call, const at::Tensor& x, const at::Tensor& w,
                       const std::optional<at::Tensor>& b) {
  if (!call.forward.pass) return call.forward.function(x, w, b).cast<at::Tensor>();
  const py::gil_scoped_release release;
  return call.forward.pass->fprop(x, w, b);
}

// --- gradients ---

struct Wanted {
  bool input, weight;
};

// With the functions that are wanted found, by Python where they were not needed before.
const Gradients& find_gradients(Call& call, const at::Tensor& gy, const at::Tensor& x, const at::Tensor& w,
                                Wanted wanted) {
  const py::gil_scoped_acquire gil;
  const py::object pin = current_pin();
  const int64_t threads = at::get_num_threads();
  const bool last = suggests_channels_last(gy);
  Gradients* found = nullptr;
  for (const auto& g : call.gradients)
    if (g->pin.is(pin) && g->threads == threads && g->epoch == epoch && g->last == last) found = g.get();
  if (!found) {
    call.gradients.push_back(std::make_unique<Gradients>(Gradients{pin, threads, epoch, last, {}, {}}));
    found = call.gradients.back().get();
  }
  // Python may let other threads in, and one of them may be first: what it found is in use and stays.
  const auto find = [&](std::optional<Runner>& runner, const char* op, const at::Tensor& second,
                        const Ints& size, const py::tuple& geometry) {
    if (runner) return;
    Runner own(python().plan(op, gy, second, py::tuple(py::cast(size)), geometry));
    if (!runner) runner.emplace(std::move(own));
  };
  if (wanted.input) find(found->dgrad, "dgrad", w, call.input_size, call.dgrad_static);
  if (wanted.weight) find(found->wgrad, "wgrad", x, call.weight_size, call.wgrad_static);
  return *found;
}

at::Tensor run_gradient(const Runner& runner, bool of_input, const at::Tensor& gy, const at::Tensor& second) {
  if (runner.pass) return of_input ? runner.pass->dgrad(gy, second) : runner.pass->wgrad(gy, second);
  const py::gil_scoped_acquire gil;
  return runner.function(gy, second).cast<at::Tensor>();
}

// By the operators: gradients that may need gradients, and tensors or modes that want to see operators.
std::pair<at::Tensor, at::Tensor> gradients_by_operators(const Call& call, const at::Tensor& gy,
                                                         const at::Tensor& x, const at::Tensor& w,
                                                         Wanted wanted) {
  const py::gil_scoped_acquire gil;
  std::pair<at::Tensor, at::Tensor> result;
  if (wanted.input)
    result.first = python().dgrad(gy, w, call.input_size, *call.dgrad_static).cast<at::Tensor>();
  if (wanted.weight)
    result.second = python().wgrad(gy, x, call.weight_size, *call.wgrad_static).cast<at::Tensor>();
  return result;
}

struct Tied : torch::autograd::Function<Tied> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& w,
                            const std::optional<at::Tensor>& b, const CallPtr& call) {
    ctx->save_for_backward({w.requires_grad() ? x : at::Tensor(), x.requires_grad() ? w : at::Tensor()});
    ctx->saved_data["call"] = c10::IValue::make_capsule(call);
    ctx->set_materialize_grads(false);
    return run_forward(*call, x, w, b);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list result(4);  // input, weight, bias, call
    const at::Tensor& gy = grads[0];
    if (!gy.defined()) return result;
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[0], &w = saved[1];
    const auto call = c10::static_intrusive_pointer_cast<Call>(ctx->saved_data["call"].toCapsule());
    // What the running pass asks for: torch.autograd.grad may want less than was wanted when the graph was
    // built.
    const Wanted wanted{w.defined() && ctx->needs_input_grad(0), x.defined() && ctx->needs_input_grad(1)};
    const bool bias = call->has_bias && ctx->needs_input_grad(2);
    const auto seen = [](const at::Tensor& t) { return t.defined() && (!is_plain(t) || has_tangent(t)); };
    if (at::GradMode::is_enabled() || seen(gy) || seen(x) || seen(w) || !nothing_listens()) {
      std::tie(result[0], result[1]) = gradients_by_operators(*call, gy, x, w, wanted);
    } else if (wanted.input || wanted.weight) {
      const Gradients& found = find_gradients(*call, gy, x, w, wanted);
      if (wanted.input) result[0] = run_gradient(*found.dgrad, true, gy, w);
      if (wanted.weight && bias && found.wgrad->pass)
        std::tie(result[1], result[2]) = found.wgrad->pass->wgrad_and_bias(gy, x);
      else if (wanted.weight)
        result[1] = run_gradient(*found.wgrad, false, gy, x);
    }
    if (bias && !result[2].defined()) {
      std::vector<int64_t> all_but_channels{0};
      for (int64_t d = 2; d < gy.dim(); ++d) all_but_channels.push_back(d);
      result[2] = gy.sum(all_but_channels);
    }
    return result;
  }
};

// --- entry points ---

// The output, or null if this call was not seen before, or is not for here.
at::Tensor recall_call(const py::handle& input, const py::handle& weight, const py::handle& bias,
                       PyObject* const* spec, size_t parts) {
  const auto a = unpack(input, weight, bias);
  if (!a) return {};
  const py::object pin = current_pin();
  const auto found = calls().find(make_key(*a, spec, parts, pin));
  if (found == calls().end()) return {};
  const CallPtr call = found->second;
  const auto differentiable = [](const at::Tensor& t) { return t.requires_grad(); };
  const bool record = at::GradMode::is_enabled() && (differentiable(a->input) || differentiable(a->weight) ||
                                                     (a->bias && differentiable(*a->bias)));
  return record ? Tied::apply(a->input, a->weight, a->bias, call)
                : run_forward(*call, a->input, a->weight, a->bias);
}

PyObject* wrapped(const at::Tensor& output) {
  if (!output.defined()) Py_RETURN_NONE;
  return THPVariable_Wrap(output);
}

// recall(input, weight, bias, *spec)
PyObject* recall(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count > 3, "recall(input, weight, bias, *spec) got ", count, " arguments");
  return wrapped(recall_call(args[0], args[1], args[2], args + 3, count - 3));
  END_HANDLE_TH_ERRORS
}

// An entry of a dict, borrowed, or null.
PyObject* entry(PyObject* dict, PyObject* name) {
  PyObject* found = dict ? PyDict_GetItemWithError(dict, name) : nullptr;
  if (!found && PyErr_Occurred()) throw py::error_already_set();
  return found;
}

// recall_layer(layer, input): what the layer's `forward` would call `recall` with. Python's own way there
// takes 8 us where its code is in the caches, and 80 where a convolution has just displaced it.
PyObject* recall_layer(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 2, "recall_layer(layer, input) got ", count, " arguments");
  static PyObject* const parameters = PyUnicode_InternFromString("_parameters");
  static PyObject* const weight = PyUnicode_InternFromString("weight");
  static PyObject* const bias = PyUnicode_InternFromString("bias");
  static PyObject* const kernel_size = PyUnicode_InternFromString("kernel_size");
  static PyObject* const padding_mode = PyUnicode_InternFromString("padding_mode");
  static PyObject* const rest[] = {PyUnicode_InternFromString("stride"),
                                   PyUnicode_InternFromString("padding"),
                                   PyUnicode_InternFromString("dilation"),
                                   PyUnicode_InternFromString("groups"), PyUnicode_InternFromString("ties")};
  const auto dict = py::reinterpret_steal<py::object>(PyObject_GenericGetDict(args[0], nullptr));
  if (!dict) throw py::error_already_set();
  PyObject* own = entry(dict.ptr(), parameters);
  PyObject *w = entry(own, weight), *b = entry(own, bias);
  PyObject *kernel = entry(dict.ptr(), kernel_size), *mode = entry(dict.ptr(), padding_mode);
  // Padding of another kind is Python's, and so are parametrisations.
  if (!w || !b || !kernel || !PyTuple_Check(kernel) || !mode || !PyUnicode_Check(mode)) Py_RETURN_NONE;
  if (PyUnicode_CompareWithASCIIString(mode, "zeros")) Py_RETURN_NONE;
  const py::int_ dims(PyTuple_GET_SIZE(kernel));
  PyObject* spec[] = {dims.ptr(), Py_False, nullptr, nullptr, nullptr, nullptr, nullptr};
  for (size_t i = 0; i < std::size(rest); ++i)
    if (!(spec[i + 2] = entry(dict.ptr(), rest[i]))) Py_RETURN_NONE;
  return wrapped(recall_call(args[1], w, b, spec, std::size(spec)));
  END_HANDLE_TH_ERRORS
}

// Freed when the table is whole again: what is freed may run Python.
void drop_calls() {
  std::unordered_map<Key, CallPtr, Hash> old;
  old.swap(calls());
}

void remember(const py::object& input, const py::object& weight, const py::object& bias,
              const py::tuple& spec, const py::tuple& dgrad_static, const py::tuple& wgrad_static,
              const py::object& function) {
  const auto a = unpack(input, weight, bias);
  TORCH_CHECK(a, "only plain CPU tensors can be remembered");
  if (calls().size() >= kMaxCalls) drop_calls();
  const py::object pin = current_pin();
  std::vector<PyObject*> parts;
  for (const py::handle part : spec) parts.push_back(part.ptr());
  // Not an assignment: what it would free may run Python.
  calls().emplace(
      make_key(*a, parts.data(), parts.size(), pin),
      c10::make_intrusive<Call>(spec, pin, dgrad_static, wgrad_static, function, a->input.sizes().vec(),
                                a->weight.sizes().vec(), a->bias.has_value()));
}

bool recallable(const py::object& input, const py::object& weight, const py::object& bias) {
  return unpack(input, weight, bias).has_value();
}

void forget() {
  ++epoch;
  drop_calls();
}

}  // namespace

void bind_eager(py::module_& m) {
  const auto fast = [](PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)) {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
  };
  static PyMethodDef methods[] = {
      {"recall", fast(recall), METH_FASTCALL, "Output of a call like one that was remembered, else None."},
      {"recall_layer", fast(recall_layer), METH_FASTCALL, "`recall` with the arguments of a layer."}};
  for (PyMethodDef& method : methods)
    m.attr(method.ml_name) = py::reinterpret_steal<py::object>(PyCFunction_New(&method, nullptr));
  m.def("recallable", &recallable, "Are these tensors, here and now, for `recall`?");
  m.def("remember", &remember, "Have calls with these objects and tensors like these run natively.");
  m.def("forget", &forget, "Forget all calls, and what was chosen for their gradients.");
  m.def("remembered", [] { return calls().size(); }, "How many calls are remembered.");
  m.def("connect", [](py::object parameter, py::object pin, py::object plan, py::object dgrad,
                      py::object wgrad) {
    python() = {std::move(parameter), std::move(pin), std::move(plan), std::move(dgrad), std::move(wgrad)};
  });
  m.def("suggests_channels_last", &suggests_channels_last);
}

}  // namespace symconv
