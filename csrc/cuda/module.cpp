// The Python module `_cuda`: parameters by keyword, launches on plain addresses. It knows nothing of torch,
// and is compiled by the host's compiler alone, also where kernels are nvcc's.
//
// The build writes families.h: the parameters of every family, SYMCONV_FAMILIES(F) with a line F(conv,
// ConvParams, CONV_FIELDS) each, and texts about the build.
#include "families.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "launch.h"

namespace py = pybind11;

namespace symconv {
namespace {

template <class Params>
struct Field {
  const char* name;
  int64_t Params::* member;
};

// What a family offers, as pointers to its functions.
template <class Params>
struct Family {
  const char* type;
  std::vector<Field<Params>> fields;
  std::string (*check)(const Params&);
  int64_t (*workspace)(const Params&);
  std::string (*launch)(const Params&, const Pointers&, const Queue&);
};

std::string& list(std::string& names, const std::string& name) {
  return names += (names.empty() ? "" : ", ") + name;
}

// All of a family's fields, no other, each an integer: what is missing or unknown is named.
template <class Params>
Params from_keywords(const Family<Params>& family, const py::kwargs& given) {
  Params params;
  std::string missing, unknown;
  size_t found = 0;
  for (const auto& field : family.fields) {
    PyObject* value = PyDict_GetItemString(given.ptr(), field.name);
    if (!value) {
      list(missing, field.name);
      continue;
    }
    ++found;
    const auto number = py::reinterpret_steal<py::object>(PyNumber_Index(value));
    const int64_t integer = number ? PyLong_AsLongLong(number.ptr()) : -1;
    if (PyErr_Occurred()) {
      PyErr_Clear();
      throw py::type_error(std::string(family.type) + ": " + field.name +
                           " must be an integer of 64 bits, not " + std::string(py::repr(value)));
    }
    params.*field.member = integer;
  }
  if (found < given.size())
    for (const auto& [key, value] : given) {
      bool known = false;
      for (const auto& field : family.fields) known |= std::string(py::str(key)) == field.name;
      if (!known) list(unknown, py::str(key));
    }
  if (missing.empty() && unknown.empty()) return params;
  std::string text = std::string(family.type) + ":";
  if (!missing.empty()) text += " missing " + missing;
  if (!unknown.empty()) text += std::string(missing.empty() ? "" : ";") + " unknown " + unknown;
  throw py::type_error(text);
}

// The driver may wait, for room in a stream's queue or while it loads a kernel; other threads then go on.
// That costs 50 ns a launch. The stand-in is never used by two threads at a time.
#ifdef SYMCONV_STAND_IN
using Guard = py::call_guard<>;
#else
using Guard = py::call_guard<py::gil_scoped_release>;
#endif

// Addresses and the stream are integers, 0 where there is none. Text of an error, or nothing.
template <class Params>
std::string launch_on(const Family<Params>& family, const Params& params, uintptr_t x, uintptr_t w,
                      uintptr_t bias, uintptr_t y, uintptr_t workspace, uintptr_t stream, int device) {
  const Pointers pointers{reinterpret_cast<const void*>(x), reinterpret_cast<const void*>(w),
                          reinterpret_cast<const void*>(bias), reinterpret_cast<void*>(y),
                          reinterpret_cast<void*>(workspace)};
  return family.launch(params, pointers, Queue{device, reinterpret_cast<void*>(stream)});
}

// Families are module_local: the module for a GPU and its stand-in may be loaded side by side.
template <class Params>
void bind(py::module_& module, const Family<Params>& family) {
  py::class_<Params> type(module, family.type, py::module_local());
  py::tuple names(family.fields.size());
  for (size_t i = 0; i < family.fields.size(); ++i) {
    names[i] = py::str(family.fields[i].name);
    type.def_readonly(family.fields[i].name, family.fields[i].member);
  }
  type.attr("FIELDS") = names;
  type.def(py::init([family](const py::kwargs& given) { return from_keywords(family, given); }));
  type.def("check", [family](const Params& params) { return family.check(params); });
  type.def("workspace", [family](const Params& params) { return family.workspace(params); });
  type.def("plan", [](const Params& params) {
    const PlanFacts facts = plan_facts(params);
    return std::make_pair(facts.clocks, facts.kernels);
  });
  type.def(
      "launch",
      [family](const Params& params, uintptr_t x, uintptr_t w, uintptr_t bias, uintptr_t y,
               uintptr_t workspace, uintptr_t stream,
               int device) { return launch_on(family, params, x, w, bias, y, workspace, stream, device); },
      py::arg("x"), py::arg("w"), py::arg("bias"), py::arg("y"), py::arg("workspace"), py::arg("stream"),
      py::arg("device"), Guard());
}

py::list variants() {
  py::list all;
  const auto add = [&all](const std::vector<Variant>& some) {
    for (const Variant& variant : some) {
      py::dict row;
      row["family"] = variant.family;
      row["name"] = variant.name;
      row["arch"] = variant.arch;
      row["threads"] = variant.threads;
      row["shared_bytes"] = variant.shared_bytes;
      row["ctas"] = variant.ctas;
      all.append(row);
    }
  };
#define SYMCONV_ADD(family, Params, FIELDS) add(family##_variants());
  SYMCONV_FAMILIES(SYMCONV_ADD)
#undef SYMCONV_ADD
  return all;
}

py::dict info() {
  py::dict facts;
  py::list families;
#define SYMCONV_NAME(family, Params, FIELDS) families.append(#family);
  SYMCONV_FAMILIES(SYMCONV_NAME)
#undef SYMCONV_NAME
  facts["version"] = SYMCONV_VERSION;
  facts["cuda"] = SYMCONV_CUDA_VERSION;
  facts["architectures"] = SYMCONV_ARCHITECTURES;
  facts["families"] = families;
  facts["left_out"] = SYMCONV_LEFT_OUT;
#ifdef SYMCONV_STAND_IN
  facts["stand_in"] = true;
#else
  facts["stand_in"] = false;
#endif
  return facts;
}

#ifdef SYMCONV_STAND_IN
// What only the stand-in has: the memory that kernels may touch, its settings, and counts of what was done.
py::dict as_dict(const host::NamedCounts& counts) {
  py::dict all;
  for (const auto& [name, count] : counts) all[py::str(name)] = count;
  return all;
}
void bind_stand_in(py::module_& module) {
  module.def(
      "register_buffer",
      [](uintptr_t start, int64_t bytes, bool writable) {
        host::register_buffer(reinterpret_cast<const void*>(start), bytes, writable);
      },
      py::arg("start"), py::arg("bytes"), py::arg("writable"));
  module.def("clear_buffers", &host::forget_buffers);
  module.def("counts", [] { return as_dict(host::named_counts()); });
  module.def("launches", [] {
    py::list all;
    for (const host::Launched& launched : host::launches()) {
      py::dict row = as_dict(host::named(launched.counts));
      row["grid"] = launched.shape.grid, row["threads"] = launched.shape.threads;
      row["shared_bytes"] = launched.shape.shared_bytes;
      all.append(row);
    }
    return all;
  });
  module.def("reset_counts", &host::reset_counts);
  module.def("set_seed", &host::set_seed, py::arg("seed"));
  module.def("set_multiprocessors", &host::set_multiprocessors, py::arg("count"));
  module.def("set_conflicts_allowed", &host::set_conflicts_allowed, py::arg("allowed"));
  module.def("set_tracing", &host::set_tracing, py::arg("on"));
  module.def("set_sample", &host::set_sample, py::arg("ctas"));
}
#endif

}  // namespace
}  // namespace symconv

PYBIND11_MODULE(SYMCONV_MODULE, module) {
  using namespace symconv;
  module.doc() = "CUDA kernels of symconv_fast, called with plain addresses.";
  module.def("info", &info, "Version, architectures and families that were built, and what was left out.");
  module.def("variants", &variants, "What is known of every kernel before it runs.");
#define SYMCONV_FIELD(name) {#name, &P::name},
#define SYMCONV_BIND(family, Params, FIELDS)                                                          \
  {                                                                                                   \
    using P = Params;                                                                                 \
    bind<P>(module,                                                                                   \
            {#Params, {FIELDS(SYMCONV_FIELD)}, family##_check, family##_workspace, family##_launch}); \
  }
  SYMCONV_FAMILIES(SYMCONV_BIND)
#undef SYMCONV_BIND
#undef SYMCONV_FIELD
#ifdef SYMCONV_STAND_IN
  bind_stand_in(module);
#endif
}
