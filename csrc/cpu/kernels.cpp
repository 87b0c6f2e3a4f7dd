// The choice between the instruction sets.
#include "kernels.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace symconv {

#if defined(__x86_64__)
namespace avx512_bf16 {
const Kernels<Pair>& table(Pair);
}  // namespace avx512_bf16
namespace avx512 {
const Kernels<float>& table(float);
const Kernels<double>& table(double);
const Kernels<Half>& table(Half);
const Kernels<BFloat16>& table(BFloat16);
}  // namespace avx512
namespace avx2 {
const Kernels<float>& table(float);
const Kernels<double>& table(double);
const Kernels<Half>& table(Half);
const Kernels<BFloat16>& table(BFloat16);
}  // namespace avx2
#endif
namespace baseline {
const Kernels<float>& table(float);
const Kernels<double>& table(double);
const Kernels<Half>& table(Half);
const Kernels<BFloat16>& table(BFloat16);
}  // namespace baseline

namespace filters {
double scalar(double);  // never called
#include "winograd.h"
}  // namespace filters

namespace {

enum class Isa { baseline, avx2, avx512, avx512_bf16 };

const char* name(Isa isa) {
  switch (isa) {
    case Isa::avx512_bf16:
      return "avx512_bf16";
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "baseline";
  }
}

// SYMCONV_FAST_ISA lowers the choice (for tests and for bisecting); it never raises it.
Isa detect() {
  Isa best = Isa::baseline;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    best = Isa::avx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq"))
      best = __builtin_cpu_supports("avx512bf16") ? Isa::avx512_bf16 : Isa::avx512;
  }
#endif
  const char* cap = std::getenv("SYMCONV_FAST_ISA");
  for (Isa lower : {Isa::baseline, Isa::avx2, Isa::avx512})
    if (cap && !std::strcmp(cap, name(lower))) return std::min(best, lower);
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
  filters::F2::filter(g, two);
  filters::F4::filter(g, four);
  return filtering == kF2 ? two[product] : four[product];
}

template <class T>
const Kernels<T>& select_kernels() {
#if defined(__x86_64__)
  if (isa() >= Isa::avx512) return avx512::table(T{});
  if (isa() == Isa::avx2) return avx2::table(T{});
#endif
  return baseline::table(T{});
}

template const Kernels<float>& select_kernels<float>();
template const Kernels<double>& select_kernels<double>();
template const Kernels<Half>& select_kernels<Half>();
template const Kernels<BFloat16>& select_kernels<BFloat16>();

template <>
const Kernels<Pair>& select_kernels<Pair>() {
#if defined(__x86_64__)
  return avx512_bf16::table(Pair{});
#else
  static const Kernels<Pair> none{};  // not asked for: has_pairs() is false
  return none;
#endif
}

bool has_pairs() { return isa() == Isa::avx512_bf16; }

const char* instruction_set() { return name(isa()); }

}  // namespace symconv
