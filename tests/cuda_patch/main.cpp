// Runs one tile of the patch or Hopper kernels on the stand-in for a GPU and compares with a plain
// convolution in float64. -DTILE names the tile, -DELEMENT the type, -DHOPPER the family. The exit code is 1
// if a result is wrong or the stand-in saw a fault, which is printed.
#include <cmath>
#include <cstdio>
#include <random>
#include <type_traits>
#include <vector>

#ifdef HOPPER
#include "hopper/kernels.cuh"
#else
#include "patch/kernels.cuh"
#endif

namespace symconv {
namespace {

using T = TILE;
using E = ELEMENT;

struct Sizes {
  int batch, height, width, groups, channels, orbits, mask;
};

// Values that the type holds, in memory that kernels may reach.
struct Tensor {
  std::vector<uint128> memory;
  uint16_t* data;

  template <class Make>
  Tensor(size_t elements, bool writable, Make make) : memory(elements / 8 + 1) {
    data = reinterpret_cast<uint16_t*>(memory.data());
    for (size_t i = 0; i < elements; ++i) data[i] = static_cast<uint16_t>(pack2<E>(make(), 0.0f));
    host::register_buffer(data, int64_t(elements) * 2, writable);
  }
  double operator[](size_t i) const { return low_of<E>(data[i]); }
};

#ifdef HOPPER
using Params = HopperParams;
std::string run(const Params& p, const Pointers& pointers) { return hopper_run<T, E>(p, pointers, {}); }
#else
using Params = PatchParams;
std::string run(const Params& p, const Pointers& pointers) { return patch_run<T, E>(p, pointers, {}); }
#endif

Params params_of(const Sizes& s) {
  Params p;
  p.batch = s.batch, p.depth = 1, p.height = s.height, p.width = s.width;
  p.dtype = std::is_same_v<E, Float16>, p.groups = s.groups, p.channels = s.channels, p.orbits = s.orbits;
  p.mask = s.mask;
  p.x_x = s.groups * s.channels, p.x_y = p.x_x * s.width, p.x_z = p.x_n = p.x_y * s.height;
  p.y_x = s.groups * T::kMembers * s.orbits, p.y_y = p.y_x * s.width, p.y_z = p.y_n = p.y_y * s.height;
  p.w_x = 1, p.w_y = 3, p.w_channel = 9, p.w_row = 9 * s.channels, p.w_group = p.w_row * s.orbits;
  return p;
}

// One value of the output, by definition.
double convolved(const Sizes& s, const Tensor& x, const Tensor& w, int n, int row, int column, int group,
                 int mirrored, int orbit) {
  double sum = 0;
  for (int k = 0; k < kTaps; ++k) {
    const int kh = k / 3, kw = k % 3, i = row + kh - 1, j = column + kw - 1;
    if (i < 0 || i >= s.height || j < 0 || j >= s.width) continue;
    const int tap = (mirrored & 2 ? 2 - kh : kh) * 3 + (mirrored & 1 ? 2 - kw : kw);
    const size_t pixel = (size_t(n) * s.height + i) * s.width + j;
    for (int c = 0; c < s.channels; ++c)
      sum += x[pixel * s.groups * s.channels + group * s.channels + c] *
             w[((size_t(group) * s.orbits + orbit) * s.channels + c) * 9 + tap];
  }
  return sum;
}

// Root mean square of the error over that of the output; infinite if a value is far off or not written.
double error_of(const Sizes& s, const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& y) {
  double wrong = 0, size = 0;
  size_t at = 0;
  for (int n = 0; n < s.batch; ++n)
    for (int row = 0; row < s.height; ++row)
      for (int column = 0; column < s.width; ++column)
        for (int group = 0; group < s.groups; ++group)
          for (int member = 0; member < T::kMembers; ++member)
            for (int orbit = 0; orbit < s.orbits; ++orbit, ++at) {
              const int mirrored = s.mask == 2 ? 2 * member : member;
              const int channel = (group * T::kMembers + member) * s.orbits + orbit;
              const double want = convolved(s, x, w, n, row, column, group, mirrored, orbit) + bias[channel];
              if (!(std::fabs(y[at] - want) < 1)) return INFINITY;
              wrong += (y[at] - want) * (y[at] - want);
              size += want * want;
            }
  return std::sqrt(wrong / size);
}

bool check(const Sizes& s, unsigned order) {
  host::set_seed(order);
  host::forget_buffers();
  std::mt19937 engine(7);
  std::normal_distribution<float> normal;
  const auto random = [&] { return normal(engine); };
  const auto small = [&] { return normal(engine) / std::sqrt(9.0f * s.channels); };
  const auto nan = [] { return NAN; };
  const Params p = params_of(s);
  const Tensor x(size_t(p.x_n) * s.batch, false, random), w(size_t(p.w_group) * s.groups, false, small);
  const Tensor bias(size_t(p.y_x), false, random);
  Tensor y(size_t(p.y_n) * s.batch, true, nan);
  const int64_t blocks = s.groups * whole_blocks(s.orbits, T::kOrbits);
  Tensor work(blocks * whole_blocks(s.channels, T::kChannels) * T::kWeightBytes / 2, true, nan);
  const std::string fault = run(p, {x.data, w.data, bias.data, y.data, work.data});
  if (!fault.empty()) std::printf("FAULT %s\n", fault.c_str());
  const double error = fault.empty() ? error_of(s, x, w, bias, y) : INFINITY;
  const bool right = error < (std::is_same_v<E, Float16> ? 0.0007 : 0.005);
  std::printf("%d x %d x %d, %d groups of %d channels, %d orbits, mask %d, order %u: error %.5f%s\n", s.batch,
              s.height, s.width, s.groups, s.channels, s.orbits, s.mask, order, error,
              right ? "" : "  WRONG");
  return right;
}

// More stages than the ring has, several tiles a CTA, sizes that fill none; every order that matters.
bool check_all() {
  host::set_multiprocessors(1);
  constexpr int stage = T::kChannels, mask = T::kMembers == 4 ? 3 : 1, other = T::kMembers == 4 ? 3 : 2;
  bool right = true;
  for (unsigned order = 0; right && order < 4; ++order) {
    right = check({1, 5, 9, 1, (T::kStages + 1) * stage, 8, mask}, order);
    right = right && check({3, 9, 5, 1, 2 * stage, T::kOrbits + 8, other}, order);
  }
  right = right && check({1, 17, 19, 1, stage, T::kOrbits, mask}, 1);
  right = right && check({2, 4, 7, 2, 2 * stage, 12, other}, 1);
  return right && check({1, 3, 6, 1, stage + 8, 5, mask}, 1);
}

}  // namespace
}  // namespace symconv

int main() { return symconv::check_all() ? 0 : 1; }
