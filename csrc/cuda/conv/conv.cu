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
template <class T, int kOrder>
std::string conv_run_forward(const ConvShape& s, const Pointers& pointers, const Queue& queue);
template <class T, int kFragments, int kBlocks>
std::string conv_run_gradient(const ConvShape& s, const Pointers& pointers, const Queue& queue);

namespace {

using Run = std::string (*)(const ConvShape&, const Pointers&, const Queue&);

struct Kernels {
  Run prepare, forward[5],
      gradient[2];  // forward: by the number of tied axes, then any; gradient: 128, 64 columns
};

template <class T>
constexpr Kernels kernels_of() {
  return {&conv_run_prepare<T>,
          {&conv_run_forward<T, 0>, &conv_run_forward<T, 1>, &conv_run_forward<T, 2>, &conv_run_forward<T, 3>,
           &conv_run_forward<T, -1>},
          {&conv_run_gradient<T, 2, 16>, &conv_run_gradient<T, 4, 8>}};
}

const Kernels kKernels[] = {kernels_of<Bfloat16>(), kernels_of<Float16>(), kernels_of<Float32>()};

// The order of all parts, or 4 if they differ.
int order_of(const ConvShape& s) {
  for (int i = 1; i < s.parts; ++i)
    if (s.part[i].order != s.part[0].order) return 4;
  return s.part[0].order;
}

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
  for (const void* pointer :
       {pointers.x, static_cast<const void*>(pointers.y), static_cast<const void*>(pointers.workspace)})
    if (!pointer || reinterpret_cast<uintptr_t>(pointer) % 16)
      return "16 does not divide the address of x, of y or of the workspace";
  const Kernels& kernels = kKernels[p.dtype];
  const DeviceGuard guard(queue.device);
  if (guard.error()) return error_text(guard.error());
  wrong = kernels.prepare(s, pointers, queue);
  if (!wrong.empty()) return wrong;
  return (p.op ? kernels.gradient[p.columns == 64] : kernels.forward[order_of(s)])(s, pointers, queue);
}

std::vector<Variant> conv_variants() {
  static const char* const forward[] = {"free", "pair", "quadruple", "octuple", "mixed"};
  std::vector<Variant> all;
  for (const char* dtype : {"bf16", "fp16", "tf32"}) {
    for (const char* name : forward)
      all.push_back({"conv", std::string("forward_") + name + "_" + dtype, 80, 256, 227 << 10, 1});
    for (const char* columns : {"128", "64"})
      all.push_back({"conv", std::string("gradient_") + columns + "_" + dtype, 80, 256, 227 << 10, 1});
  }
  return all;
}

}  // namespace symconv
