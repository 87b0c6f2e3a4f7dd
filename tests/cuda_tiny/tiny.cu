// The launcher of the smallest family.
#include "tiny/kernels.cuh"
#include "tiny/params.h"

#include "tiny/instances.h"

namespace symconv {

std::string tiny_check(const TinyParams& params) {
  if (params.dtype < 0 || params.dtype > 2) return "dtype must be 0, 1 or 2";
  return params.count >= 0 && params.count < 1 << 20 ? "" : "count is out of range";
}

int64_t tiny_workspace(const TinyParams& params) { return 4 * params.count; }

std::string tiny_launch(const TinyParams& params, const Pointers& pointers, const Queue& queue) {
  std::string wrong = tiny_check(params);
  if (!wrong.empty() || params.count == 0) return wrong;
  const TinyDevice device{pointers.x, pointers.y, static_cast<int>(params.count),
                          static_cast<int>(params.scale)};
  const int grid = static_cast<int>((params.count + 63) / 64);
  void (*const kernels[])(TinyDevice) = {tiny_kernel<Bfloat16>, tiny_kernel<Float16>, tiny_kernel<Float32>};
  return launch(kernels[params.dtype], grid, 64, 0, queue, device);
}

std::vector<Variant> tiny_variants() { return {{"tiny", "copy", 80, 64, 0, 1}}; }

}  // namespace symconv
