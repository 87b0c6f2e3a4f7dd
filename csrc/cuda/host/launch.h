// Launching a kernel on the stand-in for a GPU, and its settings: launch.h includes it where no nvcc
// compiles.
//
// A launch runs every CTA of the grid, one after the other, all threads as fibres, and checks what they do
// (machine.h says what). The first fault ends the launch; its text comes back as the error. Global memory is
// only what was registered. Calls from several threads wait for each other.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace symconv {

inline std::string error_text(int error) { return error ? "error " + std::to_string(error) : std::string(); }

// There is one device.
class DeviceGuard {
 public:
  explicit DeviceGuard(int) {}
  int error() const { return 0; }
};

int multiprocessors(int device);

namespace host {

// Of which multiprocessors() speaks. 4 unless it is set.
void set_multiprocessors(int count);
// Changes in which order warps run, and CTAs: kernels must not care.
void set_seed(uint64_t seed);
// Whether an ldmatrix that takes more than one access a matrix is a fault. It is unless it is set.
void set_conflicts_allowed(bool allowed);
// Whether to note each access of a warp, so that wavefronts and sectors are counted. It is slower.
void set_tracing(bool on);
// Runs only so many CTAs of a grid, spread over it; 0 runs all. For counts: what is computed is incomplete,
// so what nobody wrote may be read. Kernels without shared memory, which prepare and add up, run whole.
void set_sample(int ctas);

// Memory that kernels may reach. What starts inside of it or around it from before is forgotten. Nothing
// may be read of a writable buffer but what kernels have written since.
void register_buffer(const void* start, int64_t bytes, bool writable);
void forget_buffer(const void* start);
void forget_buffers();

// What was done, of all launches since reset_counts().
// clang-format off
#define SYMCONV_COUNTS(F)                                                                          \
  F(launches) F(ctas) F(barriers) F(warp_barriers) F(shuffles) F(ldmatrix) F(ldmatrix_wavefronts)  \
  F(shared_load_bytes) F(shared_store_bytes) F(global_load_bytes) F(global_store_bytes)            \
  F(copy_bytes) F(copies) F(mma_bfloat16) F(mma_float16) F(mma_tf32) F(wgmma) F(wgmma_columns)     \
  F(bulk_bytes) /* with tracing alone: */                                                          \
  F(shared_load_wavefronts) F(shared_store_wavefronts) F(copy_wavefronts)                          \
  F(load_sectors) F(store_sectors) F(copy_sectors)                                                 \
  F(shared_loads) F(shared_stores) F(global_loads) F(global_stores)
// clang-format on
struct Counts {
#define SYMCONV_COUNT(name) uint64_t name = 0;
  SYMCONV_COUNTS(SYMCONV_COUNT)
#undef SYMCONV_COUNT
};
using NamedCounts = std::vector<std::pair<std::string, uint64_t>>;
Counts counts();
void reset_counts();
NamedCounts named(const Counts& counts);
inline NamedCounts named_counts() { return named(counts()); }

struct Shape {
  int64_t grid, threads, shared_bytes;
  int cluster = 1;
};
// The launches since reset_counts() one by one, at most the first 1000.
struct Launched {
  Shape shape;
  Counts counts;
};
const std::vector<Launched>& launches();
std::string run_grid(const Shape& shape, void (*kernel)(void*), void* call);

}  // namespace host

// As on a GPU, but it comes back when the kernel has ended.
template <class... Parameters, class... Arguments>
std::string launch(void (*kernel)(Parameters...), int64_t grid, int64_t threads, int64_t shared_bytes,
                   const Queue&, Arguments... arguments) {
  static_assert((sizeof(Parameters) + ... + 0) <= 4000, "a kernel's parameters are at most 4 KB");
  auto call = [&] { kernel(arguments...); };
  return host::run_grid(
      {grid, threads, shared_bytes}, [](void* c) { (*static_cast<decltype(call)*>(c))(); }, &call);
}

}  // namespace symconv
