// Runs the halo-tile kernels' own addresses, fragments and epilogue on the host and compares with a plain
// convolution.
#include <algorithm>
#include <cstdio>

#include "halo_host.h"
#include "halo_reference.h"
#include "halo_variants.h"
#include "halo_warp.h"

namespace {

using namespace halo;

template <class T>
void load_stage(const Problem& p, int tile, int step, const Data& d, const std::vector<uint8_t>& weights,
                std::vector<uint8_t>& shared) {
  std::fill(shared.begin(), shared.end(), 0xff);
  for (int i = 0; i < T::kHaloChunks; ++i) {
    const Copy copy = copy_at<T>(p, tile, i);
    if (copy.target < 0 || copy.target + 16 > T::kHaloBytes) fail("copy outside of the tile");
    if (copy.source < 0)
      std::memset(&shared[copy.target], 0, 16);
    else
      std::memcpy(&shared[copy.target], &d.x.at((size_t(copy.source) + step * T::kChunks) * 8), 16);
  }
  const size_t from = (size_t(tile % p.orbit_blocks) * p.steps + step) * T::kWeightBytes;
  std::memcpy(&shared[T::kHaloBytes], &weights[from], T::kWeightBytes);
}

// The same by the copy engine: boxes of the map, zeros outside of it, swizzled by the bits of the address.
template <class T>
void copy_boxes(const Problem& p, int tile, int step, const Data& d, std::vector<uint8_t>& shared) {
  for (int patch = 0; patch < T::kPatches; ++patch) {
    const Patch at = patch_at<T>(p, tile, patch);
    for (int pixel = 0; pixel < T::kPatchPixels; ++pixel)
      for (int chunk = 0; chunk < T::kChunks; ++chunk) {
        const int y = at.row - 1 + pixel / T::kPitch, x = at.column - 1 + pixel % T::kPitch;
        const uint32_t to =
            engine_swizzle(patch * T::kPatchBytes + pixel * T::kPixelBytes + chunk * 16, T::kPixelBytes);
        if (at.image < 0 || y < 0 || y >= p.height || x < 0 || x >= p.width)
          std::memset(&shared[to], 0, 16);
        else
          std::memcpy(&shared[to],
                      &d.x[((size_t(at.image) * p.height + y) * p.width + x) * p.channels +
                           step * T::kChannels + chunk * 8],
                      16);
      }
  }
}

template <class T>
std::vector<uint16_t> run_groups(const Problem& p, const Data& d) {
  std::vector<uint16_t> y(size_t(p.batch) * p.height * p.width * T::kMembers * p.orbits, 0xffff);
  std::vector<uint8_t> shared(T::kStageBytes);
  const Host machine{&shared, &y};
  const auto weights = packed_weights<T>(p, d);
  for (int i = 0; i < works<T>(p) * T::kCluster; ++i) {
    const int tile = tile_of<T>(p, i / T::kCluster, i % T::kCluster);
    std::vector<GroupWarp<Host, T>> warps(T::kPixelWarps);
    for (int w = 0; w < T::kPixelWarps; ++w) {
      warps[w].clear();
      warps[w].locate(machine, w);
    }
    for (int step = 0; step < p.steps; ++step) {
      std::fill(shared.begin(), shared.end(), 0xff);
      copy_boxes<T>(p, tile, step, d, shared);
      const size_t from = (size_t(tile % p.orbit_blocks) * p.steps + step) * T::kWeightBytes;
      std::memcpy(&shared[T::kHaloBytes], &weights[from], T::kWeightBytes);
      for (auto& warp : warps) warp.multiply(machine, 0);
    }
    for (int w = 0; w < T::kPixelWarps; ++w) warps[w].store(machine, p, tile, w, d.bias.data(), nullptr);
  }
  return y;
}

template <class T>
std::vector<uint16_t> run(const Problem& p, const Data& d) {
  std::vector<uint16_t> y(size_t(p.batch) * p.height * p.width * T::kMembers * p.orbits, 0xffff);
  std::vector<uint8_t> shared(T::kStageBytes);
  const Host machine{&shared, &y};
  const auto weights = packed_weights<T>(p, d);
  for (int tile = 0; tile < p.tiles; ++tile) {
    std::vector<Warp<Host, T>> warps(T::kWarps);
    for (auto& warp : warps) warp.clear();
    for (int step = 0; step < p.steps; ++step) {
      load_stage<T>(p, tile, step, d, weights, shared);
      for (int w = 0; w < T::kWarps; ++w)
        for (int k = 0; k < T::kChannels / 16; ++k)
          warps[w].multiply(machine, Addresses<Host, T>(machine, w), 0, k);
    }
    for (int w = 0; w < T::kWarps; ++w) warps[w].store(machine, p, tile, w, d.bias.data(), nullptr);
  }
  return y;
}

template <class T>
auto result(const Problem& p, const Data& d, int) -> decltype(T::kPatchBytes, std::vector<uint16_t>()) {
  return run_groups<T>(p, d);
}

template <class T>
std::vector<uint16_t> result(const Problem& p, const Data& d, long) {
  return run<T>(p, d);
}

template <class T>
bool check(const char* name) {
  struct Size {
    int batch, height, width, channels, orbits;
  };
  const int stage = T::kChannels;
  const Size sizes[] = {{1, 1, 1, stage, 8},
                        {2, 7, 9, 2 * stage, T::kOrbits},
                        {1, 17, 19, stage, T::kOrbits + 8},
                        {3, 8, 5, 3 * stage, 40}};
  bool right = true;
  for (const Size& s : sizes) {
    const Problem p = problem<T>(s.batch, s.height, s.width, s.channels, s.orbits);
    const Data d = random_layer(p, T::kMembers);
    const double e = error<T>(p, d, result<T>(p, d, 0));
    const bool good = e < 0.005;
    right = right && good;
    std::printf("%-6s %d x %d x %d, %d channels, %d orbits: error %.5f%s\n", name, s.batch, s.height, s.width,
                s.channels, s.orbits, e, good ? "" : "  WRONG");
  }
  return right;
}

}  // namespace

int main() try {
  bool right = true;
#define CHECK(name) right = check<name>(#name) && right
  CHECK(h32s);
  CHECK(hv16);
  CHECK(wh64p);
  CHECK(whv32);
#ifndef HALO_FEW
  CHECK(h64);
  CHECK(h64p);
  CHECK(h32);
  CHECK(h32p);
  CHECK(h32sp);
  CHECK(hv32);
  CHECK(hv32p);
  CHECK(hv16p);
  CHECK(wh64);
  CHECK(wh64q);
  CHECK(wh64k);
  CHECK(wh64c);
  CHECK(wh64qc);
  CHECK(wh64pf);
  CHECK(wh64qf);
  CHECK(wh128);
  CHECK(wh128f);
  CHECK(wh128r);
  CHECK(wh32);
  CHECK(wh32p);
  CHECK(whv64);
  CHECK(whv64p);
  CHECK(whv64q);
  CHECK(whv64k);
  CHECK(whv64r);
  CHECK(whv64c);
  CHECK(whv64qc);
  CHECK(whv64qkc);
  CHECK(whv64pf);
  CHECK(whv64kf);
  CHECK(whv32p);
  CHECK(whv32qc);
#endif
  return right ? 0 : 1;
} catch (const std::exception& fault) {
  std::fprintf(stderr, "%s\n", fault.what());
  return 1;
}
