// Checks a call of the general matrix kernels, and gives it to the kernels for its type and ties.
#include <cstddef>

#include "conv/layout.h"
#include "conv/params.h"
#include "launch.h"
#include "types.h"

namespace symconv {

// Of an instantiation, each compiled by itself.
template <class T>
std::string conv_run_prepare(const ConvShape& s, const Pointers& pointers, const Queue& queue);
template <class T, bool kGradient>
std::string conv_run_multiply(const ConvShape& s, const Pointers& pointers, const Queue& queue);

namespace {

using Run = std::string (*)(const ConvShape&, const Pointers&, const Queue&);

struct Kernels {
  Run prepare, multiply[2];  // forward, gradient of the input
};

template <class T>
constexpr Kernels kernels_of() {
  return {&conv_run_prepare<T>, {&conv_run_multiply<T, false>, &conv_run_multiply<T, true>}};
}

const Kernels kKernels[] = {kernels_of<Bfloat16>(), kernels_of<Float16>(), kernels_of<Float32>()};

}  // namespace

std::string conv_check(const ConvParams& p) {
  ConvShape s;
  return conv_shape(p, s);
}

int64_t conv_workspace(const ConvParams& p) {
  ConvShape s;
  if (!conv_shape(p, s).empty()) return 0;
  int64_t pieces = s.head + s.entries;
  for (int i = 0; i < s.parts; ++i)
    pieces +=
        int64_t{s.groups} * s.part[i].blocks * s.part[i].chunks * s.part[i].products * s.part[i].columns * 4;
  return pieces * 16;
}

std::string conv_launch(const ConvParams& p, const Pointers& pointers, const Queue& queue) {
  ConvShape s;
  std::string wrong = conv_shape(p, s);
  if (!wrong.empty()) return wrong;
  if (!pointers.x || !pointers.w || !pointers.y || !pointers.workspace) return "a tensor is missing";
  for (const void* pointer :
       {pointers.x, static_cast<const void*>(pointers.y), static_cast<const void*>(pointers.workspace)})
    if (reinterpret_cast<uintptr_t>(pointer) % 16)
      return "16 does not divide the address of x, of y or of the workspace";
  const Kernels& kernels = kKernels[p.dtype];
  const DeviceGuard guard(queue.device);
  if (guard.error()) return error_text(guard.error());
  wrong = kernels.prepare(s, pointers, queue);
  if (!wrong.empty()) return wrong;
  return kernels.multiply[p.op](s, pointers, queue);
}

std::vector<Variant> conv_variants() {
  std::vector<Variant> all;
  for (const std::string dtype : {"bf16", "fp16", "tf32"}) {
    all.push_back({"conv", "prepare_" + dtype, 80, 256, 0, 4});
    for (const char* pass : {"forward_", "gradient_"})
      all.push_back({"conv", pass + dtype, 80, 256, 227 << 10, 1});
  }
  return all;
}

}  // namespace symconv
