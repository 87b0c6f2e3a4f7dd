// Output of depthwise layers: mirrored columns of the input are added and subtracted once for all rows of
// taps.
//
// A thread has kRun outputs along the axis that is not folded. Of a pair of mirrored taps of the folded axis
// it reads each row of its window once, keeps kRun of them in registers, and multiplies each with the taps of
// that column. A tie of the other axis is a second set of sums, with the taps in reverse.
#pragma once
#include "activation.h"
#include "depthwise/window.cuh"

namespace symconv {
namespace {

// Weights of one row of all channels of the CTA: [column][tap of a column][even, odd][channel], float32. Of a
// fold there are a column for each pair of taps and one for the centre, which has its own weight in place of
// the even part.
template <class T, bool FOLD>
__device__ __forceinline__ void stage_weights(const DepthwiseDevice& p, const DepthwisePlace& at, int folded,
                                              int row, const void* w, uint32_t to) {
  const int across = p.axis[folded].taps, along = p.axis[folded ^ 1].taps;
  const int columns = FOLD ? (across + 1) / 2 : across;
  const int64_t base = at.channel * p.w_group + row * p.w_row;
  for (int i = thread(); i < columns * along * at.channels; i += threads()) {
    const int j = i % columns, k = i / columns % along, c = i / (columns * along);
    const int64_t from = base + c * p.w_group + k * p.w_tap[folded ^ 1];
    const uint32_t place = to + (j * along + k) * (FOLD ? 2 : 1) * weight_bytes(p) + 4 * c;
    const float a = load_element<T>(w, from + j * p.w_tap[folded]);
    if (!FOLD || 2 * j + 1 == across) {
      shared_put(place, a);
    } else {
      const float b = load_element<T>(w, from + (across - 1 - j) * p.w_tap[folded]);
      shared_put(place, 0.5f * (a + b));
      shared_put(place + weight_bytes(p), 0.5f * (a - b));
    }
  }
}

// Where the weights of a column are: of tap k at w + k * step, with the odd part `odd` bytes behind.
struct DepthwiseColumn {
  uint32_t w;
  int step, odd;
};

// One column of taps, or a pair of mirrored ones, `left` and `right` being where their first tap meets the
// input.
template <bool FOLD, bool TWO>
__device__ __forceinline__ void add_column(float (&sums)[2][2][kRun], const DepthwiseAxis& s, uint32_t left,
                                           uint32_t right, const DepthwiseColumn& column) {
  const int roll = s.row_step * s.step, next = s.tap_step * column.step;
  for (int phase = 0; phase < s.tap_step && phase < s.taps; ++phase) {
    uint32_t l = left + phase * s.dilation * s.step, r = right + phase * s.dilation * s.step;
    uint32_t w = column.w + phase * column.step, w_back = column.w + (s.taps - 1 - phase) * column.step;
    const int count = (s.taps - 1 - phase) / s.tap_step + 1;
    float even[kRun], odd[kRun];
    const auto read = [&](int slot) {
      even[slot] = shared_float(l);
      if (FOLD) {
        const float b = shared_float(r);
        odd[slot] = even[slot] - b;
        even[slot] += b;
      }
      l += roll;
      r += roll;
    };
#pragma unroll
    for (int i = 0; i < kRun - 1; ++i) read(i);
    for (int first = 0; first < count; first += kRun) {
#pragma unroll
      for (int u = 0; u < kRun; ++u) {
        if (first + u >= count) break;
        read((u + kRun - 1) % kRun);
        float e[2], o[2];
        e[0] = shared_float(w);
        if (FOLD) o[0] = shared_float(w + column.odd);
        if (TWO) {
          e[1] = shared_float(w_back);
          if (FOLD) o[1] = shared_float(w_back + column.odd);
        }
        w += next;
        w_back -= next;
#pragma unroll
        for (int two = 0; two < (TWO ? 2 : 1); ++two) {
#pragma unroll
          for (int i = 0; i < kRun; ++i) {
            sums[0][two][i] += even[(u + i) % kRun] * e[two];
            if (FOLD) sums[1][two][i] += odd[(u + i) % kRun] * o[two];
          }
        }
      }
    }
  }
}

// Where the outputs of a thread are, and what is done to them.
struct DepthwiseOutputs {
  void* y;
  const void* bias;
  int64_t at;       // index of the first pixel in channel 0 of the group
  int64_t step;     // from one output to the next
  int count;        // of outputs that exist
  int64_t channel;  // number of the group's first channel
};

// Members side by side, in one store of 4, 8 or 16 bytes.
template <class T, int N>
__device__ __forceinline__ void store_members(void* y, int64_t index, const float (&v)[N]) {
  char* const to = static_cast<char*>(y) + index * T::kBytes;
  if constexpr (N * T::kBytes == 4) {
    global_store4(to, pack2<T>(v[0], v[1]));
  } else if constexpr (N == 2) {
    global_store8(to, make_uint2(__float_as_uint(v[0]), __float_as_uint(v[1])));
  } else if constexpr (T::kBytes == 2) {
    global_store8(to, make_uint2(pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3])));
  } else {
    global_store16(to, make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]),
                                  __float_as_uint(v[3])));
  }
}

