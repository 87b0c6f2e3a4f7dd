// Launches the gradient of a reduced weight: plans kept by their parameters, each segment's kernels, its
// total.
#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <type_traits>

#include "../types.h"
#include "params.h"
#include "plan.h"

namespace symconv {

// Defined by the instances.
template <class T, class Set>
std::string wgrad_run(const WgradWork& work, int grid, int threads, int shared_bytes, const Queue& queue,
                      const void* x, const void* gy, float* to);
template <class T>
std::string wgrad_run_total(const WgradTotal& work, int grid, const Queue& queue, const float* sums,
                            void* weight);

namespace {

using Run = std::string (*)(const WgradWork&, int, int, int, const Queue&, const void*, const void*, float*);
using RunTotal = std::string (*)(const WgradTotal&, int, const Queue&, const float*, void*);

// By type and set (`WgradSetName`).
template <class T>
using Three = std::conditional_t<T::kBytes == 4, WgradThin3, WgradOne3>;
template <class T>
constexpr std::array<Run, kWgradSets> kRuns = {
    wgrad_run<T, WgradOne0>,  wgrad_run<T, WgradOne1>,  wgrad_run<T, WgradOne2>,  wgrad_run<T, Three<T>>,
    wgrad_run<T, WgradNine0>, wgrad_run<T, WgradNine1>, wgrad_run<T, WgradNine2>, wgrad_run<T, WgradFlat2>};
constexpr std::array<std::array<Run, kWgradSets>, 3> kAllRuns = {kRuns<Bfloat16>, kRuns<Float16>,
                                                                 kRuns<Float32>};
constexpr const char* kTypes[3] = {"bf16", "fp16", "tf32"};
constexpr RunTotal kTotals[3] = {wgrad_run_total<Bfloat16>, wgrad_run_total<Float16>,
                                 wgrad_run_total<Float32>};

// Planning tries some thousand tiles, so plans are kept; all are let go of when there are many.
std::shared_ptr<const WgradPlan> plan_of(const WgradParams& params) {
  constexpr int fields = sizeof(WgradParams) / sizeof(int64_t);
  constexpr size_t most = 512;
  static std::mutex mutex;
  static std::map<std::array<int64_t, fields>, std::shared_ptr<const WgradPlan>> plans;
  std::array<int64_t, fields> key;
  int i = 0;
#define SYMCONV_KEY(name) key[i++] = params.name;
  WGRAD_FIELDS(SYMCONV_KEY)
#undef SYMCONV_KEY
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = plans.find(key);
  if (found != plans.end()) return found->second;
  if (plans.size() >= most) plans.clear();
  return plans[key] = std::make_shared<const WgradPlan>(wgrad_plan(params));
}

std::string check_pointers(const Pointers& p) {
  if (!p.x || !p.y || !p.w || !p.workspace) return "a tensor is missing";
  for (const void* pointer : {p.x, p.w, static_cast<const void*>(p.workspace)})
    if (reinterpret_cast<uintptr_t>(pointer) % 16) return "tensors must start at multiples of 16 bytes";
  return "";
}

std::string run_part(const WgradSegmentPlan& part, int dtype, const Pointers& p, const Queue& queue) {
  float* sums = reinterpret_cast<float*>(static_cast<uint8_t*>(p.workspace) + part.first_byte);
  for (const WgradLaunch& l : part.launches) {
    const auto error = kAllRuns[dtype][l.set](l.work, static_cast<int>(l.grid), l.threads, l.shared_bytes,
                                              queue, p.x, p.w, sums);
    if (!error.empty()) return error;
  }
  const WgradTotal& t = part.total;
  const int64_t each = int64_t{t.groups} * t.rows * t.channels * t.kernel[0] * t.kernel[1] * t.kernel[2];
  return kTotals[dtype](t, static_cast<int>((each * t.parts + 255) / 256), queue, sums, p.y);
}

}  // namespace

std::string wgrad_check(const WgradParams& params) { return plan_of(params)->error; }

int64_t wgrad_workspace(const WgradParams& params) { return plan_of(params)->bytes; }

std::string wgrad_launch(const WgradParams& params, const Pointers& pointers, const Queue& queue) {
  const auto plan = plan_of(params);
  if (!plan->error.empty()) return plan->error;
  const std::string wrong = check_pointers(pointers);
  if (!wrong.empty()) return wrong;
  const DeviceGuard guard(queue.device);
  const std::string failed = error_text(guard.error());
  if (!failed.empty()) return failed;
  for (const WgradSegmentPlan& part : plan->parts) {
    const std::string error = run_part(part, static_cast<int>(params.dtype), pointers, queue);
    if (!error.empty()) return error;
  }
  return "";
}

PlanFacts plan_facts(const WgradParams& params) {
  PlanFacts facts;
  const auto plan = plan_of(params);
  if (!plan->error.empty()) return facts;
  for (const WgradSegmentPlan& part : plan->parts) {
    facts.clocks += part.clocks;
    for (const WgradLaunch& l : part.launches)
      facts.kernels.push_back(kTypes[params.dtype] + std::string("_") + kWgradShapes[l.set].name);
    facts.kernels.push_back(kTypes[params.dtype] + std::string("_total"));
  }
  return facts;
}

std::vector<Variant> wgrad_variants() {
  std::vector<Variant> all;
  for (const std::string type : kTypes) {
    for (const WgradShape& shape : kWgradShapes)
      all.push_back({"wgrad", type + "_" + shape.name, 80, kWgradThreads, 227 << 10, 1});
    all.push_back({"wgrad", type + "_total", 80, 256, 8 << 10, 4});
  }
  return all;
}

}  // namespace symconv
