// The choice in a program without Python: it checks what Python would, and takes kernels that run every
// geometry.
#include <algorithm>
#include <bit>
#include <string>
#include <utility>

#include "operator/call_cache.h"
#include "selection/flat_ties.h"
#include "views.h"

namespace symconv {
namespace {

constexpr int64_t kFar = 1 << 14;  // beyond it, counting what lies between taps takes for ever

struct Sizes {
  Ints input, weight, output;
};

// By the mask of a tie, or the code of filters that are their own images.
int64_t orbit_size(int64_t code) {
  return code & Segment::kOwnImage ? 1 : int64_t{1} << std::popcount(static_cast<uint64_t>(code));
}

void check_layer(const Layer& l, size_t dims) {
  const auto check = [&](const char* name, const Ints& values, int64_t least) {
    const bool fits = values.size() == dims && std::all_of(values.begin(), values.end(), [&](int64_t v) {
                        return v >= least && v <= kFar;
                      });
    TORCH_CHECK_VALUE(fits, name, "=", at::IntArrayRef(values), " must be ", dims, " values from ", least,
                      " to ", kFar);
  };
  TORCH_CHECK_VALUE(dims >= 1 && dims <= 3, "weight must have 3, 4 or 5 dims, got ", dims + 2);
  check("stride", l.stride, 1), check("padding", l.padding, 0), check("dilation", l.dilation, 1);
  check("output_padding", l.output_padding, 0);
  TORCH_CHECK_VALUE(l.groups >= 1, "groups=", l.groups, " must be at least 1");
  const Head head = read_head(l.ties, l.groups);
  TORCH_CHECK_NOT_IMPLEMENTED(!head.reason, "no kernel runs this layer: ", head.reason,
                              "; export symconv_fast.to_torch(model), or the program after "
                              "run_decompositions(symconv_fast.export.DECOMPOSITIONS)");
  bool fits =
      l.ties.size() > head.length && (l.ties.size() - head.length) % 2 == 0 && head.letters >> dims == 0;
  for (size_t i = head.length; fits && i < l.ties.size(); i += 2)
    fits = l.ties[i] >= 0 && (l.ties[i] & 7) >> dims == 0 && l.ties[i] >> 4 >> dims == 0 &&
           l.ties[i + 1] >= 0 && l.ties[i + 1] % l.groups == 0;
  TORCH_CHECK_VALUE(fits, "ties ", at::IntArrayRef(l.ties), " do not fit ", dims,
                    " dims and groups=", l.groups);
}

// Of the layer's tensors, by those of the call.
Sizes check_sizes(const Call& call, const Layer& l) {
  const Ints first = call.first.sizes().vec(), second = call.second.sizes().vec(), size = call.size.vec();
  Sizes s;
  s.input = call.op == Op::fprop ? first : call.op == Op::dgrad ? size : second;
  s.weight = call.op == Op::wgrad ? size : second;
  const size_t dims = s.weight.size() - std::min<size_t>(2, s.weight.size());
  check_layer(l, dims);
  const Head head = read_head(l.ties, l.groups);
  const Ints kernel = head.kernel.empty() ? Ints(s.weight.begin() + 2, s.weight.end()) : head.kernel;
  TORCH_CHECK_VALUE(kernel.size() == dims, "ties are of ", kernel.size(), " dims, and weight of ", dims);
  int64_t rows = 0, filters = 0;
  for (size_t i = head.length; i < l.ties.size(); i += 2) {
    rows += l.ties[i + 1];
    filters += l.ties[i + 1] * orbit_size(l.ties[i]);
  }
  const int64_t own = l.transposed ? s.weight[1] * l.groups : s.weight[0];
  const int64_t kept = l.transposed ? s.weight[0] : s.weight[1] * l.groups;
  const int64_t channels = head.channels() ? head.channels() : kept;
  TORCH_CHECK_VALUE(own == rows, "symmetry needs ", rows, " rows of weight, got weight of shape ",
                    at::IntArrayRef(s.weight));
  TORCH_CHECK_VALUE(s.input.size() == dims + 2 && s.input[1] == channels, "expected input of ", dims + 2,
                    " dims with ", channels, " channels, got shape ", at::IntArrayRef(s.input));
  s.output = {s.input[0], filters};
  for (size_t i = 0; i < dims; ++i) {
    const int64_t n = s.input[i + 2], reach = l.dilation[i] * (kernel[i] - 1);
    s.output.push_back(l.transposed
                           ? (n - 1) * l.stride[i] - 2 * l.padding[i] + reach + l.output_padding[i] + 1
                           : (n + 2 * l.padding[i] - reach - 1) / l.stride[i] + 1);
    TORCH_CHECK_VALUE(
        kernel[i] >= 1 && n >= 1 && s.output.back() >= 1 && (l.transposed || n + 2 * l.padding[i] > reach),
        "input of shape ", at::IntArrayRef(s.input), " is too small for weight of shape ",
        at::IntArrayRef(s.weight));
    TORCH_CHECK_VALUE(l.output_padding[i] == 0 || l.output_padding[i] < std::max(l.stride[i], l.dilation[i]),
                      "output_padding=", at::IntArrayRef(l.output_padding),
                      " must be smaller than stride or dilation");
  }
  TORCH_CHECK_VALUE(call.op == Op::fprop || first == s.output, "expected grad_output of shape ",
                    at::IntArrayRef(s.output), ", got ", call.first.sizes());
  return s;
}

bool is_empty(const Sizes& s) {
  const auto empty = [](const Ints& size) { return std::find(size.begin(), size.end(), 0) != size.end(); };
  return empty(s.input) || empty(s.weight) || empty(s.output);
}

// Nothing to multiply: zeros, and the bias.
Runner fill(const Ints& size, bool last) {
  return {nullptr,
          [size, last](const at::Tensor& first, const at::Tensor&, const std::optional<at::Tensor>& bias) {
            at::Tensor result = first.new_empty(size).contiguous(memory_format(size.size(), last)).zero_();
            if (bias) {
              Ints along(size.size(), 1);
              along[1] = bias->size(0);
              result.add_(bias->view(along));
            }
            return result;
          }};
}

// What runs every geometry; forward, the scatter where it can.
std::shared_ptr<const Selection> selection(const Call& call, const Layer& l, const Sizes& s) {
  const bool last = suggests_channels_last(call.first);
  const Description d{l.ties,   l.stride,          l.padding, l.dilation, l.transposed,
                      l.groups, s.input,           s.weight,  s.output,   call.first.scalar_type(),
                      last,     call.channels_last};
  const auto by = [&](Algorithm algorithm) {
    return std::make_shared<const Selection>(select({d, call.op, algorithm, false, running_isa()}));
  };
  auto scatter = by(Algorithm::scatter);
  return scatter->reason.empty() ? scatter : by(Algorithm::fold);
}

}  // namespace

Runner choose_standalone(const Call& call) {
  const at::ScalarType type = call.first.scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf,
                   "dtype ", type,
                   " is not supported; supported dtypes: float16, bfloat16, float32, float64");
  const Layer l = unflatten(call.layer);
  const Sizes s = check_sizes(call, l);
  const Ints& result = call.op == Op::fprop ? s.output : call.op == Op::dgrad ? s.input : s.weight;
  if (is_empty(s)) return fill(result, call.channels_last);
  // What only torch's own convolution is asked by is not used by these algorithms.
  const Torch unused{l.dilation, l.output_padding, s.weight, {}, type};
  return {std::make_shared<Pass>(selection(call, l, s), unused), nullptr};
}

}  // namespace symconv
