// What the checks on the host share: random layers, their packed weights, and the plain convolution.
#pragma once
#include <random>

#include "halo_host.h"

namespace halo {

struct Data {
  std::vector<uint16_t> x, w;
  std::vector<float> bias;
};

inline Data random_layer(const Problem& p, int members) {
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

}  // namespace halo
