// Instructions of csrc/cuda/device.h for tests: kernels of one warp that each do one of them, on the
// stand-in.
//
// Registers come and go as arrays [register][lane]. Each function returns the stand-in's text, or nothing.
#include <cstring>
#include <string>
#include <vector>

#include "host/hopper.h"
#include "launch.h"

namespace symconv {
namespace {

struct Call {
  const void *a, *b, *shared;
  void* d;
  int bytes, kind;  // 0 bfloat16, 1 float16, 2 TF32; or which ldmatrix
};

uint32_t word(const void* from, int index) {
  return global_load4(static_cast<const uint32_t*>(from) + index);
}
void put(void* to, int index, uint32_t v) { global_store4(static_cast<uint32_t*>(to) + index, v); }

__global__ void loaded(const __grid_constant__ Call c) {
  const uint32_t start = shared_memory();
  for (int i = lane(); i < c.bytes / 4; i += 32) shared_store(start + i * 4, word(c.shared, i));
  barrier();
  uint32_t r[4] = {}, two[2] = {};
  const uint32_t address = start + word(c.a, lane());
  if (c.kind == 0) load_matrices(r, address);
  if (c.kind == 1) load_transposed(r, address);
  if (c.kind == 2) load_matrices(two, address);
  for (int e = 0; e < 4; ++e) put(c.d, e * 32 + lane(), c.kind == 2 && e < 2 ? two[e] : r[e]);
}

template <class T>
__global__ void multiplied(const __grid_constant__ Call c) {
  uint32_t a[4];
  float d[4];
  for (int e = 0; e < 4; ++e) {
    a[e] = word(c.a, e * 32 + lane());
    d[e] = low_of<Float32>(word(c.shared, e * 32 + lane()));
  }
  multiply<T>(d, a, word(c.b, lane()), word(c.b, 32 + lane()));
  for (int e = 0; e < 4; ++e) put(c.d, e * 32 + lane(), __float_as_uint(d[e]));
}

// A warp's part of m64n64: its sums from zero, the weights at an address of shared memory as it is given. A
// span of 1 or 4 stands for MN-major weights, whose blocks of eight rows lie so many KB apart.
template <class T, int kSpan>
__global__ void of_a_group(const __grid_constant__ Call c) {
  const uint32_t start = (shared_memory() + 1023) / 1024 * 1024;
  for (int i = lane(); i < c.bytes / 4; i += 32) shared_store(start + i * 4, word(c.shared, i));
  barrier();
  uint32_t a[4];
  for (int e = 0; e < 4; ++e) a[e] = word(c.a, e * 32 + lane());
  float d[32] = {};
  product_fence();
  if constexpr (kSpan < 32)
    product_transposed<T, kSpan * 1024>(d, a, start + c.kind);
  else
    product<T, 64, kSpan>(d, a, start + c.kind);
  product_commit();
  product_wait<0>();
  for (int e = 0; e < 32; ++e) put(c.d, e * 32 + lane(), __float_as_uint(d[e]));
}

__global__ void exchanged(const __grid_constant__ Call c) {
  put(c.d, lane(), shuffle_xor(word(c.a, lane()), c.kind));
}

// Elementwise, of a and b: what `kind` says.
template <class T>
uint32_t elementwise(int kind, uint32_t a, uint32_t b) {
  if (kind == 0) return fold_add<T>(a, b);
  if (kind == 1) return fold_subtract<T>(a, b);
  if (kind == 2) return operand<T>(a);
  if constexpr (T::kBytes == 2) {
    if (kind == 3) return pack2<T>(host::as_float(a), host::as_float(b));
    if (kind == 4) return host::as_bits(high_of<T>(a));
  }
  return host::as_bits(low_of<T>(a));
}

std::string said;

template <class... Parameters>
const char* run(void (*kernel)(Parameters...), Call c, int a_bytes, int b_bytes, int shared_bytes, int out) {
  host::forget_buffers();
  if (a_bytes) host::register_buffer(c.a, a_bytes, false);
  if (b_bytes) host::register_buffer(c.b, b_bytes, false);
  if (shared_bytes) host::register_buffer(c.shared, shared_bytes, false);
  host::register_buffer(c.d, out, true);
  said = launch(kernel, 1, 32, c.bytes + 1024, Queue{}, c);
  host::forget_buffers();
  return said.c_str();
}

}  // namespace
}  // namespace symconv

using namespace symconv;

extern "C" {

const char* ldmatrix(uint32_t* r, const uint32_t* address, int kind, const uint8_t* shared, int bytes) {
  return run(loaded, Call{address, nullptr, shared, r, bytes, kind}, 128, 0, bytes, 512);
}

const char* mma(int kind, uint32_t* d, const float* sums, const uint32_t* a, const uint32_t* b) {
  const Call c{a, b, sums, d, 0, kind};
  if (kind == 0) return run(multiplied<Bfloat16>, c, 512, 256, 512, 512);
  if (kind == 1) return run(multiplied<Float16>, c, 512, 256, 512, 512);
  return run(multiplied<Float32>, c, 512, 256, 512, 512);
}

const char* wgmma(int kind, int span, uint32_t* d, const uint32_t* a, int weights, const uint8_t* shared,
                  int bytes) {
  const Call c{a, nullptr, shared, d, bytes, weights};
  const auto with = [&](auto* kernel) { return run(kernel, c, 512, 0, bytes, 32 * 128); };
  const auto swizzled = [&](auto* least, auto* narrow, auto* wide) {
    return with(span == 32 ? least : span == 64 ? narrow : wide);
  };
  const auto of = [&](auto* least, auto* narrow, auto* wide, auto* near, auto* far) {
    return span == 1 ? with(near) : span == 4 ? with(far) : swizzled(least, narrow, wide);
  };
  if (kind == 0)
    return of(of_a_group<Bfloat16, 32>, of_a_group<Bfloat16, 64>, of_a_group<Bfloat16, 128>,
              of_a_group<Bfloat16, 1>, of_a_group<Bfloat16, 4>);
  if (kind == 1)
    return of(of_a_group<Float16, 32>, of_a_group<Float16, 64>, of_a_group<Float16, 128>,
              of_a_group<Float16, 1>, of_a_group<Float16, 4>);
  return swizzled(of_a_group<Float32, 32>, of_a_group<Float32, 64>, of_a_group<Float32, 128>);
}

const char* exchange(uint32_t* to, const uint32_t* from, int mask) {
  return run(exchanged, Call{from, nullptr, nullptr, to, 0, mask}, 128, 0, 0, 128);
}

void each(int type, int kind, const uint32_t* a, const uint32_t* b, uint32_t* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    to[i] = type == 0   ? elementwise<Bfloat16>(kind, a[i], b[i])
            : type == 1 ? elementwise<Float16>(kind, a[i], b[i])
                        : elementwise<Float32>(kind, a[i], b[i]);
}
}
