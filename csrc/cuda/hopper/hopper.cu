// Checks a call of the Hopper kernels and gives it to the kernel that it names.
#include "hopper/params.h"
#include "hopper/tiles.h"
#include "launch.h"
#include "patch/kernel.h"

namespace symconv {

// Of an instantiation, each compiled by itself.
template <class T, class E>
std::string hopper_run(const HopperParams& p, const Pointers& pointers, const Queue& queue);

namespace {

using Run = std::string (*)(const HopperParams&, const Pointers&, const Queue&);

const Kernel<Run> kKernels[] = {
#define SYMCONV_TILE(name) \
  {#name, numbers_of<name>(), {&hopper_run<name, Bfloat16>, &hopper_run<name, Float16>}},
    HOPPER_TILES(SYMCONV_TILE)
#undef SYMCONV_TILE
};

}  // namespace

std::string hopper_check(const HopperParams& p) {
  const std::string wrong = check_tiles(p, kKernels);
  if (!wrong.empty()) return wrong;
  if (p.depth != 1) return "planes are not for the Hopper kernels";
  if (p.groups > 1 && p.channels % kKernels[p.tile].numbers.channels)
    return "the channels of a group fill no whole stages";
  for (const int64_t stride : {p.x_n, p.x_y, p.x_x})
    if (stride > int64_t{1} << 38) return "strides of x are too large for a map of the copy engine";
  return "";
}

int64_t hopper_workspace(const HopperParams& p) {
  return hopper_check(p).empty() ? weight_bytes(p, kKernels[p.tile].numbers) : 0;
}

std::string hopper_launch(const HopperParams& p, const Pointers& pointers, const Queue& queue) {
  const std::string wrong = hopper_check(p);
  return wrong.empty() ? launch_on(p, pointers, queue, kKernels[p.tile].run[p.dtype]) : wrong;
}

std::vector<Variant> hopper_variants() { return variants_of("hopper", 90, kKernels); }

}  // namespace symconv
