// Checks a call of the gradient of the input on Hopper and gives it to the kernel that it names.
#include "hopperdgrad/roles.h"
#include "hopperdgrad/tiles.h"
#include "launch.h"
#include "patch/kernel.h"

namespace symconv {

// Of an instantiation, each compiled by itself.
template <class T, class E>
std::string hopperdgrad_run(const HopperdgradParams& p, const Pointers& pointers, const Queue& queue);

namespace {

using Run = std::string (*)(const HopperdgradParams&, const Pointers&, const Queue&);

// A tile's numbers, whose members are those of the tie.
template <class T>
constexpr Numbers tie_numbers() {
  Numbers numbers = numbers_of<T>();
  numbers.members = T::kSlices;
  return numbers;
}

const Kernel<Run> kKernels[] = {
#define SYMCONV_TILE(name) \
  {#name, tie_numbers<name>(), {&hopperdgrad_run<name, Bfloat16>, &hopperdgrad_run<name, Float16>}},
    HOPPERDGRAD_TILES(SYMCONV_TILE)
#undef SYMCONV_TILE
};

}  // namespace

std::string hopperdgrad_check(const HopperdgradParams& p) {
  const PatchParams q = as_patch(p);
  const std::string wrong = check_tiles(q, kKernels);
  if (!wrong.empty())
    return "as a convolution that reads y as x, sums rows and has channels as orbits: " + wrong;
  if (p.rows % kKernels[p.tile].numbers.channels) return "the rows of a group fill no whole stages";
  for (const int64_t stride : {p.y_n, p.y_y, p.y_x})
    if (stride > int64_t{1} << 38) return "strides of y are too large for a map of the copy engine";
  return "";
}

int64_t hopperdgrad_workspace(const HopperdgradParams& p) {
  return hopperdgrad_check(p).empty() ? weight_bytes(as_patch(p), kKernels[p.tile].numbers) : 0;
}

std::string hopperdgrad_launch(const HopperdgradParams& p, const Pointers& pointers, const Queue& queue) {
  const std::string wrong = hopperdgrad_check(p);
  return wrong.empty() ? launch_on(p, pointers, queue, kKernels[p.tile].run[p.dtype]) : wrong;
}

std::vector<Variant> hopperdgrad_variants() { return variants_of("hopperdgrad", 90, kKernels); }

}  // namespace symconv
