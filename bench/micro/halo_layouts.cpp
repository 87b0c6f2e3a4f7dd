// The host stand-in's fragments, instructions and swizzles as a library, so that a test can hold them
// against layouts from elsewhere. Registers are arrays [register][32 lanes]; a call returns what is wrong,
// or null.
#include "halo_host.h"
#include "halo_variants.h"
#include "halo_warp.h"

namespace {

using namespace halo;

template <class Body>
const char* guarded(Body body) {
  static std::string message;
  try {
    body();
    return nullptr;
  } catch (const Fault& fault) {
    message = fault.what();
    return message.c_str();
  }
}

template <class E, int N>
void read(Lanes<E> (&to)[N], const E* from) {
  std::memcpy(static_cast<void*>(to), from, sizeof to);
}

struct Machine {
  std::vector<uint8_t> shared;
  Host host{&shared, nullptr};
  Machine(const uint8_t* memory, int bytes) : shared(memory, memory + bytes) {}
};

template <class T>
void product(Machine& machine, float* d, const uint32_t* a, uint32_t weights) {
  LanesU left[4];
  LanesF sums[T::kOrbits / 2];
  read(left, a);
  read(sums, d);
  machine.host.product<T>(sums, left, weights);
  std::memcpy(d, sums, sizeof sums);
}

template <class T>
void window(Machine& machine, uint32_t* a, int warp, int step, int kw, int t) {
  LanesU r[4];
  GroupWarp<Host, T> sums;
  sums.locate(machine.host, warp);
  sums.load_window(machine.host, r, 0, step, kw, t);
  std::memcpy(a, r, sizeof r);
}

}  // namespace

extern "C" {

// Row * 256 + column; e: the register. Kinds: A, B, sums, a matrix of ldmatrix, the same transposed.
int halo_place(int kind, int lane, int e, int half) {
  const Place at = kind == 0   ? Host::a_place(lane, e, half)
                   : kind == 1 ? Host::b_place(lane, e, half)
                   : kind == 2 ? Host::sum_place(lane, e)
                               : Host::matrix_place(lane, half, kind == 4);
  return at.row * 256 + at.column;
}

const char* halo_ldmatrix(uint32_t* r, const uint32_t* address, int transposed, const uint8_t* shared,
                          int bytes) {
  return guarded([&] {
    Machine machine(shared, bytes);
    LanesU at[1], out[4];
    read(at, address);
    machine.host.load(out, at[0], transposed != 0);
    std::memcpy(r, out, sizeof out);
  });
}

const char* halo_mma(float* d, const uint32_t* a, const uint32_t* b) {
  return guarded([&] {
    Machine machine(nullptr, 0);
    LanesU left[4], right[2];
    LanesF sums[4];
    read(left, a);
    read(right, b);
    read(sums, d);
    machine.host.multiply(sums, left, right[0], right[1]);
    std::memcpy(d, sums, sizeof sums);
  });
}

// One warp's part of wgmma, m64n64k16; span: bytes of the swizzle, 64 or 128.
const char* halo_wgmma(int span, float* d, const uint32_t* a, uint32_t weights, const uint8_t* shared,
                       int bytes) {
  return guarded([&] {
    Machine machine(shared, bytes);
    if (span == 128)
      product<whv64k>(machine, d, a, weights);
    else
      product<whv64>(machine, d, a, weights);
  });
}

// Byte of a 16-byte chunk of a row (a pixel, an orbit): 0 as the copy engine and wgmma have it, 1 as the
// kernels read boxes, 2 as the pre-pass writes the weights of tap 0.
int halo_chunk(int kind, int span, int row, int chunk) {
  const int plain = row * span + chunk * 16;
  if (kind == 0) return engine_swizzle(plain, span);
  if (span == 64) return kind == 1 ? swizzled<whv64>(plain) : weight_address<whv64>(0, row, chunk);
  return kind == 1 ? swizzled<whv64k>(plain) : weight_address<whv64k>(0, row, chunk);
}

// The window of tap column kw and row t that a warp of whv64k (128) or whv64 (64) loads for one step of 16
// channels, 8 x 16 pixels and a halo of one.
const char* halo_box_window(int span, uint32_t* a, int warp, int step, int kw, int t, const uint8_t* shared,
                            int bytes) {
  return guarded([&] {
    Machine machine(shared, bytes);
    if (span == 128)
      window<whv64k>(machine, a, warp, step, kw, t);
    else
      window<whv64>(machine, a, warp, step, kw, t);
  });
}

// The same of h32s, whose tile has a swizzle of its own: filled here with 32 * pixel + channel; and the
// weights of tap 0, filled with 32 * orbit + channel, 4 registers of each 16 orbits.
const char* halo_tile_window(uint32_t* a, uint32_t* b, int warp, int step, int kw, int t) {
  return guarded([&] {
    using T = h32s;
    std::vector<uint8_t> memory(T::kStageBytes, 0xff);
    const auto put = [&](int address, int value) {
      const auto id = static_cast<uint16_t>(value);
      std::memcpy(&memory[address], &id, 2);
    };
    for (int pixel = 0; pixel < T::kHalo; ++pixel)
      for (int c = 0; c < T::kChannels; ++c)
        put(halo_address<T, int>(pixel / T::kPitch, pixel % T::kPitch, c / 8, 0) + c % 8 * 2, 32 * pixel + c);
    for (int orbit = 0; orbit < T::kOrbits; ++orbit)
      for (int c = 0; c < T::kChannels; ++c)
        put(T::kHaloBytes + weight_address<T, int>(0, orbit, c / 8) + c % 8 * 2, 32 * orbit + c);
    Machine machine(memory.data(), T::kStageBytes);
    const Addresses<Host, T> at(machine.host, warp);
    Warp<Host, T> sums;
    LanesU r[4], right[T::kBlocks8 / 2][4];
    sums.load_window(machine.host, r, at.column[kw] ^ (step * 32), t);
    sums.load_weights(machine.host, right, at.weight ^ (step * 32), 0);
    std::memcpy(a, r, sizeof r);
    std::memcpy(b, right, sizeof right);
  });
}
}
