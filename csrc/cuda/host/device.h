// Stand-in for device.h where no nvcc compiles: the same functions, done by the machine of machine.h.
//
// Every function that reaches memory or other threads knows where it was called, so a fault names the line.
// Link the .cpp files of this folder; C++20.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <source_location>

#include "../types.h"
#include "numbers.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __grid_constant__

struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// Of CUDA's own functions, those that need nothing of the machine.
inline float __uint_as_float(uint32_t v) { return symconv::host::as_float(v); }
inline uint32_t __float_as_uint(float v) { return symconv::host::as_bits(v); }
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return static_cast<uint32_t>(uint64_t{a} * b >> 32); }
inline int __popc(uint32_t v) { return std::popcount(v); }
inline int __ffs(int v) { return v ? std::countr_zero(static_cast<uint32_t>(v)) + 1 : 0; }

namespace symconv {

using uint128 = uint4;
using std::max;
using std::min;

namespace host {

using Site = std::source_location;

struct Place {  // of a thread
  int thread, block, blocks, threads;
};
const Place& here();

enum class Kind { kBfloat16, kFloat16, kTf32 };
template <class T>
inline constexpr Kind kKind = Kind::kTf32;
template <>
inline constexpr Kind kKind<Bfloat16> = Kind::kBfloat16;
template <>
inline constexpr Kind kKind<Float16> = Kind::kFloat16;

uint32_t shared_start();
void shared_read(uint32_t address, uint32_t* to, int bytes, Site at);
void shared_write(uint32_t address, const uint32_t* from, int bytes, Site at);
void copy(uint32_t target, const void* source, int size, int bytes, Site at);
void commit_copies();
void wait_for_copies(int left);
void load_matrices(uint32_t* r, int count, uint32_t address, bool transposed, Site at);
void multiply(Kind kind, float* d, const uint32_t* a, uint32_t b0, uint32_t b1, Site at);
void global_read(const void* from, void* to, int bytes, Site at);
void global_write(void* to, const void* from, int bytes, Site at);
void work_read(const void* from, void* to, int bytes, Site at);
void barrier(Site at);
void warp_barrier(Site at);
uint32_t shuffle_xor(uint32_t v, int mask, Site at);

}  // namespace host

// ---- shared memory

inline uint32_t shared_memory() { return host::shared_start(); }
inline uint32_t shared_load(uint32_t address, host::Site at = host::Site::current()) {
  uint32_t v;
  host::shared_read(address, &v, 4, at);
  return v;
}
inline void shared_store(uint32_t address, uint32_t v, host::Site at = host::Site::current()) {
  host::shared_write(address, &v, 4, at);
}
inline uint128 shared_load16(uint32_t address, host::Site at = host::Site::current()) {
  uint32_t v[4];
  host::shared_read(address, v, 16, at);
  return {v[0], v[1], v[2], v[3]};
}
inline void shared_store16(uint32_t address, uint128 v, host::Site at = host::Site::current()) {
  const uint32_t words[] = {v.x, v.y, v.z, v.w};
  host::shared_write(address, words, 16, at);
}

inline uint2 shared_load8(uint32_t address, host::Site at = host::Site::current()) {
  uint32_t v[2];
  host::shared_read(address, v, 8, at);
  return {v[0], v[1]};
}
inline void shared_store8(uint32_t address, uint2 v, host::Site at = host::Site::current()) {
  const uint32_t words[] = {v.x, v.y};
  host::shared_write(address, words, 8, at);
}

// ---- copies that run on their own: they land when they are waited for

inline void copy16(uint32_t target, const void* source, int bytes, host::Site at = host::Site::current()) {
  host::copy(target, source, 16, bytes, at);
}
inline void copy4(uint32_t target, const void* source, int bytes, host::Site at = host::Site::current()) {
  host::copy(target, source, 4, bytes, at);
}
inline void copy_commit() { host::commit_copies(); }
template <int N>
void copy_wait() {
  host::wait_for_copies(N);
}

// ---- matrix units

inline void load_matrices(uint32_t (&r)[4], uint32_t address, host::Site at = host::Site::current()) {
  host::load_matrices(r, 4, address, false, at);
}
inline void load_matrices(uint32_t (&r)[2], uint32_t address, host::Site at = host::Site::current()) {
  host::load_matrices(r, 2, address, false, at);
}
inline void load_transposed(uint32_t (&r)[4], uint32_t address, host::Site at = host::Site::current()) {
  host::load_matrices(r, 4, address, true, at);
}
template <class T>
void multiply(float* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
              host::Site at = host::Site::current()) {
  host::multiply(host::kKind<T>, d, a, b0, b1, at);
}

// ---- elements in a register

template <class T>
inline constexpr float kFold = 1.0f;
template <>
inline constexpr float kFold<Float16> = 2.0f;

namespace host {

// Both halves of two registers.
template <class T>
uint32_t halves(uint32_t a, uint32_t b, float sign) {
  if constexpr (T::kBytes == 4) return as_bits(as_float(a) + sign * as_float(b));
  uint32_t r = 0;
  for (int shift = 0; shift < 32; shift += 16) {
    const uint32_t x = a >> shift & 0xffff, y = b >> shift & 0xffff;
    if constexpr (kKind<T> == Kind::kBfloat16)
      r |= to_bfloat16(from_bfloat16(x) + sign * from_bfloat16(y)) << shift;
    else  // the half of b is rounded, the sum is rounded once
      r |= to_float16(0.5f * from_float16(x) + sign * from_float16(to_float16(0.5f * from_float16(y))))
           << shift;
  }
  return r;
}

}  // namespace host

template <class T>
uint32_t fold_add(uint32_t a, uint32_t b) {
  return host::halves<T>(a, b, 1);
}
template <class T>
uint32_t fold_subtract(uint32_t a, uint32_t b) {
  return host::halves<T>(a, b, -1);
}
template <class T>
uint32_t operand(uint32_t a) {
  return T::kBytes == 4 ? host::to_tf32(a) : a;
}
template <class T>
uint32_t pack2(float low, float high) {
  static_assert(T::kBytes == 2);
  if constexpr (host::kKind<T> == host::Kind::kBfloat16)
    return host::to_bfloat16(low) | host::to_bfloat16(high) << 16;
  return host::to_float16(low) | host::to_float16(high) << 16;
}
template <class T>
float low_of(uint32_t a) {
  if constexpr (T::kBytes == 4) return host::as_float(a);
  if constexpr (host::kKind<T> == host::Kind::kBfloat16) return host::from_bfloat16(a & 0xffff);
  return host::from_float16(a & 0xffff);
}
template <class T>
float high_of(uint32_t a) {
  static_assert(T::kBytes == 2);
  return low_of<T>(a >> 16);
}

// ---- global memory

template <class T>
float load_element(const void* from, int64_t index, host::Site at = host::Site::current()) {
  uint32_t bits = 0;
  host::global_read(static_cast<const uint8_t*>(from) + index * T::kBytes, &bits, T::kBytes, at);
  return low_of<T>(bits);
}
template <class T>
void store_element(void* to, int64_t index, float v, host::Site at = host::Site::current()) {
  uint32_t bits = host::as_bits(v);
  if constexpr (T::kBytes == 2) bits = pack2<T>(v, 0.0f);
  host::global_write(static_cast<uint8_t*>(to) + index * T::kBytes, &bits, T::kBytes, at);
}
inline uint32_t global_load4(const void* from, host::Site at = host::Site::current()) {
  uint32_t v;
  host::global_read(from, &v, 4, at);
  return v;
}
inline uint2 global_load8(const void* from, host::Site at = host::Site::current()) {
  uint2 v;
  host::global_read(from, &v, 8, at);
  return v;
}
inline uint128 global_load16(const void* from, host::Site at = host::Site::current()) {
  uint128 v;
  host::global_read(from, &v, 16, at);
  return v;
}
inline void global_store4(void* to, uint32_t v, host::Site at = host::Site::current()) {
  host::global_write(to, &v, 4, at);
}
inline void global_store8(void* to, uint2 v, host::Site at = host::Site::current()) {
  host::global_write(to, &v, 8, at);
}
inline void global_store16(void* to, uint128 v, host::Site at = host::Site::current()) {
  host::global_write(to, &v, 16, at);
}
inline float work_load(const float* from, host::Site at = host::Site::current()) {
  float v;
  host::work_read(from, &v, 4, at);
  return v;
}
inline void work_store(float* to, float v, host::Site at = host::Site::current()) {
  host::global_write(to, &v, 4, at);
}

// ---- threads

inline int thread() { return host::here().thread; }
inline int lane() { return host::here().thread % 32; }
inline int block() { return host::here().block; }
inline int blocks() { return host::here().blocks; }
inline int threads() { return host::here().threads; }
inline void barrier(host::Site at = host::Site::current()) { host::barrier(at); }
inline void warp_barrier(host::Site at = host::Site::current()) { host::warp_barrier(at); }
inline uint32_t shuffle_xor(uint32_t v, int mask, host::Site at = host::Site::current()) {
  return host::shuffle_xor(v, mask, at);
}
inline float shuffle_xor(float v, int mask, host::Site at = host::Site::current()) {
  return host::as_float(host::shuffle_xor(host::as_bits(v), mask, at));
}
inline void compiler_fence() {}

inline float exponential(float v) { return std::exp(v); }
inline float divide(float a, float b) { return a / b; }
inline float error_function(float v) { return std::erf(v); }

}  // namespace symconv
