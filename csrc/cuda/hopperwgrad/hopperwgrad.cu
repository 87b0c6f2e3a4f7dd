// Checks a call of the Hopper weight gradient, sums its strips, and adds the splits up.
#include <array>

#include "hopperwgrad/params.h"
#include "hopperwgrad/strip.h"
#include "launch.h"
#include "types.h"
#include "wgrad/work.h"

namespace symconv {

// Defined by the instances of this family, and by those of wgrad.
template <class T, class E>
std::string hopperwgrad_run(const HopperwgradParams& p, const HopperwgradWork& work, const Pointers& pointers,
                            const Queue& queue);
template <class T>
std::string wgrad_run_total(const WgradTotal& work, int grid, const Queue& queue, const float* sums,
                            void* weight);

namespace {

constexpr int64_t kMost = int64_t{1} << 30;
using Run = std::string (*)(const HopperwgradParams&, const HopperwgradWork&, const Pointers&, const Queue&);

struct Kernel {
  const char* name;
  int members, height, threads, shared_bytes;
  Run run[2];  // of bfloat16, of float16
};
const Kernel kKernels[] = {
#define SYMCONV_STRIP(name)                           \
  {#name,          name::kMembers,     name::kHeight, \
   name::kThreads, name::kSharedBytes, {&hopperwgrad_run<name, Bfloat16>, &hopperwgrad_run<name, Float16>}},
    HOPPERWGRAD_STRIPS(SYMCONV_STRIP)
#undef SYMCONV_STRIP
};

int64_t up(int64_t n, int64_t by) { return (n + by - 1) / by; }
int64_t members_of(const HopperwgradParams& p) { return p.mask == 3 ? 4 : 2; }
const Kernel& kernel_of(const HopperwgradParams& p) { return kKernels[(p.mask == 3 ? 2 : 0) + p.strip]; }

// Is a product of factors, each 1 to kMost, more than kMost?
template <class... Factors>
bool too_many(Factors... factors) {
  int64_t product = 1;
  for (const int64_t f : {int64_t{factors}...}) {
    if (product > kMost / f) return true;
    product *= f;
  }
  return false;
}

int64_t down_of(const HopperwgradParams& p) {
  return up(p.mask == 2 ? p.width : p.height, kernel_of(p).height);
}
int64_t across_of(const HopperwgradParams& p) { return up(p.mask == 2 ? p.height : p.width, kStripWidth); }

std::string check_sizes(const HopperwgradParams& p) {
  if (p.dtype != 0 && p.dtype != 1) return "the products are of bfloat16 and float16";
  if (p.mask < 1 || p.mask > 3) return "the kernels are for the ties h, v and hv";
  if (p.strip < 0 || p.strip > 1) return "there is no such strip";
  for (const int64_t size : {p.batch, p.height, p.width, p.groups, p.channels, p.rows, p.splits})
    if (size < 1 || size > kMost) return "a size is not positive, or too large";
  if (p.channels % 8) return "8 does not divide the channels of a group";
  if (too_many(p.groups, p.channels) || too_many(p.groups, members_of(p), p.rows))
    return "there are too many channels";
  if (too_many(p.batch, down_of(p), across_of(p))) return "there are too many strips of pixels";
  if (p.splits > p.batch * down_of(p) * across_of(p)) return "there are more splits than strips of pixels";
  const int64_t blocks_u = up(p.rows, kStripBlock), blocks_c = up(p.channels, kStripBlock);
  if (too_many(p.groups, blocks_u, blocks_c, p.splits)) return "there are too many blocks";
  return too_many(p.groups, p.rows, p.channels, 9) ? "the weight is too large" : "";
}

std::string check_strides(const HopperwgradParams& p) {
  for (const int64_t stride : {p.x_n, p.x_y, p.x_x, p.y_n, p.y_y, p.y_x})
    if (stride < 0 || stride > int64_t{1} << 38 || stride % 8)
      return "strides of maps are negative or too large, or 8 does not divide them";
  for (const int64_t stride : {p.w_group, p.w_row, p.w_channel, p.w_y, p.w_x})
    if (stride < 0 || stride > kMost) return "strides of w are negative, or too large";
  return "";
}

HopperwgradWork work_of(const HopperwgradParams& p) {
  HopperwgradWork w{};
  w.down = static_cast<int>(down_of(p)), w.across = static_cast<int>(across_of(p));
  w.strips = static_cast<int>(p.batch) * w.down * w.across;
  w.rows = static_cast<int>(p.rows), w.channels = static_cast<int>(p.channels);
  w.blocks_u = static_cast<int>(up(p.rows, kStripBlock));
  w.blocks_c = static_cast<int>(up(p.channels, kStripBlock));
  w.blocks = static_cast<int>(p.groups) * w.blocks_u * w.blocks_c;
  w.splits = static_cast<int>(p.splits);
  return w;
}

// The sums are those of the taps, whole, so nothing is left but to add the splits: a total without a tie.
WgradTotal total_of(const HopperwgradParams& p) {
  const bool v = p.mask == 2;
  WgradTotal t{};
  t.groups = static_cast<int>(p.groups), t.rows = static_cast<int>(p.rows);
  t.channels = static_cast<int>(p.channels), t.splits = static_cast<int>(p.splits);
  t.kernel[0] = 1, t.kernel[1] = t.kernel[2] = 3;
  for (t.parts = 1; t.parts < 8 && 8 * t.parts <= t.splits;) t.parts *= 2;
  const int64_t stride[] = {p.w_group, p.w_row, p.w_channel, 0, v ? p.w_x : p.w_y, v ? p.w_y : p.w_x};
  for (int i = 0; i < 6; ++i) t.stride[i] = stride[i];
  return t;
}

}  // namespace

std::string hopperwgrad_check(const HopperwgradParams& p) {
  const std::string wrong = check_sizes(p);
  return wrong.empty() ? check_strides(p) : wrong;
}

int64_t hopperwgrad_workspace(const HopperwgradParams& p) {
  return hopperwgrad_check(p).empty() ? 4 * 9 * p.splits * p.groups * p.rows * p.channels : 0;
}

std::string hopperwgrad_launch(const HopperwgradParams& p, const Pointers& pointers, const Queue& queue) {
  const std::string wrong = hopperwgrad_check(p);
  if (!wrong.empty()) return wrong;
  if (!pointers.x || !pointers.w || !pointers.y || !pointers.workspace) return "a tensor is missing";
  for (const void* pointer : {pointers.x, pointers.w, static_cast<const void*>(pointers.workspace)})
    if (reinterpret_cast<uintptr_t>(pointer) % 16) return "tensors must start at multiples of 16 bytes";
  const DeviceGuard guard(queue.device);
  if (guard.error()) return error_text(guard.error());
  const std::string error = kernel_of(p).run[p.dtype](p, work_of(p), pointers, queue);
  if (!error.empty()) return error;
  const WgradTotal total = total_of(p);
  const int64_t threads = 9 * p.groups * p.rows * p.channels * total.parts;
  const auto add_up = p.dtype == 0 ? wgrad_run_total<Bfloat16> : wgrad_run_total<Float16>;
  return add_up(total, static_cast<int>(up(threads, 256)), queue, static_cast<float*>(pointers.workspace),
                pointers.y);
}

std::vector<Variant> hopperwgrad_variants() {
  std::vector<Variant> all;
  for (const Kernel& k : kKernels) all.push_back({"hopperwgrad", k.name, 90, k.threads, k.shared_bytes, 1});
  return all;
}

}  // namespace symconv
