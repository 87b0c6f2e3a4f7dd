// What the patch and Hopper kernels' own addresses find in shared memory, on the stand-in for a GPU, as a
// library: a test holds it against layouts from elsewhere. Registers are arrays [register][lane]; a call
// returns the stand-in's text, which is empty if all is well.
#include "hopper/tiles.h"
#include "hopperdgrad/tiles.h"
#include "patch/tiles.h"
#include "patch/warp.h"

namespace symconv {
namespace {

using Narrow = Boxes<Tile<4, 2, 64, 8, 16, 1, 1, 32, 4, 1>>;  // 64 bytes of a pixel
using Wide = whv64k;                                          // 128
using Slices = gh128p;                                        // 32

struct Call {
  const uint32_t* shared;
  uint32_t* registers;
  int bytes, warp, step, kw, t;
};

void put(uint32_t* to, int index, const uint32_t (&r)[4]) {
  for (int e = 0; e < 4; ++e) global_store4(to + (index * 4 + e) * 32 + lane(), r[e]);
}

// The window of tap column kw and row t that a warp loads of a box.
template <class T>
__global__ void box_window(const __grid_constant__ Call c) {
  const uint32_t start = (shared_memory() + 1023) / 1024 * 1024;
  for (int i = lane(); i < c.bytes / 4; i += 32) shared_store(start + i * 4, global_load4(c.shared + i));
  barrier();
  GroupWarp<T, Bfloat16> warp;
  warp.locate(c.warp);
  uint32_t a[4];
  warp.load_window(a, start, c.step, c.kw, c.t);
  put(c.registers, 0, a);
}

// The same of a tile that cp.async fills, here with 32 * pixel + channel; and the weights of tap 0, filled
// with 32 * orbit + channel.
template <class T>
__global__ void tile_window(const __grid_constant__ Call c) {
  const uint32_t start = shared_memory();
  const auto fill = [](uint32_t address, int id) { shared_store(address, id | (id + 1) << 16); };
  for (int i = lane(); i < T::kHalo * 16; i += 32)
    fill(start + halo_address<T>(i / 16 / T::kPitch, i / 16 % T::kPitch, i % 16 / 4, 0) + i % 4 * 4, i * 2);
  for (int i = lane(); i < T::kOrbits * 16; i += 32)
    fill(start + T::kHaloBytes + weight_address<T>(0, i / 16, i % 16 / 4) + i % 4 * 4, i * 2);
  barrier();
  const Addresses<T> at(start, c.warp);
  Warp<T, Bfloat16> warp;
  uint32_t a[4], b[T::kBlocks8 / 2][4];
  warp.load_window(a, at.column[c.kw] ^ (c.step * 32), c.t);
  warp.load_weights(b, at.weight ^ (c.step * 32), 0);
  put(c.registers, 0, a);
  for (int j = 0; j < T::kBlocks8 / 2; ++j) put(c.registers, 1 + j, b[j]);
}

std::string said;

const char* run(void (*kernel)(Call), const Call& c, int registers, int shared_bytes) {
  host::forget_buffers();
  if (c.bytes) host::register_buffer(c.shared, c.bytes, false);
  host::register_buffer(c.registers, registers * 128, true);
  said = launch(kernel, 1, 32, shared_bytes, Queue{}, c);
  host::forget_buffers();
  return said.c_str();
}

}  // namespace
}  // namespace symconv

using namespace symconv;

extern "C" {

// Byte of a 16-byte chunk of a row (a pixel, an orbit): 0 as the stand-in's copy engine and products have it,
// 1 as the kernels read boxes, 2 as the weights of tap 0 are packed.
int chunk_at(int kind, int span, int row, int chunk) {
  const int plain = row * span + chunk * 16;
  if (kind == 0) return static_cast<int>(host::engine_swizzle(plain, span));
  if (span == 32) return kind == 1 ? swizzled<Slices>(plain) : weight_address<Slices>(0, row, chunk);
  if (span == 64) return kind == 1 ? swizzled<Narrow>(plain) : weight_address<Narrow>(0, row, chunk);
  return kind == 1 ? swizzled<Wide>(plain) : weight_address<Wide>(0, row, chunk);
}

const char* window_of_a_box(int span, uint32_t* a, int warp, int step, int kw, int t, const uint32_t* shared,
                            int bytes) {
  const Call c{shared, a, bytes, warp, step, kw, t};
  const auto kernel = span == 32 ? box_window<Slices> : span == 64 ? box_window<Narrow> : box_window<Wide>;
  return run(kernel, c, 4, bytes + 1024);
}

// A of h32s, and behind it its weights, four registers of each 16 orbits.
const char* window_of_a_tile(uint32_t* registers, int warp, int step, int kw, int t) {
  return run(tile_window<h32s>, Call{nullptr, registers, 0, warp, step, kw, t}, 12, h32s::kStageBytes);
}
}
