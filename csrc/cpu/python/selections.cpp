// Python describes a problem by names, and gets plain numbers and strings.
#include "python/selections.h"

#include <ATen/ops/empty.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "microkernels/kernels.h"
#include "pass.h"
#include "selection/counters.h"
#include "selection/counting.h"
#include "selection/select.h"
#include "views.h"

namespace symconv {
namespace {

namespace py = pybind11;

std::shared_ptr<Description> describe(Ints ties, Ints stride, Ints padding, Ints dilation, bool transposed,
                                      int64_t groups, Ints input, Ints weight, Ints output,
                                      at::ScalarType type, bool source_last, bool result_last) {
  Description d{std::move(ties), std::move(stride), std::move(padding), std::move(dilation), transposed,
                groups,          std::move(input),  std::move(weight),  std::move(output),   type,
                source_last,     result_last};
  make_problem(d);  // says what does not fit
  return std::make_shared<Description>(std::move(d));
}

constexpr std::pair<const char*, double Work::*> kUnits[] = {
    {"pass", &Work::passes},       {"multiply_adds", &Work::multiply_adds},
    {"products", &Work::products}, {"results", &Work::results},
    {"panel", &Work::panel},       {"runs", &Work::runs},
    {"weights", &Work::weights}};

std::string unit_name(Arrangement kind, const char* unit) { return std::string(name(kind)) + "/" + unit; }

// What work is counted in: units of the cost model.
py::list units() {
  py::list all;
  all.append("call"), all.append("activations");
  for (int i = 0; i < kKinds; ++i)
    for (const auto& [unit, value] : kUnits) all.append(unit_name(static_cast<Arrangement>(i), unit));
  all.append("depthwise/windows"), all.append("depthwise/lines"), all.append("depthwise/shared");
  return all;
}

// By unit, those that are not zero.
py::dict counts(const Selection& s) {
  py::dict found;
  const auto add = [&](const std::string& unit, double value) {
    if (value != 0) found[py::str(unit)] = value;
  };
  add("call", 1), add("activations", s.counts.activations);
  for (int i = 0; i < kKinds; ++i)
    for (const auto& [unit, value] : kUnits)
      if (s.counts.work[i].*value != 0)
        add(unit_name(static_cast<Arrangement>(i), unit), s.counts.work[i].*value);
  add("depthwise/windows", s.counts.windows), add("depthwise/lines", s.counts.lines);
  add("depthwise/shared", s.counts.shared);
  return found;
}

py::object axis_or_none(const Selection& s, int axis) {
  const int own = axis - (kAxes - s.dims());  // of the dimensions that the problem has
  return axis < 0 || own < 0 ? py::object(py::none()) : py::object(py::int_(own));
}

const char* name(Filtering filtering) {
  static constexpr const char* kNames[kFilterings] = {"", "f2", "f4", "f4 of both parities"};
  return kNames[filtering];
}

py::dict plan_of(const Selection& s, const Multiplication& m) {
  py::dict d;
  const bool scattered = m.scattered.has_value();
  const bool folds = s.op == Op::fprop || (s.op == Op::dgrad && s.problem.folds_gradients());
  d["how"] = scattered ? "scatter" : folds ? "fold" : "sum";
  const bool one = s.op == Op::fprop || s.problem.folds_gradients();
  d["segment"] = one ? py::object(py::int_(m.segment)) : py::object(py::none());
  d["part"] = m.part;
  d["filtering"] = name(m.filtering);
  if (scattered) {
    const Scattered& how = *m.scattered;
    d["lanes"] = how.planes ? "positions" : "orbits";
    d["inner"] = axis_or_none(s, how.plan.inner), d["outer"] = axis_or_none(s, how.plan.outer);
    d["summed"] = how.plan.summed, d["ring"] = how.plan.ring, d["folded"] = how.plan.folded;
    d["turned"] = how.turned, d["relaid"] = how.relaid, d["in_place"] = how.in_place;
  } else {
    d["lanes"] = m.layout.pixel_lanes ? "positions" : "columns";
    d["planes"] = m.layout.planes, d["staged"] = m.layout.staged;
    d["sums_depth"] = m.layout.sums_depth, d["of_input"] = m.of_input;
    d["axis"] = axis_or_none(s, m.axis);
  }
  return d;
}

py::list plan(const Selection& s) {
  py::list all;
  for (const Multiplication& m : s.multiplications) all.append(plan_of(s, m));
  return all;
}

py::object reason(const Selection& s) {
  return s.reason.empty() ? py::object(py::none()) : py::object(py::str(s.reason));
}

py::tuple parts(const Selection& s) { return py::make_tuple(s.parts.images, s.parts.lines); }

std::shared_ptr<Selection> select_for(const Description& d, Op op, Algorithm algorithm, bool relayout,
                                      std::optional<Isa> isa) {
  return std::make_shared<Selection>(select({d, op, algorithm, relayout, isa.value_or(running_isa())}));
}

std::unique_ptr<Pass> make_pass(std::shared_ptr<Selection> selection, Ints dilation, Ints output_padding,
                                Ints filters, Ints strides, at::ScalarType asked) {
  return std::make_unique<Pass>(std::move(selection), Torch{std::move(dilation), std::move(output_padding),
                                                            std::move(filters), std::move(strides), asked});
}

py::dict as_dict(const Done& done) {
  py::dict d;
  d["products"] = done.products, d["panel_bytes"] = done.panel_bytes, d["workspace"] = done.workspace;
  return d;
}

// A pass by kernels that count and do nothing else.
py::object exact(const std::shared_ptr<Selection>& s) {
  if (s->algorithm == Algorithm::expand) return py::none();
  struct Dry {
    Counting before = counting();
    Dry() { counting() = Counting::dry, take_done(); }
    ~Dry() { counting() = before; }
  };
  const Description& d = s->description;
  const auto tensor = [&](const Ints& sizes, bool last) {
    return at::empty(sizes, at::TensorOptions(d.type), memory_format(sizes.size(), last));
  };
  const Dry dry;
  const Pass pass(s, {});
  const bool forward = s->op == Op::fprop;
  const at::Tensor source = tensor(forward ? d.input : d.output, d.source_last);
  if (forward)
    pass.fprop(source, tensor(d.weight, false), std::nullopt);
  else if (s->op == Op::dgrad)
    pass.dgrad(source, tensor(d.weight, false));
  else
    pass.wgrad(source, tensor(d.input, d.source_last));
  return as_dict(take_done());
}

py::dict counted() {
  py::dict d;
  for (size_t i = 0; i < counters().size(); ++i) d[name(static_cast<Ran>(i))] = counters()[i];
  return d;
}

void bind_enums(py::module_& m) {
  py::enum_<Op>(m, "Op").value("fprop", Op::fprop).value("dgrad", Op::dgrad).value("wgrad", Op::wgrad);
  py::enum_<Algorithm> algorithms(m, "Algorithm");
  for (int i = 0; i <= static_cast<int>(Algorithm::expand); ++i)
    algorithms.value(name(static_cast<Algorithm>(i)), static_cast<Algorithm>(i));
  py::enum_<Isa>(m, "Isa")
      .value("baseline", Isa::baseline)
      .value("avx2", Isa::avx2)
      .value("avx512", Isa::avx512)
      .value("avx512_bf16", Isa::avx512_bf16)
      .value("amx_bf16", Isa::amx_bf16);
}

}  // namespace

void bind_selections(py::module_& m) {
  using py::arg;
  using NoGil = py::call_guard<py::gil_scoped_release>;
  bind_enums(m);
  py::class_<Description, std::shared_ptr<Description>>(m, "Problem", "One convolution with tied filters.")
      .def(py::init(&describe), py::kw_only(), arg("ties"), arg("stride"), arg("padding"), arg("dilation"),
           arg("transposed"), arg("groups"), arg("input"), arg("weight"), arg("output"), arg("type"),
           arg("source_last"), arg("result_last"));
  py::class_<Selection, std::shared_ptr<Selection>>(m, "Selection", "What a pass does, or why it cannot.")
      .def_property_readonly("reason", &reason, "Why not, as a clause, or None: then the rest holds.")
      .def_property_readonly("counts", &counts, "Work, by the units of the cost model that are not 0.")
      .def_property_readonly("plan", &plan, "Each multiplication, in plain numbers and strings.")
      .def_property_readonly("parts", &parts,
                             "Images and lines that are copied together: see selection/parts.h.")
      .def_property_readonly(
          "number", [](const Selection& s) { return s.parts.number; }, "Of such parts.")
      .def_readonly("copied", &Selection::copied, "Elements that are copied to channels_last or back.")
      .def_property_readonly(
          "lanes", [](const Selection& s) { return s.vectors.lanes; }, "Sums in a vector.")
      .def_property_readonly(
          "sorted", [](const Selection& s) { return s.counts.sorted; },
          "Results of one channel, some positions together, that are stored by themselves.")
      .def_readonly("depthwise", &Selection::depthwise, "Does the layer have kernels of its own?")
      .def_property_readonly(
          "exact", [](std::shared_ptr<Selection> s) { return exact(s); },
          "Multiply-adds of the matrix kernels, padding included, bytes of panels and of "
          "working memory with the threads of now, found by a run that counts and does "
          "nothing else; None for torch's convolution.")
      .def_readonly("run", &Selection::run, "Fewest channels that lie together in a panel.")
      .def_readonly("columns", &Selection::columns, "Fewest columns of a multiplication.");
  m.def("select", &select_for, arg("problem"), arg("op"), arg("algorithm"), py::kw_only(),
        arg("relayout") = false, arg("isa") = py::none(),
        "What a pass does; with `relayout` between copies to channels_last.");
  py::class_<Pass>(m, "Pass", "One pass as it was selected.")
      .def(py::init(&make_pass), arg("selection"), py::kw_only(), arg("dilation"), arg("output_padding"),
           arg("filters"), arg("strides"), arg("asked"))
      .def("fprop", &Pass::fprop, NoGil())
      .def("dgrad", &Pass::dgrad, NoGil())
      .def("wgrad", py::overload_cast<const at::Tensor&, const at::Tensor&>(&Pass::wgrad, py::const_),
           NoGil());
  m.attr("UNITS") = units();
  m.def("isa", &instruction_set, "Instruction set in use: amx_bf16, avx512_bf16, avx512, avx2 or baseline.");
  m.def("cpu_maker", &cpu_maker, "Intel or AMD; empty for other makers of CPUs.");
  m.def("counters", &counted, "What this thread has run, by kind.");
  m.def("reset_counters", [] { counters().fill(0); }, "Count from 0 again.");
  m.def(
      "count_kernels", [](bool on) { counting() = on ? Counting::on : Counting::off; }, arg("on"),
      "Have the kernels of passes that this thread runs for the first time count what they do.");
  m.def(
      "take_done", [] { return as_dict(take_done()); },
      "What such kernels have done since this was last called, as `Selection.exact` counts it.");
}

}  // namespace symconv
