// What compiled autograd asks of a node: its arguments, and a function of them that it can trace.
#include <torch/csrc/dynamo/compiled_autograd.h>

#include <vector>

#include "operator/node.h"

namespace symconv {
namespace {

using Packed = std::vector<c10::IValue>;

Packed pack(const Record& r, const at::Tensor& first, const at::Tensor& second, const Wanted& wanted,
            size_t count) {
  Packed args{first,
              second,
              static_cast<int64_t>(r.kind),
              c10::SymIntArrayRef(r.input_size),
              c10::SymIntArrayRef(r.weight_size),
              r.channels_last,
              r.second_last,
              wanted[0],
              wanted[1],
              wanted[2],
              static_cast<int64_t>(count)};
  args.insert(args.end(), r.fixed->values.begin(), r.fixed->values.end());
  return args;
}

variable_list apply_packed(const variable_list& grads, const Packed& args) {
  const Record record{static_cast<Kind>(args[2].toInt()),
                      size_of(args[3]),
                      size_of(args[4]),
                      args[5].toBool(),
                      args[6].toBool(),
                      make_static(&args[11])};
  return gradients(record, args[0].toTensor(), args[1].toTensor(), grads,
                   {args[7].toBool(), args[8].toBool(), args[9].toBool()},
                   static_cast<size_t>(args[10].toInt()));
}

}  // namespace

void Backward::compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const {
  TORCH_CHECK_NOT_IMPLEMENTED(!record.fixed->row.empty(),
                              "symconv_fast: compiled autograd needs strides that are numbers");
  args.collect(name());
  args.collect(first, false), args.collect(second, false);
  for (const Size* size : {&record.input_size, &record.weight_size})
    for (const c10::SymInt& n : *size) args.collect(n);
  for (const int64_t v : record.fixed->row) args.collect(v);
  args.collect(record.channels_last), args.collect(record.second_last);
}

variable_list Backward::apply_with_saved(const variable_list& grads,
                                         torch::dynamo::autograd::SwapSavedVariables& saved) {
  saved.before(first), saved.before(second);
  saved.before(record.input_size), saved.before(record.weight_size);
  const Packed args = pack(record, first.unpack(), second.unpack(), wanted(), num_outputs());
  std::vector<at::TypePtr> types;
  for (const c10::IValue& value : args)
    types.push_back(value.isTensor() ? at::TypePtr(at::TensorType::get()) : value.type());
  const auto& python = torch::dynamo::autograd::getPyCompilerInterface();
  const std::string function = python->bind_function(saved.get_py_compiler(), name(), apply_packed, types,
                                                     /*is_custom_function=*/true, /*is_traceable=*/true);
  using Metadata = std::vector<std::optional<torch::autograd::InputMetadata>>;
  const c10::IValue outputs = torch::dynamo::autograd::IValuePacker<Metadata>::pack(
      torch::dynamo::autograd::get_input_metadata(next_edges()));
  variable_list result =
      python->call_function(saved.get_py_compiler(), "apply_functional", function, grads, args, outputs);
  saved.after(first), saved.after(second);
  saved.after(record.input_size), saved.after(record.weight_size);
  return result;
}

}  // namespace symconv
