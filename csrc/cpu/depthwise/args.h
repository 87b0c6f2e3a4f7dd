// Arguments of the inner loops of depthwise convolutions, where one vector holds one position of `lanes`
// channels.
//
// "Lines" run along the width: arrays of vectors. "Planes" are lines (or stacks of lines) of the same
// positions: one for each filter of a channel, or one for each parity of an orbit.
#pragma once

#include <cstdint>

#include "dtypes.h"

namespace symconv {

constexpr int kMaxKernelLines = 4;  // mirror images of one line of the kernel: along height and depth

// One line of the kernel, and its mirror images, against the source. Offsets are in vectors.
struct DepthwiseStep {
  int32_t row[kMaxKernelLines];  // of the source; 0 is a line of zeros
  int32_t weight;
  int32_t line;  // of the destination
};

// A tap of the kernel line at a source position, with its mirror image where it has one.
struct LineTap {
  int32_t left, right;  // from the first position; in vectors
  int32_t weight;       // even part; the odd part follows it
};

// Taps without a mirror image (or of a line that is not tied), taps with one, and those whose image lies
// in another phase of a strided scatter.
struct LineTaps {
  const LineTap *plain, *pairs, *lefts, *rights;
  int64_t plain_count, pair_count, left_count, right_count;
};

enum LineParity { kBothParities = 0, kEvenParity = 1, kOddParity = 2, kLineParities = 3 };

// acc[parity][position] (+)= sum over lines and taps. Lines and `acc` hold whole chunks of positions.
template <class T>
struct LineArgs {
  const T* const* lines;
  const T* const* weights;  // of each line
  int64_t line_count;
  LineTaps taps;
  int64_t advance;  // elements from one position to the next
  int64_t positions;
  T* acc[2];
  bool add;
};

// Weight gradient: acc[tap] += sum over positions of still[parity][position] * folded line.
template <class T>
struct LineGradArgs {
  const T* line;
  int64_t advance;
  const T* still[2];
  int64_t positions;
  LineTaps taps;
  T* acc;
};

// Stride 1, dilation 1 and a narrow kernel: the source positions of a chunk stay in registers.
template <class T>
struct WindowArgs {
  const DepthwiseStep* steps;
  const int32_t* first;  // step of destination line l: first[3l] without, first[3l + 1] with a mirror image
  int64_t begin, end;    // destination lines
  const T* weights;
  const T* source[kMaxKernelLines];  // forward: [0] only; input gradient: one plane for each parity
  int64_t positions;
  T* out[kMaxKernelLines];  // forward: one for each orbit member; input gradient: [0] only
  const int64_t* offset;    // elements from `out` to each destination line
  int64_t out_step;         // elements from one position to the next
  bool interleave;          // forward: members of a channel are neighbours, all in out[0]
  const T* bias;            // of out[0] as it is stored; null without; with interleave or one parity only
  bool add;                 // input gradient: to what is there
};

// acc[tap] += sum over steps and positions, for one line of the kernel and its images.
template <class T>
struct WindowGradArgs {
  const DepthwiseStep* steps;
  int64_t step_count;
  const T* source;
  const T* still[kMaxKernelLines];  // one plane for each parity, zero past the last position
  int64_t still_pitch;              // elements from one line to the next
  int64_t positions;
  T* acc;
};

// Between memory and planes: lane l of plane f is channel l * planes + f of the memory, or lane[l] + f *
// plane_channels.
template <class T>
struct LaneArgs {
  Sum<T>* lanes;
  int64_t plane_stride;
  const int32_t* place;  // vector of each position, or null: one after the other
  int planes;
  int64_t positions;
  int channels;  // lanes that exist; the others are zero in planes and absent in memory
  T* memory;     // read only by gather
  int64_t channel_stride, position_stride;
  const Sum<T>* bias;  // scatter: one vector for each plane, or null
  bool butterfly;      // gather: planes are the 1, 2 or 4 members of `orbits` orbits; make them the parities
  int orbits = 1;
  const int32_t* lane = nullptr;
  int64_t plane_channels = 1;
  int64_t span = 0;  // with `lane`: channels that planes are made of, if they fill vectors, else 0
};

// Mirrored taps of one kernel: `tap` as they lie in the filter, `place` of their parities in the packed
// weights, where they have that sign.
struct TapGroup {
  int log_taps;
  int32_t tap[8], place[8];
  int sign = 1;
};

template <class T>
struct Window {
  void (*run)(const WindowArgs<T>&);
  int width;  // positions of a chunk
};
template <class T>
struct WindowGrad {
  void (*run)(const WindowGradArgs<T>&);
  int width;
};

constexpr int kWindows = 3;  // kernel widths 3, 5 and 7

// Everything between gather and scatter, by the type of the sums.
template <class S>
struct DepthwiseSums {
  int line_width;                     // positions of a chunk of `line`
  Window<S> forward[kWindows][2][2];  // by kernel width, tied along the line, lines with mirror images
  Window<S> input_grad[kWindows][2][2];
  WindowGrad<S> weight_grad[kWindows][2][2];
  // Of filters that are their own images, by kernel width, their parity along the line and that of its
  // images; kBothParities where there is no tie. In both passes taps run backwards through the source, of
  // which every parity is the same plane.
  Window<S> parity[kWindows][kLineParities][kLineParities];
  WindowGrad<S> parity_grad[kWindows][kLineParities][kLineParities];
  void (*line[kLineParities])(const LineArgs<S>&);
  void (*line_grad[kLineParities])(const LineGradArgs<S>&);
  // out[i] = sum over 2^log_lines lines of +-line[i], the signs of one parity.
  void (*combine)(const S* const* lines, int log_lines, int parity, S* out, int64_t vectors);
  // Every plane by its parity, in place.
  void (*butterfly)(S* const* planes, int log_planes, int64_t vectors);
  // to[place] = 2^-log * butterfly of from[tap]; the adjoint has `tap` and `place` exchanged.
  void (*fold_taps)(const TapGroup* groups, int64_t count, const S* from, S* to, bool adjoint);
};

// T is what tensors hold.
template <class T>
struct DepthwiseKernels : DepthwiseSums<Sum<T>> {
  void (*gather)(const LaneArgs<T>&);
  void (*scatter)(const LaneArgs<T>&);
};

}  // namespace symconv