// The butterfly of the parities, bias, activation, one rounding.
template <class T, bool FOLD, bool TWO>
__device__ __forceinline__ void store_outputs(const DepthwiseDevice& p, const DepthwiseSegment& segment,
                                              int row, float (&sums)[2][2][kRun],
                                              const DepthwiseOutputs& out) {
  constexpr int members = (FOLD ? 2 : 1) * (TWO ? 2 : 1);
  float bias[members] = {};
  int64_t places[members];
#pragma unroll
  for (int n = 0; n < members; ++n) {
    const int channel = member_channel(segment, row, n);
    if (p.bias) bias[n] = load_element<T>(out.bias, out.channel + channel);
    places[n] = out.at + channel * p.y.c;
  }
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    if (i >= out.count) break;
    float v[members];
#pragma unroll
    for (int two = 0; two < (TWO ? 2 : 1); ++two) {
      const float e = sums[0][two][i], o = FOLD ? sums[1][two][i] : 0.0f;
      v[two * (FOLD ? 2 : 1)] = e + o;
      if (FOLD) v[two * 2 + 1] = e - o;
    }
#pragma unroll
    for (int n = 0; n < members; ++n) v[n] += bias[n];
    activate(v, p.activation);
    if (members > 1 && p.adjacent) {
      if constexpr (members > 1) store_members<T>(out.y, places[0] + i * out.step, v);
    } else {
#pragma unroll
      for (int n = 0; n < members; ++n) store_element<T>(out.y, places[n] + i * out.step, v[n]);
    }
  }
}

// All outputs of the CTA of one row of weights.
template <class T, bool FOLD, bool TWO>
__device__ __forceinline__ void fprop_row(const DepthwiseDevice& p, const DepthwisePlace& at, int folded,
                                          const DepthwiseSegment& segment, int row, uint32_t window,
                                          const void* w, const void* bias, void* y) {
  const DepthwiseAxis &f = p.axis[folded], &s = p.axis[folded ^ 1];
  const uint32_t weights = shared_memory() + p.weights;
  barrier();  // all have done with the weights from before, and the window is there
  stage_weights<T, FOLD>(p, at, folded, segment.row + row, w, weights);
  barrier();
  const int strips = s.tile / kRun;
  for (int unit = thread(); unit < p.block * f.tile * strips * at.images; unit += threads()) {
    const int c = unit % p.block;
    int rest = unit / p.block;
    const int across = rest % f.tile;
    rest /= f.tile;
    const int strip = rest % strips, image = rest / strips;
    const int along = strip % s.output_step + strip / s.output_step * kRun * s.output_step;
    const int from_f = folded ? at.origin[1] : at.origin[0], from_s = folded ? at.origin[0] : at.origin[1];
    const int left_over = s.y - from_s - along;
    if (c >= at.channels || from_f + across >= f.y || left_over <= 0) continue;
    const uint32_t here =
        window + image * p.window_image + 4 * c + across * f.stride * f.step + along * s.stride * s.step;
    DepthwiseColumn column{weights + 4 * c, weight_bytes(p) * (FOLD ? 2 : 1), weight_bytes(p)};
    float sums[2][2][kRun] = {};
    const int columns = FOLD ? f.taps / 2 : f.taps;
    for (int j = 0; j < columns; ++j) {
      add_column<FOLD, TWO>(sums, s, here + j * f.dilation * f.step,
                            here + (f.taps - 1 - j) * f.dilation * f.step, column);
      column.w += s.taps * column.step;
    }
    if (FOLD && f.taps % 2) add_column<false, TWO>(sums, s, here + columns * f.dilation * f.step, 0, column);
    const int64_t stride_f = folded ? p.y.y : p.y.x, stride_s = folded ? p.y.x : p.y.y;
    const int64_t group = static_cast<int64_t>(at.channel + c) * p.filters;
    const int64_t first = (at.image + image) * p.y.n + group * p.y.c;
    const DepthwiseOutputs out{y,
                               bias,
                               first + (from_f + across) * stride_f + (from_s + along) * stride_s,
                               stride_s * s.output_step,
                               (left_over - 1) / s.output_step + 1,
                               group};
    store_outputs<T, FOLD, TWO>(p, segment, row, sums, out);
  }
}

}  // namespace

template <class T>
__global__ void __launch_bounds__(kFpropThreads, 3)
    depthwise_fprop(const __grid_constant__ DepthwiseDevice p, const void* x, const void* w, const void* bias,
                    void* y) {
  const int blocks_of_channels = channel_blocks(p);
  const DepthwisePlace at = place_of(p, block() / blocks_of_channels, block() % blocks_of_channels);
  const DepthwiseAxis &width = p.axis[0], &height = p.axis[1];
  const int left = at.origin[0] * width.stride - width.padding;
  const int lead = lead_of(p, left);
  const DepthwiseMap map{
      x,         at.image * p.x.n + at.channel * p.x.c,         p.x,        height.x, width.x, at.channels,
      at.images, at.origin[1] * height.stride - height.padding, left - lead};
  fill<T, false>(p.window, map, p, shared_memory(), height.step, width.step, 0, 0);
  const uint32_t window = shared_memory() + lead * width.step;
  for (int i = 0; i < p.segments; ++i) {
    const DepthwiseSegment segment = p.segment[i];
    for (int row = 0; row < segment.rows; ++row) {
      if (segment.mask == 3)
        fprop_row<T, true, true>(p, at, 0, segment, row, window, w, bias, y);
      else if (segment.mask == 0)
        fprop_row<T, false, false>(p, at, 0, segment, row, window, w, bias, y);
      else if (segment.mask == 1 || p.swap)
        fprop_row<T, true, false>(p, at, segment.mask - 1, segment, row, window, w, bias, y);
      else
        fprop_row<T, false, true>(p, at, 0, segment, row, window, w, bias, y);
    }
  }
}

}  // namespace symconv
