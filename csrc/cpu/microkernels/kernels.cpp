// The choice between the instruction sets.
#include "microkernels/kernels.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "export.h"
#include "selection/counting.h"
#include "selection/isa.h"

namespace symconv {

#if defined(__x86_64__)
namespace amx_bf16 {
const Kernels<Pair>& table(Pair);
}  // namespace amx_bf16
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
#include "microkernels/winograd.h"
}  // namespace filters

namespace {

const char* name(Isa isa) {
  switch (isa) {
    case Isa::amx_bf16:
      return "amx_bf16";
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

// Has the CPU tiles of the sizes that the kernels count on, with products of bfloat16, and lets the system
// this process use them? Linux keeps tiles of processes that asked for them alone.
bool may_use_tiles() {
#if defined(__x86_64__) && defined(__linux__)
  unsigned eax, ebx, ecx, edx;
  constexpr unsigned kOsXsave = 1u << 27, kAmxBf16 = 1u << 22, kAmxTile = 1u << 24, kTileStates = 3u << 17;
  if (!__get_cpuid_count(1, 0, &eax, &ebx, &ecx, &edx) || !(ecx & kOsXsave)) return false;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || !(edx & kAmxBf16) || !(edx & kAmxTile))
    return false;
  unsigned enabled, high;
  asm volatile("xgetbv" : "=a"(enabled), "=d"(high) : "c"(0));
  if ((enabled & kTileStates) != kTileStates) return false;
  // Palette 1: bytes of a tile and of a row, and how many tiles of how many rows.
  if (!__get_cpuid_count(0x1d, 1, &eax, &ebx, &ecx, &edx) || eax >> 16 < 1024 || (ebx & 0xffff) < 64 ||
      ebx >> 16 < 8 || (ecx & 0xffff) < 16)
    return false;
  // Of a product: rows of B, and bytes of its rows.
  if (!__get_cpuid_count(0x1e, 0, &eax, &ebx, &ecx, &edx) || (ebx & 0xff) < 16 || (ebx >> 8 & 0xffff) < 64)
    return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
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
  for (Isa lower : {Isa::baseline, Isa::avx2, Isa::avx512, Isa::avx512_bf16})
    if (cap && !std::strcmp(cap, name(lower))) return std::min(best, lower);
  return best == Isa::avx512_bf16 && may_use_tiles() ? Isa::amx_bf16 : best;
}

template <class T>
const Kernels<T>& table_of(Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::avx512) return avx512::table(T{});
  if (isa == Isa::avx2) return avx2::table(T{});
#endif
  return baseline::table(T{});
}

// The table itself, unless this thread wants to know what its kernels do.
template <class T>
const Kernels<T>& counted(const Kernels<T>& own) {
  return counting() == Counting::off ? own : counting_kernels(own, counting());
}

template <class T>
Vectors vectors_in(const Kernels<T>& kernels) {
  return {kernels.lanes, Format<T>::depth, false};
}

}  // namespace

Isa running_isa() {
  static const Isa chosen = detect();
  return chosen;
}

// From tables that are constants: those of widened types are made by code of their instruction set, which may
// be another one than that in use, and have the matrix kernels of float32.
Vectors vectors_of(c10::ScalarType type, Isa isa) {
  if (type == c10::ScalarType::Double) return vectors_in(table_of<double>(isa));
#if defined(__x86_64__)
  if (type == c10::ScalarType::BFloat16 && isa == Isa::avx512_bf16)
    return vectors_in(avx512_bf16::table(Pair{}));
#endif
  Vectors v = vectors_in(table_of<float>(isa));
  v.widens = type != c10::ScalarType::Float;
  return v;
}

double filter_coefficient(Filtering filtering, int product, int tap) {
  double g[3] = {}, two[4] = {}, four[6] = {};
  g[tap] = 1;
  filters::F2::filter(g, two);
  filters::F4::filter(g, four);
  return filtering == kF2 ? two[product] : four[product];
}

template <class T>
const Kernels<T>& select_kernels() {
  return counted(table_of<T>(running_isa()));
}

template const Kernels<float>& select_kernels<float>();
template const Kernels<double>& select_kernels<double>();
template const Kernels<Half>& select_kernels<Half>();
template const Kernels<BFloat16>& select_kernels<BFloat16>();

template <>
const Kernels<Pair>& select_kernels<Pair>() {
#if defined(__x86_64__)
  return counted(running_isa() == Isa::amx_bf16 ? amx_bf16::table(Pair{}) : avx512_bf16::table(Pair{}));
#else
  static const Kernels<Pair> none{};  // not asked for: has_pairs() is false
  return none;
#endif
}

bool has_pairs() { return running_isa() >= Isa::avx512_bf16; }

const char* instruction_set() { return name(running_isa()); }

const char* cpu_maker() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_is("intel")) return "Intel";
  if (__builtin_cpu_is("amd")) return "AMD";
#endif
  return "";
}

}  // namespace symconv
