// The innermost loops of the CPU backend, as one table of functions for each instruction set.
//
// Nothing here knows what a convolution is: pointers, strides and counts only. kernels_impl.h is
// compiled once for each instruction set; select_kernels() picks the table at run time.
#pragma once

#include <cstdint>

namespace symconv {

constexpr int kMaxSources = 8;  // mirrored taps of one group, at most 2^3
constexpr int kMaxVectors = 3;  // columns of a matrix tile, in vectors

// C[rows, vectors * lanes] (+)= sum over segments s of A_s[rows, k] * B_s[k, vectors * lanes].
// A is read one broadcast scalar at a time, so its rows may start anywhere; B row by row.
template <class T>
struct GemmArgs {
  const T* a;
  const T* b;
  const int64_t* a_offset;  // elements, one for each segment
  const int64_t* b_offset;
  const int64_t* k;         // rows of B, one for each segment
  int64_t segments;
  int64_t lda;
  int64_t ldb;
  T* c;
  int64_t ldc;
  bool add;
};

// One run of packing: sources that move together along a line of positions.
//   fold: out[s] = sum over t of (-1)^|s & t| * source[t]   (as many outputs as sources)
//   sum:  out[0] = sum over t of source[t]
// "Pixels": channels are contiguous in the source and in the panel, panel rows are positions.
// "Planes": positions are contiguous in the panel, panel rows are channels.
template <class T>
struct RunArgs {
  const T* source[kMaxSources];
  int64_t position_step[kMaxSources];  // from one position to the next, 0 where a source is absent
  int64_t channel_step[kMaxSources];   // planes only; 0 where a source is absent
  T* out[kMaxSources];
  int64_t ld;  // leading dimension of the panel
  int64_t positions;
  int64_t channels;
};

// Butterfly over the parities of a tile of results, bias, and the store to each orbit member.
template <class T>
struct StoreArgs {
  const T* tile;           // [parities][rows][ld]
  int64_t parity_stride;
  int64_t ld;
  int64_t rows;
  int64_t cols;
  T* out[kMaxSources];     // one for each member, at row 0, column 0
  const int64_t* row_offset;
  const int64_t* col_offset;     // null: columns are contiguous
  const T* bias[kMaxSources];    // null without bias
  bool bias_of_row;              // bias runs along the rows, else along the columns
};

// Weights: gathers `lanes` rows of the source, folds mirrored taps, scales, and stores lane-contiguous.
template <class T>
struct WeightArgs {
  const T* source;
  int64_t lane_stride;
  int64_t other_stride;
  int64_t others;
  int64_t tap[kMaxSources];
  T* out[kMaxSources];
  int64_t out_stride;  // from one `other` to the next
  int lanes;           // lanes that exist
  int stored;          // lanes to write; those past `lanes` are zero
  T scale;
};

template <class T>
struct Kernels {
  int lanes;                      // elements of a vector
  int max_rows[kMaxVectors + 1];  // rows of a matrix tile by its number of vectors
  void (*gemm)(int rows, int vectors, const GemmArgs<T>&);
  void (*fold_pixels[4])(const RunArgs<T>&);  // by log2 of the number of sources
  void (*fold_planes[4])(const RunArgs<T>&);
  void (*sum_pixels[4])(const RunArgs<T>&);
  void (*sum_planes[4])(const RunArgs<T>&);
  void (*store[4])(const StoreArgs<T>&);      // by log2 of the number of members
  void (*fold_weights[4])(const WeightArgs<T>&);
  // out[c * ld + p] = source[offset[p] + c * channel_stride]
  void (*gather_rows)(const T* source, const int64_t* offset, int64_t positions, int64_t channel_stride,
                      int64_t channels, T* out, int64_t ld);
};

template <class T>
const Kernels<T>& select_kernels();
const char* instruction_set();

}  // namespace symconv
