// Runs a kernel of the halo tiles as it stands, copies and barriers included, on the host stand-in of a
// cluster. -DHALO_SOURCE names its source, -DHALO_VARIANT the tile; -DHALO_WGMMA for those with tensor maps.
#include <algorithm>
#include <cstdio>
#include <functional>

#include "halo_cta.h"
#include HALO_SOURCE
#include "halo_reference.h"

namespace halo {
namespace {

#ifdef HALO_WGMMA
constexpr int kCtas = T::kCluster, kThreadsOfCta = kThreads;
#else
constexpr int kCtas = 1, kThreadsOfCta = T::kThreads;
#endif

template <class E>
Buffer buffer(const std::vector<E>& v) {
  return {reinterpret_cast<const uint8_t*>(v.data()), v.size() * sizeof(E)};
}

// The whole grid, a cluster after the other; `order` shuffles what a GPU may do in any order.
std::vector<uint16_t> launch(const Problem& p, const Data& d, unsigned order) {
  std::vector<uint16_t> y(size_t(p.batch) * p.height * p.width * T::kMembers * p.orbits, 0xffff);
  const auto weights = packed_weights<T>(p, d);
  const int grid = 2 * kCtas;
  std::function<void()> body;
#ifdef HALO_WGMMA
  CUtensorMap map;
  if (!tensor_map(encode_on_host, map, d.x.data(), p)) fail("the tensor map breaks a rule of the driver");
  body = [&] { forward(map, weights.data(), d.bias.data(), y.data(), p); };
#else
  body = [&] {
    forward(reinterpret_cast<const uint8_t*>(d.x.data()), weights.data(), d.bias.data(), y.data(), p);
  };
#endif
  for (int block = 0; block < grid; block += kCtas)
    run_cluster(block, kCtas, grid, kThreadsOfCta, T::kSharedBytes, order,
                {buffer(d.x), buffer(weights), buffer(d.bias)}, &y, body);
  return y;
}

// One and more stages than the ring has, several tiles a CTA, sizes that fill none.
bool check(int batch, int height, int width, int steps, int orbits, unsigned order) {
  const Problem p = problem<T>(batch, height, width, steps * T::kChannels, orbits);
  const Data d = random_layer(p, T::kMembers);
  const double e = error<T>(p, d, launch(p, d, order));
  const bool good = e < 0.005;
  std::printf("%d x %d x %d, %d channels, %d orbits, order %u: error %.5f%s\n", batch, height, width,
              p.channels, orbits, order, e, good ? "" : "  WRONG");
  return good;
}

}  // namespace
}  // namespace halo

int main() try {
  bool right = true;
  for (unsigned order = 0; order < 4; ++order) {
    right = halo::check(1, 5, 9, halo::T::kStages + 1, 8, order) && right;
    right = halo::check(3, 9, 5, 2, halo::T::kOrbits + 8, order) && right;
  }
  return right ? 0 : 1;
} catch (const halo::Fault& fault) {
  std::fprintf(stderr, "%s\n", fault.what());
  return 1;
}
