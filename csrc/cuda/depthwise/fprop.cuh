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

// Weights of one row of all channels of the CTA: [channel][column][even, odd][tap along], float32. Of a fold
// there are a column for each pair of taps and one for the centre, which has its own weight in place of the
// even part.
template <class T, bool FOLD>
__device__ __forceinline__ void stage_weights(const DepthwiseDevice& p, const DepthwisePlace& at, int row,
                                              const void* w, uint32_t to) {
  const int across = p.axis[0].taps, along = p.axis[1].taps, columns = FOLD ? (across + 1) / 2 : across;
  const int64_t base = at.channel * p.w_group + row * p.w_row;
  for (int i = thread(); i < columns * along * at.channels; i += threads()) {
    const int j = i % columns, k = i / columns % along, c = i / (columns * along);
    const int64_t from = base + c * p.w_group + k * p.axis[1].w_stride;
    const uint32_t place = to + (j * (FOLD ? 2 : 1) * along + k) * 4 + c * p.weights_channel;
    const float a = load_element<T>(w, from + j * p.axis[0].w_stride);
    if (!FOLD || 2 * j + 1 == across) {
      shared_put(place, a);
    } else {
      const float b = load_element<T>(w, from + (across - 1 - j) * p.axis[0].w_stride);
      shared_put(place, 0.5f * (a + b));
      shared_put(place + along * 4, 0.5f * (a - b));
    }
  }
}

// A thread's place in a column of taps: of the input left and right, of the taps, and of those in reverse.
// `roll` and `next` are the bytes from a row, or a tap, to the next one.
template <bool FOLD, bool TWO>
struct DepthwiseColumn {
  uint32_t left, right, w, back;
  int roll, next, odd;
  float even_rows[kRun], odd_rows[kRun];

  __device__ __forceinline__ void read(int slot, int row) {
    const float a = shared_float(left + row * roll);
    if (FOLD) {
      const float b = shared_float(right + row * roll);
      even_rows[slot] = a + b;
      odd_rows[slot] = a - b;
    } else {
      even_rows[slot] = a;
    }
  }

  // Tap number u from here, with the rows of all outputs.
  __device__ __forceinline__ void multiply(float (&sums)[2][2][kRun], int u) {
    read((u + kRun - 1) % kRun, u + kRun - 1);
    float e[2] = {}, o[2] = {};
    e[0] = shared_float(w + u * next);
    if (FOLD) o[0] = shared_float(w + u * next + odd);
    if (TWO) e[1] = shared_float(back - u * next);
    if (TWO && FOLD) o[1] = shared_float(back - u * next + odd);
#pragma unroll
    for (int two = 0; two < (TWO ? 2 : 1); ++two) {
#pragma unroll
      for (int i = 0; i < kRun; ++i) {
        sums[0][two][i] += even_rows[(u + i) % kRun] * e[two];
        if (FOLD) sums[1][two][i] += odd_rows[(u + i) % kRun] * o[two];
      }
    }
  }

  __device__ __forceinline__ void add(float (&sums)[2][2][kRun], int count) {
#pragma unroll
    for (int i = 0; i < kRun - 1; ++i) read(i, i);
    for (; count >= kRun; count -= kRun) {
#pragma unroll
      for (int u = 0; u < kRun; ++u) multiply(sums, u);
      left += kRun * roll, right += kRun * roll, w += kRun * next, back -= kRun * next;
    }
#pragma unroll
    for (int u = 0; u < kRun - 1; ++u) {
      if (u >= count) break;
      multiply(sums, u);
    }
  }
};

