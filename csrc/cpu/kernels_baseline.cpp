// Inner loops for any CPU (SSE2, NEON), and the choice between the instruction sets.
#include "kernels.h"

#define SYMCONV_ISA baseline
#define SYMCONV_BYTES 16
#define SYMCONV_ROWS1 12
#define SYMCONV_ROWS2 6
#define SYMCONV_ROWS3 4
#include "kernels_impl.h"

#include <cstdlib>
#include <cstring>

namespace symconv {

#if defined(__x86_64__)
namespace avx512 {
const Kernels<float>& table(float);
const Kernels<double>& table(double);
}  // namespace avx512
namespace avx2 {
const Kernels<float>& table(float);
const Kernels<double>& table(double);
}  // namespace avx2
#endif

namespace {

enum class Isa { baseline, avx2, avx512 };

// SYMCONV_FAST_ISA lowers the choice (for tests and for bisecting); it never raises it.
Isa detect() {
  Isa best = Isa::baseline;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    best = Isa::avx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq"))
      best = Isa::avx512;
  }
#endif
  const char* cap = std::getenv("SYMCONV_FAST_ISA");
  if (cap && !std::strcmp(cap, "baseline")) return Isa::baseline;
  if (cap && !std::strcmp(cap, "avx2") && best == Isa::avx512) return Isa::avx2;
  return best;
}

Isa isa() {
  static const Isa chosen = detect();
  return chosen;
}

}  // namespace

double filter_coefficient(Filtering filtering, int product, int tap) {
  double g[3] = {}, two[4] = {}, four[6] = {};
  g[tap] = 1;
  baseline::F2::filter(g, two);
  baseline::F4::filter(g, four);
  return filtering == kF2 ? two[product] : four[product];
}

template <class T>
const Kernels<T>& select_kernels() {
#if defined(__x86_64__)
  if (isa() == Isa::avx512) return avx512::table(T{});
  if (isa() == Isa::avx2) return avx2::table(T{});
#endif
  return baseline::table(T{});
}

template const Kernels<float>& select_kernels<float>();
template const Kernels<double>& select_kernels<double>();

const char* instruction_set() {
  switch (isa()) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "baseline";
  }
}

}  // namespace symconv
