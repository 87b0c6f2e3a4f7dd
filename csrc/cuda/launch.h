// Launching a kernel: on a GPU, or on the stand-in where no nvcc compiles. Errors come back as text.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace symconv {

// Device pointers of a call; what each means is said by the family's params.h. `workspace` has as many bytes
// as that family asks for.
struct Pointers {
  const void *x = nullptr, *w = nullptr, *bias = nullptr;
  void *y = nullptr, *workspace = nullptr;
};

// Where a call runs: the index of the device, the stream as CUDA's handle.
struct Queue {
  int device = 0;
  void* stream = nullptr;
};

// What is known of a kernel before it runs: the table of tests, plans and `python -m symconv_fast`.
struct Variant {
  std::string family, name;
  int arch;          // least compute capability, as 80; 90 of a kernel for 90a alone
  int threads;       // of a CTA
  int shared_bytes;  // dynamic; the most it takes, where that depends on the problem
  int ctas;          // resident on a multiprocessor, as its registers are planned
};

// What a plan is made of, for families that plan in C++ (they overload `plan_facts`): clocks of a
// multiprocessor by their model, the names of the kernels in the order of their launches.
struct PlanFacts {
  double clocks = 0;
  std::vector<std::string> kernels;
};
template <class Params>
PlanFacts plan_facts(const Params&) {
  return {};
}

}  // namespace symconv

#ifdef __CUDACC__
#include <cuda_runtime.h>

#include <algorithm>

namespace symconv {

inline std::string error_text(cudaError_t error) {
  return error == cudaSuccess ? std::string() : std::string(cudaGetErrorString(error));
}

// Makes the queue's device the current one for the length of a call.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    error_ = cudaGetDevice(&before_);
    if (error_ == cudaSuccess && before_ != device) error_ = cudaSetDevice(device), changed_ = true;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  cudaError_t error() const { return error_; }

 private:
  int before_ = 0;
  bool changed_ = false;
  cudaError_t error_;
};

// Multiprocessors of a device.
inline int multiprocessors(int device) {
  constexpr int most = 64;
  static int known[most] = {};
  if (device < 0 || device >= most) return 1;
  if (!known[device]) cudaDeviceGetAttribute(&known[device], cudaDevAttrMultiProcessorCount, device);
  return std::max(known[device], 1);
}

// Queues a kernel on the current device; text of the error, or nothing.
template <class... Parameters, class... Arguments>
std::string launch(void (*kernel)(Parameters...), int grid, int threads, int shared_bytes, const Queue& queue,
                   Arguments... arguments) {
  if (shared_bytes > 48 << 10) {
    const auto e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (e != cudaSuccess) return error_text(e);
  }
  kernel<<<grid, threads, shared_bytes, static_cast<cudaStream_t>(queue.stream)>>>(arguments...);
  return error_text(cudaGetLastError());
}

}  // namespace symconv
#elif !defined(SYMCONV_CUDA)  // in a build for GPUs the binding, which launches nothing itself, needs neither
#include "host/launch.h"
#endif
