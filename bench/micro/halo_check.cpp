// Runs the halo-tile kernels' own addresses, fragments and epilogue on the host and compares with a plain
// convolution.
#include <algorithm>
#include <cstdio>
#include <random>

#include "halo_host.h"
#include "halo_variants.h"
#include "halo_warp.h"

namespace {

using namespace halo;

struct Data {
  std::vector<uint16_t> x, w;
  std::vector<float> bias;
};

Data random_data(const Problem& p, int members) {
  std::mt19937 engine(7);
  std::normal_distribution<float> normal;
  Data d;
  d.x.resize(size_t(p.batch) * p.height * p.width * p.channels);
  d.w.resize(size_t(p.orbits) * p.channels * 9);
  d.bias.resize(members * p.orbits);
  for (auto& v : d.x) v = to_bf16(normal(engine));
  for (auto& v : d.w) v = to_bf16(normal(engine) / std::sqrt(9.0f * p.channels));
  for (auto& v : d.bias) v = normal(engine);
  return d;
}

template <class T>
std::vector<uint8_t> packed_weights(const Problem& p, const Data& d) {
  std::vector<uint8_t> image(size_t(p.orbit_blocks) * p.steps * T::kWeightBytes, 0);
  for (int u = 0; u < p.orbits; ++u)
    for (int c = 0; c < p.channels; ++c) {
      float w[9];
      for (int k = 0; k < 9; ++k) w[k] = to_float(d.w[(size_t(u) * p.channels + c) * 9 + k]);
      uint8_t* tile = &image[(size_t(u / T::kOrbits) * p.steps + c / T::kChannels) * T::kWeightBytes];
      const int row = weight_row<T>(u % T::kOrbits), channel = c % T::kChannels;
      for (int tap = 0; tap < kTaps; ++tap) {
        const uint16_t value = to_bf16(folded(T::kTie, tap, w));
        std::memcpy(tile + weight_address<T, int>(tap, row, channel / 8) + channel % 8 * 2, &value, 2);
      }
    }
  return image;
}

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
            swizzled<T, uint32_t>(patch * T::kPatchBytes + pixel * T::kPixelBytes + chunk * 16);
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
  long loads = 0;
  const Host machine{&shared, &y, &loads};
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
  long loads = 0;
  const Host machine{&shared, &y, &loads};
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

// Root mean square of the error over that of the output.
template <class T>
double error(const Problem& p, const Data& d, const std::vector<uint16_t>& y) {
  double wrong = 0, size = 0;
  for (int n = 0; n < p.batch; ++n)
    for (int r = 0; r < p.height; ++r)
      for (int q = 0; q < p.width; ++q)
        for (int g = 0; g < T::kMembers; ++g)
          for (int u = 0; u < p.orbits; ++u) {
            double sum = d.bias[g * p.orbits + u];
            for (int k = 0; k < 9; ++k) {
              const int kh = k / 3, kw = k % 3, i = r + kh - 1, j = q + kw - 1;
              if (i < 0 || i >= p.height || j < 0 || j >= p.width) continue;
              const int tap = ((g & 2) ? 2 - kh : kh) * 3 + ((g & 1) ? 2 - kw : kw);
              for (int c = 0; c < p.channels; ++c)
                sum += double(to_float(d.x[((size_t(n) * p.height + i) * p.width + j) * p.channels + c])) *
                       to_float(d.w[(size_t(u) * p.channels + c) * 9 + tap]);
            }
            const size_t at = (((size_t(n) * p.height + r) * p.width + q) * T::kMembers + g) * p.orbits + u;
            const double got = to_float(y[at]);
            if (!(std::fabs(got - sum) < 1)) return INFINITY;  // NaN: not written
            wrong += (got - sum) * (got - sum);
            size += sum * sum;
          }
  return std::sqrt(wrong / size);
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
    const Data d = random_data(p, T::kMembers);
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
} catch (const halo::Fault& fault) {
  std::fprintf(stderr, "%s\n", fault.what());
  return 1;
}
