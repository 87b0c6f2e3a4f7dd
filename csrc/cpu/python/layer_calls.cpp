// A call of a layer is looked up by the identity of what cannot change and by the shapes of its tensors. That
// spares Python's checks, whose outcome, the arguments of the operator, is all that is remembered.
#include "python/layer_calls.h"

#include <torch/csrc/Exceptions.h>

#include <iterator>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "operator/operator.h"

namespace symconv {
namespace {

namespace py = pybind11;

constexpr size_t kMaxCalls = 8192;

// --- what Python gives once ---

// Never freed: the interpreter is gone when statics are destroyed.
struct Python {
  py::object tensor, parameter;  // the classes torch.Tensor and torch.nn.Parameter
  py::object pin;                // ContextVar: what the user pinned, or None
  py::object plan;  // (op, first, second, bias or size, static) -> the function that runs such calls
};
Python& python() {
  static auto* const held = new Python;
  return *held;
}

int64_t identity(const py::handle& object) { return reinterpret_cast<int64_t>(object.ptr()); }

py::object current_pin() {
  PyObject* value = nullptr;
  if (PyContextVar_Get(python().pin.ptr(), nullptr, &value) < 0) throw py::error_already_set();
  return value ? py::reinterpret_steal<py::object>(value) : py::none();
}

// --- the chooser ---

py::tuple to_tuple(at::IntArrayRef values) { return py::tuple(py::cast(values.vec())); }

py::tuple static_tuple(const Layer& l, bool channels_last) {
  return py::make_tuple(to_tuple(l.ties), to_tuple(l.stride), to_tuple(l.padding), to_tuple(l.dilation),
                        to_tuple(l.output_padding), l.transposed, l.groups, channels_last);
}

// What a runner holds of Python's. The last one who does may be any thread.
struct Held {
  py::object function, pin;
  Held(py::object function, py::object pin) : function(std::move(function)), pin(std::move(pin)) {}
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;
  ~Held() {
    const py::gil_scoped_acquire gil;
    function = py::object(), pin = py::object();
  }
};

// A method of a native pass is called without Python.
Runner make_runner(py::object function, Op op) {
  auto held = std::make_shared<const Held>(std::move(function), current_pin());
  const py::object owner = py::getattr(held->function, "__self__", py::none());
  if (py::isinstance<Pass>(owner))
    return {std::shared_ptr<const Pass>(held, owner.cast<const Pass*>()), nullptr};
  return {nullptr, [held, op](const at::Tensor& first, const at::Tensor& second,
                              const std::optional<at::Tensor>& bias) {
            const py::gil_scoped_acquire gil;
            const py::object result =
                op == Op::fprop ? held->function(first, second, bias) : held->function(first, second);
            return result.cast<at::Tensor>();
          }};
}

struct PythonChooser : Chooser {
  Runner choose(const Call& call) const override {
    const py::gil_scoped_acquire gil;
    const py::object third = call.op == Op::fprop ? py::cast(call.bias) : py::object(to_tuple(call.size));
    return make_runner(python().plan(name(call.op), call.first, call.second, third,
                                     static_tuple(unflatten(call.layer), call.channels_last)),
                       call.op);
  }
  at::Tensor run_activated(const Call& call, const std::string& activation) const override {
    const py::gil_scoped_acquire gil;
    const py::object function =
        python().plan(name(call.op), call.first, call.second, py::cast(call.bias),
                      static_tuple(unflatten(call.layer), call.channels_last), activation);
    return function(call.first, call.second, call.bias).cast<at::Tensor>();
  }
  int64_t pin() const override {
    const py::gil_scoped_acquire gil;
    return identity(current_pin());
  }
};

// --- calls of layers ---

struct Tensors {
  at::Tensor input, weight;
  std::optional<at::Tensor> bias;
};

// Subclasses may want to see the operator.
bool is_tensor(const py::handle& object) {
  const auto* type = reinterpret_cast<PyObject*>(Py_TYPE(object.ptr()));
  return type == python().tensor.ptr() || type == python().parameter.ptr();
}

// The tensors, if the dispatcher would do nothing with them but call kernels.
std::optional<Tensors> unpack(const py::handle& input, const py::handle& weight, const py::handle& bias) {
  if (!is_tensor(input) || !is_tensor(weight) || !(bias.is_none() || is_tensor(bias))) return std::nullopt;
  Tensors t{input.cast<at::Tensor>(), weight.cast<at::Tensor>(), std::nullopt};
  if (!bias.is_none()) t.bias = bias.cast<at::Tensor>();
  if (!is_plain(t.input) || !is_plain(t.weight) || (t.bias && !is_plain(*t.bias)) || !nothing_listens())
    return std::nullopt;
  return t;
}

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

// `spec` are objects that cannot change; they are told apart by identity, and whoever keeps the key keeps
// them.
Key make_key(const Tensors& t, PyObject* const* spec, size_t parts) {
  Key key;
  key.reserve(32);
  for (size_t i = 0; i < parts; ++i) key.push_back(identity(spec[i]));
  add(key, t.input), add(key, t.weight);
  if (t.bias) add(key, *t.bias);
  return key;
}

// What Python's checks made of a call.
struct Checked {
  py::tuple spec;
  StaticPtr fixed;
  bool channels_last;
};

// Guarded by the GIL. Never freed, as `Python`.
std::unordered_map<Key, Checked, Hash>& checked() {
  static auto* const held = new std::unordered_map<Key, Checked, Hash>;
  return *held;
}

// The output, or null if this call was not seen before, or is not for here.
at::Tensor recall_call(const py::handle& input, const py::handle& weight, const py::handle& bias,
                       PyObject* const* spec, size_t parts) {
  auto t = unpack(input, weight, bias);
  if (!t) return {};
  const auto found = checked().find(make_key(*t, spec, parts));
  if (found == checked().end()) return {};
  // Copies: the chooser may let other threads in, and they may forget.
  const StaticPtr fixed = found->second.fixed;
  const bool last = found->second.channels_last;
  if (const auto type = autocast_type()) {
    t->input = autocast_to(t->input, *type), t->weight = autocast_to(t->weight, *type);
    if (t->bias) t->bias = autocast_to(*t->bias, *type);
  }
  const auto runner =
      find_runner({Op::fprop, t->input, t->weight, t->bias, at::IntArrayRef(), fixed->row, last});
  const py::gil_scoped_release release;
  return fprop(t->input, t->weight, t->bias, fixed, last, *runner);
}

PyObject* wrapped(const at::Tensor& output) {
  if (!output.defined()) Py_RETURN_NONE;
  return py::cast(output).release().ptr();
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
void forget() {
  forget_runners();
  std::unordered_map<Key, Checked, Hash> old;
  old.swap(checked());
}

Layer layer_of(const py::tuple& fixed) {
  return {fixed[0].cast<Ints>(), fixed[1].cast<Ints>(), fixed[2].cast<Ints>(),   fixed[3].cast<Ints>(),
          fixed[4].cast<Ints>(), fixed[5].cast<bool>(), fixed[6].cast<int64_t>()};
}

// Nothing where the tensors are not for `recall`.
void remember(const py::object& input, const py::object& weight, const py::object& bias,
              const py::tuple& spec, const py::tuple& fixed) {
  const auto t = unpack(input, weight, bias);
  if (!t) return;
  std::unordered_map<Key, Checked, Hash> full;
  if (checked().size() >= kMaxCalls) full.swap(checked());
  std::vector<PyObject*> parts;
  for (const py::handle part : spec) parts.push_back(part.ptr());
  // Not an assignment: what it would free may run Python.
  checked().emplace(make_key(*t, parts.data(), parts.size()),
                    Checked{spec, make_static(layer_of(fixed)), fixed[7].cast<bool>()});
}

}  // namespace

void bind_layer_calls(py::module_& m) {
  const auto fast = [](PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)) {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
  };
  static PyMethodDef methods[] = {
      {"recall", fast(recall), METH_FASTCALL, "Output of a call like one that was remembered, else None."},
      {"recall_layer", fast(recall_layer), METH_FASTCALL, "`recall` with the arguments of a layer."}};
  for (PyMethodDef& method : methods)
    m.attr(method.ml_name) = py::reinterpret_steal<py::object>(PyCFunction_New(&method, nullptr));
  m.def("remember", &remember, "Have calls with these objects and tensors like these run natively.");
  m.def("forget", &forget, "Forget all calls, and what was chosen for them.");
  m.def(
      "remembered", [] { return static_cast<int64_t>(checked().size()) + remembered_runners(); },
      "How many calls and choices are remembered.");
  m.def("connect", [](py::object tensor, py::object parameter, py::object pin, py::object plan) {
    static const auto* const chooser = new PythonChooser;
    python() = {std::move(tensor), std::move(parameter), std::move(pin), std::move(plan)};
    set_chooser(chooser);
  });
  m.def("suggests_channels_last", &suggests_channels_last);
  m.def("autocast_to", &autocast_to);
}

}  // namespace symconv
