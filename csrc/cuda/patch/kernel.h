// What the launchers of patches share: a table of kernels by tile, the check of a call, the way to its
// kernel.
#pragma once
#include <cstddef>

#include "launch.h"
#include "patch/layer.h"
#include "patch/params.h"

namespace symconv {

// A tile's numbers without its type.
struct Numbers {
  int members, orbits, channels, height, width, patches, threads, shared_bytes, weight_bytes, resident;
};

template <class T>
constexpr Numbers numbers_of() {
  return {T::kMembers, T::kOrbits,  T::kChannels,    T::kHeight,      T::kWidth,
          T::kPatches, T::kThreads, T::kSharedBytes, T::kWeightBytes, T::kResident};
}

template <class Run>
struct Kernel {
  const char* name;
  Numbers numbers;
  Run run[2];  // of bfloat16, of float16
};

// What is wrong with a call, or nothing; `numbers` of its tile, or null where there is no such tile.
std::string check_call(const PatchParams& p, const Numbers* numbers);

template <class Run, size_t N>
std::string check_tiles(const PatchParams& p, const Kernel<Run> (&kernels)[N]) {
  const bool known = p.tile >= 0 && p.tile < static_cast<int64_t>(N);
  return check_call(p, known ? &kernels[p.tile].numbers : nullptr);
}

// Bytes of the folded weights of a call that was checked.
int64_t weight_bytes(const PatchParams& p, const Numbers& tile);

template <class Params, class Run>
std::string launch_on(const Params& p, const Pointers& pointers, const Queue& queue, Run run) {
  if (!pointers.x || !pointers.w || !pointers.y || !pointers.workspace) return "a tensor is missing";
  if (reinterpret_cast<uintptr_t>(pointers.x) % 16 || reinterpret_cast<uintptr_t>(pointers.workspace) % 16)
    return "16 does not divide the address of x or of the workspace";
  const DeviceGuard guard(queue.device);
  return guard.error() ? error_text(guard.error()) : run(p, pointers, queue);
}

template <class Run, size_t N>
std::vector<Variant> variants_of(const char* family, int arch, const Kernel<Run> (&kernels)[N]) {
  std::vector<Variant> all;
  for (const auto& k : kernels)
    all.push_back({family, k.name, arch, k.numbers.threads, k.numbers.shared_bytes, k.numbers.resident});
  return all;
}

}  // namespace symconv