// Of the columns of taps that begin at `w`: one that meets the input at `left`, or a pair that meets it there
// and at `right`; further ones, `more` of them in all, meet it `across` bytes further in, from both ends.
template <bool FOLD, bool TWO, bool PLAIN>
__device__ __forceinline__ void add_columns(float (&sums)[2][2][kRun], const DepthwiseAxis& s, uint32_t left,
                                            uint32_t right, uint32_t w, int across, int more) {
  DepthwiseColumn<FOLD, TWO> column;
  column.odd = s.taps * 4;
  for (int phase = 0; phase < (PLAIN ? 1 : min(s.tap_step, s.taps)); ++phase) {
    const int count = PLAIN ? s.taps : (s.taps - 1 - phase) / s.tap_step + 1, ahead = count / kRun * kRun;
    column.roll = PLAIN ? 4 : s.row_step * 4;
    column.next = PLAIN ? 4 : s.tap_step * 4;
    column.left = left + phase * s.dilation * 4, column.right = right + phase * s.dilation * 4;
    column.w = w + phase * 4, column.back = w + (s.taps - 1 - phase) * 4;
    for (int j = 0; j < more; ++j) {
      column.add(sums, count);
      // Whole runs have moved it on along the column.
      column.left += across - ahead * column.roll;
      column.right -= across + ahead * column.roll;
      column.w += s.taps * (FOLD ? 8 : 4) - ahead * column.next;
      column.back += s.taps * (FOLD ? 8 : 4) + ahead * column.next;
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
    places[n] = out.at + channel * p.y_channel;
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
template <class T, bool FOLD, bool TWO, bool PLAIN>
__device__ __forceinline__ void fprop_row(const DepthwiseDevice& p, const DepthwisePlace& at,
                                          const DepthwiseSegment& segment, int row, uint32_t window,
                                          const void* w, const void* bias, void* y) {
  const DepthwiseAxis &f = p.axis[0], &s = p.axis[1];
  const uint32_t weights = shared_memory() + p.weights;
  barrier();  // all have done with the weights from before, and the window is there
  stage_weights<T, FOLD>(p, at, segment.row + row, w, weights);
  barrier();
  const int strips = s.tile / kRun;
  for (int unit = thread(); unit < p.block * f.tile * strips * at.images; unit += threads()) {
    const int c = unit % p.block;
    int rest = unit / p.block;
    const int across = rest % f.tile;
    rest /= f.tile;
    const int strip = rest % strips, image = rest / strips;
    const int along =
        PLAIN ? strip * kRun : strip % s.output_step + strip / s.output_step * kRun * s.output_step;
    const int left_over = s.y - at.along - along;
    if (c >= at.channels || at.across + across >= f.y || left_over <= 0) continue;
    const uint32_t here = window + image * p.window.image + c * p.window.channel +
                          across * f.stride * f.step + along * s.stride * 4;
    const uint32_t taps = weights + c * p.weights_channel;
    float sums[2][2][kRun] = {};
    const int columns = FOLD ? f.taps / 2 : f.taps, tap = f.dilation * f.step;
    add_columns<FOLD, TWO, PLAIN>(sums, s, here, here + (f.taps - 1) * tap, taps, tap, columns);
    if (FOLD && f.taps % 2)
      add_columns<false, TWO, PLAIN>(sums, s, here + columns * tap, 0, taps + columns * s.taps * 8, 0, 1);
    const int64_t group = static_cast<int64_t>(at.channel + c) * p.filters;
    const int64_t first = (at.image + image) * p.y_image + group * p.y_channel;
    const DepthwiseOutputs out{y,
                               bias,
                               first + (at.across + across) * f.y_stride + (at.along + along) * s.y_stride,
                               s.y_stride * s.output_step,
                               PLAIN ? left_over : (left_over - 1) / s.output_step + 1,
                               group};
    store_outputs<T, FOLD, TWO>(p, segment, row, sums, out);
  }
}

}  // namespace

// PLAIN: stride and dilation along are 1.
template <class T, bool PLAIN>
__global__ void __launch_bounds__(kFpropThreads, 3)
    depthwise_fprop(const __grid_constant__ DepthwiseDevice p, const void* x, const void* w, const void* bias,
                    void* y) {
  const int blocks_of_channels = channel_blocks(p);
  const DepthwisePlace at = place_of(p, block() / blocks_of_channels, block() % blocks_of_channels);
  const uint32_t window = fill_input<T>(p, at, x, shared_memory());
  for (int i = 0; i < p.segments; ++i) {
    const DepthwiseSegment segment = p.segment[i];
    for (int row = 0; row < segment.rows; ++row) {
      if (segment.mask == 3)
        fprop_row<T, true, true, PLAIN>(p, at, segment, row, window, w, bias, y);
      else if (segment.mask == 2)
        fprop_row<T, false, true, PLAIN>(p, at, segment, row, window, w, bias, y);
      else if (segment.mask == 1)
        fprop_row<T, true, false, PLAIN>(p, at, segment, row, window, w, bias, y);
      else
        fprop_row<T, false, false, PLAIN>(p, at, segment, row, window, w, bias, y);
    }
  }
}

}  // namespace symconv
