// The table of the patch kernels, and the way of a call to the one that it names.
#include "patch/kernel.h"
#include "patch/tiles.h"

namespace symconv {

// Of an instantiation, each compiled by itself.
template <class T, class E>
std::string patch_run(const PatchParams& p, const Pointers& pointers, const Queue& queue);

namespace {

using Run = std::string (*)(const PatchParams&, const Pointers&, const Queue&);

const Kernel<Run> kKernels[] = {
#define SYMCONV_TILE(name) \
  {#name, numbers_of<name>(), {&patch_run<name, Bfloat16>, &patch_run<name, Float16>}},
    PATCH_TILES(SYMCONV_TILE)
#undef SYMCONV_TILE
};

}  // namespace

std::string patch_check(const PatchParams& p) { return check_tiles(p, kKernels); }

int64_t patch_workspace(const PatchParams& p) {
  return patch_check(p).empty() ? weight_bytes(p, kKernels[p.tile].numbers) : 0;
}

std::string patch_launch(const PatchParams& p, const Pointers& pointers, const Queue& queue) {
  const std::string wrong = patch_check(p);
  return wrong.empty() ? launch_on(p, pointers, queue, kKernels[p.tile].run[p.dtype]) : wrong;
}

std::vector<Variant> patch_variants() { return variants_of("patch", 80, kKernels); }

}  // namespace symconv
