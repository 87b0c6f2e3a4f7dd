// Checks a call of the patch kernels and gives it to the kernel that it names.
#include <cstddef>

#include "launch.h"
#include "patch/layer.h"
#include "patch/params.h"
#include "patch/tiles.h"

namespace symconv {

// Of an instantiation, each compiled by itself.
template <class T, class E>
std::string patch_run(const PatchParams& p, const Pointers& pointers, const Queue& queue);

namespace {

using Run = std::string (*)(const PatchParams&, const Pointers&, const Queue&);

struct Kernel {
  const char* name;
  int members, orbits, channels, height, width, patches, threads, shared_bytes, weight_bytes, resident;
  Run run[2];  // of bfloat16, of float16
};

template <class T>
constexpr Kernel kernel_of(const char* name) {
  return {name,
          T::kMembers,
          T::kOrbits,
          T::kChannels,
          T::kHeight,
          T::kWidth,
          T::kPatches,
          T::kThreads,
          T::kSharedBytes,
          T::kWeightBytes,
          T::kResident,
          {&patch_run<T, Bfloat16>, &patch_run<T, Float16>}};
}

const Kernel kKernels[] = {
#define SYMCONV_TILE(name) kernel_of<name>(#name),
    PATCH_TILES(SYMCONV_TILE)
#undef SYMCONV_TILE
};
constexpr int64_t kCount = sizeof kKernels / sizeof kKernels[0];
constexpr int64_t kMost = int64_t{1} << 30;  // of what the kernels count in 32 bits

// Product of factors that are not negative, or kMost + 1 where it is more than kMost.
template <class... Factors>
int64_t bounded(Factors... factors) {
  int64_t product = 1;
  for (const int64_t f : {int64_t{factors}...})
    product = f == 0 ? 0 : product > kMost / f ? kMost + 1 : product * f;
  return product;
}

std::string sizes_check(const PatchParams& p) {
  if (p.dtype != 0 && p.dtype != 1) return "patch kernels multiply bfloat16 and float16";
  if (p.tile < 0 || p.tile >= kCount) return "there is no such tile";
  if (p.mask < 1 || p.mask > 3) return "patch kernels are for the ties h, v and hv";
  if (kKernels[p.tile].members != (p.mask == 3 ? 4 : 2)) return "the tile is for another tie";
  if (p.activation < 0 || p.activation > 3) return "there is no such activation";
  for (const int64_t size : {p.batch, p.depth, p.height, p.width, p.groups, p.channels, p.orbits})
    if (size < 1 || size > kMost) return "a size is not positive, or too large";
  return p.channels % 8 ? "8 does not divide the channels of a group" : "";
}

std::string strides_check(const PatchParams& p) {
  int64_t last = p.groups * p.channels / 8;
  const int64_t sizes[] = {p.batch, p.depth, p.height, p.width}, strides[] = {p.x_n, p.x_z, p.x_y, p.x_x};
  for (int i = 0; i < 4; ++i) {
    if (strides[i] < 0 || strides[i] % 8) return "strides of x are negative, or 8 does not divide them";
    last += bounded(sizes[i] - 1, strides[i] / 8);
  }
  if (last > 2 * kMost - 1) return "x is too large for offsets of 32 bits";
  for (const int64_t stride : {p.y_n, p.y_z, p.y_y, p.y_x})
    if (stride < 0 || stride > int64_t{1} << 40) return "strides of y are negative, or too large";
  if (p.y_y > kMost / 16 || p.y_x > kMost / 16) return "strides of y are too large for offsets of 32 bits";
  for (const int64_t stride : {p.w_group, p.w_row, p.w_channel, p.w_y, p.w_x})
    if (stride < 0 || stride > kMost) return "strides of w are negative, or too large";
  return "";
}

}  // namespace

std::string patch_check(const PatchParams& p) {
  std::string wrong = sizes_check(p);
  if (!wrong.empty()) return wrong;
  const Kernel& k = kKernels[p.tile];
  const bool v = exchanged(p);
  const int64_t down = whole_blocks(v ? p.width : p.height, k.height);
  const int64_t across = whole_blocks(v ? p.height : p.width, k.width);
  const int64_t blocks = bounded(p.groups, whole_blocks(p.orbits, k.orbits));
  if (bounded(p.batch, p.depth, down, across, blocks) > kMost - k.patches * blocks)
    return "there are too many tiles";
  if (bounded(blocks, k.orbits, whole_blocks(p.channels, k.channels), k.channels) > kMost ||
      bounded(p.groups, p.channels) > kMost || bounded(p.groups, k.members, p.orbits) > kMost / 16)
    return "the weight is too large for offsets of 32 bits";
  return strides_check(p);
}

int64_t patch_workspace(const PatchParams& p) {
  if (!patch_check(p).empty()) return 0;
  const Kernel& k = kKernels[p.tile];
  return blocks_of(p, k.orbits) * whole_blocks(p.channels, k.channels) * k.weight_bytes;
}

std::string patch_launch(const PatchParams& p, const Pointers& pointers, const Queue& queue) {
  const std::string wrong = patch_check(p);
  if (!wrong.empty()) return wrong;
  if (reinterpret_cast<uintptr_t>(pointers.x) % 16 || reinterpret_cast<uintptr_t>(pointers.workspace) % 16)
    return "16 does not divide the address of x or of the workspace";
  const DeviceGuard guard(queue.device);
  if (guard.error()) return error_text(guard.error());
  return kKernels[p.tile].run[p.dtype](p, pointers, queue);
}

std::vector<Variant> patch_variants() {
  std::vector<Variant> all;
  for (const Kernel& k : kKernels)
    all.push_back({"patch", k.name, 80, k.threads, k.shared_bytes, k.resident});
  return all;
}

}  // namespace symconv
