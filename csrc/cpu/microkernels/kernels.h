// The innermost loops of the CPU backend, as one table of functions for each instruction set.
//
// Nothing here knows what a convolution is: pointers, strides and counts only. microkernels/kernels_impl.h is
// compiled once for each instruction set; select_kernels() picks the table at run time.
#pragma once

#include <cstdint>

#include "blocking.h"
#include "depthwise/args.h"
#include "dtypes.h"

namespace symconv {

constexpr int kMaxSources = 8;  // mirrored taps of one group, at most 2^3
constexpr int kMaxVectors = 3;  // columns of a matrix tile, in vectors
constexpr int kMaxLines = 6;    // input lines of one minimal-filtering tile, F(4,3)
constexpr int kMaxScatterTaps = 16;

// Minimal filtering along lines for three taps: kPlain is none, kF2 makes 2 results from 4 products
// and kF4 makes 4 from 6. kF4Parities is for a tied axis: 6 products for 4 results of the even part and 4 for
// those of the odd one. See microkernels/winograd.h.
enum Filtering { kPlain = 0, kF2 = 1, kF4 = 2, kF4Parities = 3, kFilterings = 4 };
constexpr int kLinesIn[kFilterings] = {1, 4, 6, 6};
constexpr int kLinesOut[kFilterings] = {1, 2, 4, 4};
constexpr int kProducts[kFilterings] = {1, 4, 6, 10};
// Which line each product of the odd part is one of.
constexpr int kOddLines[4] = {0, 3, 4, 5};
constexpr bool has_odd_product(int line) { return line != 1 && line != 2; }

// Entry of the filter transform: what tap `tap` contributes to product `product`.
double filter_coefficient(Filtering filtering, int product, int tap);

// C[rows, vectors * lanes] (+)= sum over segments s of A_s[rows, k] * B_s[k, vectors * lanes].
// A is read one broadcast word at a time, so its rows and columns may lie anywhere; B row by row.
template <class W>
struct GemmArgs {
  const W* a;
  const W* b;
  const int64_t* a_offset;  // words, one for each segment
  const int64_t* b_offset;
  const int64_t* k;  // rows of B, one for each segment
  int64_t segments;
  int64_t lda;         // of A, from one row to the next
  int64_t a_step = 1;  // and from one k to the next
  int64_t ldb;
  Sum<W>* c;
  int64_t ldc;
  bool add;
  bool half;  // pairs: one more row after the last segment, the first half of a word that is not counted in k
};

// C[rows, vectors * lanes] (+)= sum over segments s and their rows k of A_s[rows, k] * (B[first_s + k] + or -
// B[second_s + k]): both sides of a mirror, folded as they are loaded.
template <class T>
struct MirroredArgs {
  const T *a, *b;
  const int64_t *a_offset, *first, *second;  // one for each segment
  int64_t segments, k;                       // rows of B, of each segment
  int64_t lda, a_step, ldb;
  int64_t apart;  // in B, from one vector of columns to the next
  bool odd;       // differences
  T* c;
  int64_t ldc;
  bool add;
};

// C[rows, vectors * lanes] = start + sum over taps k of A[rows, a_offset[k]] * B[b_offset[k] + (vectors *
// lanes)]: the matrix kernel for contractions so short that segments would cost more than they multiply.
template <class T>
struct TapsArgs {
  const T *a, *b;
  const int64_t *a_offset, *b_offset;  // one for each tap
  int64_t taps;
  int64_t lda;
  const T* start;  // of each column; null for zeros
  T* c;
  int64_t ldc;
};

// Such contractions for all parities of a fold, and what follows: the butterfly, bias, and the store to each
// member. Planes: rows are orbits, columns positions. Pixels: the other way round.
template <class T>
struct FoldedArgs {
  const int64_t* line_offset;       // one for each tap, one parity after the other
  int64_t taps[kMaxSources];        // of each parity
  int64_t filter_step;              // from one tap to the next
  int64_t line_step;                // from one position to the next; planes: 1
  Element<T>* out[kMaxSources];     // one for each member; columns are contiguous
  int64_t out_row;                  // from one row to the next
  const Sum<T>* bias[kMaxSources];  // by orbit; whole vectors are read
  bool stream;                      // as in StoreArgs
};
template <class T>
struct FoldedTile {
  const Sum<T>*filters, *lines;
  int64_t columns;    // of the output. A part of a vector overlaps the one before it, if there is one
  int64_t out, bias;  // where its own begin
  int64_t ahead;      // where the output is written next, from here
};

// C[rows, vectors * lanes] += sum over positions p of A[a_offset[row] + p * a_step] * B[p][vectors * lanes]:
// the matrix kernel where positions are contracted and rows lie anywhere.
template <class T>
struct CorrelateArgs {
  const T *a, *b;
  const int64_t* a_offset;
  int64_t a_step, ldb;
  int64_t positions;
  T* c;
  int64_t ldc;
};
constexpr int kCorrelateRows = 8;  // at most

// One run of packing: sources that move together along a line of positions.
//   fold: out[s] = sum over t of (-1)^|s & t| * source[t]   (as many outputs as sources)
//   sum:  out[0] = sum over t of source[t]
//   both: of 2^n outputs, after all sources with the same last n bits were summed
// With minimal filtering this is done for each of the input lines, which are then transformed.
// "Pixels": channels are contiguous in the source and in the panel, panel rows are positions.
// "Planes": positions are contiguous in the panel, panel rows are channels.
template <class T>
struct RunArgs {
  const Element<T>* source[kMaxLines][kMaxSources];
  int64_t position_step[kMaxLines][kMaxSources];  // from one position to the next, 0 where absent
  int64_t channel_step[kMaxLines][kMaxSources];   // planes only; 0 where a source is absent
  Stored<T>* out[kMaxSources];
  int64_t product_stride;  // in the panel, from one product to the next
  int64_t ld;              // leading dimension of the panel
  int64_t positions;
  int64_t channels;
  bool loose;  // planes only: whole vectors may be read and written past the last position
};

// Some runs, plain and in planes, whose sources lie in a stage, on one line of positions: the taps of a panel
// have few vectors each, so that a call for every one would take a large part of their time.
template <class T>
struct StagedRun {
  const Element<T>* source[kMaxSources];
  int64_t step[kMaxSources];  // from one channel to the next; 0 where a source is absent
  int64_t row[kMaxSources];   // of each output, in elements
  int64_t channels;
  int log_sources;
};
template <class T>
struct StagedLine {
  const StagedRun<T>* run;
  int64_t runs;
  int64_t from;       // of its sources, from those of the runs, which are of another line; not of absent ones
  int64_t positions;  // whole vectors are read and written past the last one
  Stored<T>* out;
  int64_t ld;
};

// The fold of two, four or eight sources, as RunArgs has it, where all move alike and results are equally far
// apart: these have fewer addresses than there are registers.
template <class T>
struct BlocksArgs {
  const T* source[kMaxSources];
  int64_t step;          // of the sources, from one row to the next
  int64_t rows, length;  // of contiguous elements each
  T* out;                // of the first parity
  int64_t apart, ld;     // from one parity to the next, and from one row to the next
};

// Result lines of minimal filtering, butterfly over the parities of a tile of results, bias, and the store to
// each orbit member.
template <class T>
struct StoreArgs {
  const Sum<T>* tile;  // [parities][products][rows][ld]
  int64_t parity_stride, product_stride;
  int64_t ld;
  int64_t rows;
  int64_t cols;
  Element<T>* out[kMaxSources];  // one for each member, at row 0, column 0
  int64_t line_stride;           // in the output, from one result line to the next
  int lines;                     // result lines that exist
  const int64_t* row_offset;
  const int64_t* col_offset;            // null: columns are contiguous
  const Element<T>* bias[kMaxSources];  // null without bias
  bool bias_of_row;                     // bias runs along the rows, else along the columns
  // Past the caches: whole vectors of columns, at multiples of their size in the output, which have to be
  // made visible to other threads (publish_streamed in streamed.h).
  bool stream;
};

// Sums of shifted products, two members at a time: out[s][row][column] = sum over taps of source[s][tap], at
// that row and column. With four members the last two are the odd parts of the first two along another axis,
// and a butterfly comes last. `scatter_lines` writes two sums as they are, in whole vectors past the last
// column; `scatter_store` adds minimal filtering, the butterfly, the bias and the store.
template <class A>
struct BitsOf;
template <>
struct BitsOf<float> {
  using type = int32_t;
};
template <>
struct BitsOf<double> {
  using type = int64_t;
};
template <class A>
using Bits = typename BitsOf<A>::type;

template <class T>
struct ScatterArgs {
  int taps;
  const Bits<Sum<T>>* mask;  // null, or by tap and column: all bits where there is such a product, else none
  int64_t mask_ld;
  const Sum<T>* source[4][kMaxScatterTaps];  // whole vectors are read past the last column
  int64_t step[kMaxScatterTaps];             // of a tap's sources, from one row to the next
  int64_t rows, columns;
  Sum<T>* sums[2];  // scatter_lines
  int64_t sums_step;
  int64_t product_stride;  // scatter_store, as everything below
  Element<T>* out[4];
  int64_t out_step;       // from one row to the next
  int64_t line_stride;    // from one line of minimal filtering to the next
  int lines;              // of those that exist
  const Sum<T>* bias[4];  // null without bias; whole vectors are read
  bool bias_of_row;       // bias runs along the rows, else along the columns
};

// Weights: gathers `lanes` rows of the source, folds mirrored taps, scales, and stores lane-contiguous.
template <class T>
struct WeightArgs {
  const Element<T>* source;
  int64_t lane_stride;
  int64_t other_stride;
  int64_t others;
  int64_t tap[kMaxSources];
  int64_t tap_stride;  // minimal filtering: from one of the three taps to the next, in order of shift
  Stored<T>* out[kMaxSources];
  int64_t product_stride[kMaxSources];
  int64_t out_stride;  // from one `other` (or word of them) to the next
  bool vnni;           // pairs: two `others` go into one word
  int lanes;           // lanes that exist
  int stored;          // lanes to write; those past `lanes` are zero
  Sum<T> scale;
};

// out[product][c][p] = transform over lines of source[offset[p] + line * line_stride + c * channel_stride].
template <class T>
struct GatherArgs {
  const Element<T>* source;
  const int64_t* offset;  // null: p itself
  int64_t positions;
  int64_t channel_stride, channels;
  int64_t line_stride;
  int lines;  // result lines that exist; the others count as zero
  Stored<T>* out;
  int64_t product_stride, ld;
};

// out[i] = sum over terms of scale * data[row * ld + first + i], rounded once.
template <class T>
struct CombineTerm {
  const Sum<T>* data;
  int64_t ld;
  Sum<T> scale;
};
template <class T>
struct CombineArgs {
  const CombineTerm<T>* term;
  int64_t terms, row, first, count;
  Element<T>* out;
};

// out[i][c] = (in[2i][c], in[2i + 1][c]); the half that an odd number of rows leaves over is zero.
struct VnniArgs {
  const BFloat16* in;
  Pair* out;
  int64_t in_ld, out_ld, rows, columns;
};

template <class T>
struct Kernels {
  int lanes;                      // elements of a vector
  int max_rows[kMaxVectors + 1];  // rows of a matrix tile by its number of vectors
  void (*gemm)(int rows, int vectors, const GemmArgs<Word<T>>&);
  void (*taps)(int rows, int vectors, const TapsArgs<T>&);               // not for 16-bit types
  void (*gemm_mirrored)(int rows, int vectors, const MirroredArgs<T>&);  // not for 16-bit types
  int mirrored_rows[kMaxVectors + 1];
  // First pixels, then planes; by log2 of the number of members, from two on.
  void (*folded[2][4])(int rows, int vectors, const FoldedArgs<T>&, const FoldedTile<T>&);
  int folded_rows[kMaxVectors + 1];  // of a tile at most, by its number of vectors
  void (*correlate)(int rows, int vectors, const CorrelateArgs<T>&);  // not for 16-bit types
  int correlate_rows[kMaxVectors + 1];
  void (*fold_blocks[4])(const BlocksArgs<T>&);  // by log2 of the number of sources; not for 16-bit types
  // By filtering and log2 of the number of sources; null where no axis would be left to filter along, and for
  // other types than float but where filtering is plain.
  void (*fold_pixels[kFilterings][4])(const RunArgs<T>&);
  void (*fold_planes[kFilterings][4])(const RunArgs<T>&);
  void (*sum_pixels[kFilterings][4])(const RunArgs<T>&);
  void (*sum_planes[kFilterings][4])(const RunArgs<T>&);
  // By log2 of the numbers of sources and of outputs: fewer than sources, and more than one.
  void (*both_pixels[4][3])(const RunArgs<T>&);
  void (*both_planes[4][3])(const RunArgs<T>&);
  void (*store[kFilterings][4])(const StoreArgs<T>&);             // by log2 of the number of members
  void (*store_transposed[kFilterings][4])(const StoreArgs<T>&);  // rows contiguous in the output
  // First for three taps, then for any number; scatter_store first for two members, then for four.
  void (*scatter_lines[2])(const ScatterArgs<T>&);
  void (*scatter_store[2][2][kFilterings])(const ScatterArgs<T>&);
  void (*fold_weights[kFilterings][4])(const WeightArgs<T>&);
  void (*gather[kFilterings])(const GatherArgs<T>&);
  // out[c * out_stride + i] = source[c * channel_stride + i * step]
  void (*stage_line)(const Element<T>* source, int64_t channel_stride, int64_t step, int64_t channels,
                     int64_t positions, Element<T>* out, int64_t out_stride);
  // out[c * out_stride + r] = source[r * step + c] past the caches, as in StoreArgs: rows fill vectors. Not
  // for 16-bit types.
  void (*stream_rows)(const Element<T>* source, int64_t step, int64_t rows, int64_t columns, Element<T>* out,
                      int64_t out_stride);
  // out[i % residues * pitch + i / residues] = line[i]
  void (*split_line)(const Element<T>* line, int64_t positions, int64_t residues, Element<T>* out,
                     int64_t pitch);
  void (*combine)(const CombineArgs<T>&);
  // a + b and a - b; not for 16-bit types
  void (*add_subtract)(const T* a, const T* b, int64_t count, T* sum, T* difference);
  void (*vnni_interleave)(const VnniArgs&);  // pairs only
  DepthwiseKernels<T> depthwise;
  // Fold and sum of RunArgs, of all runs of a line.
  void (*fold_line)(const StagedLine<T>&);
  void (*sum_line)(const StagedLine<T>&);
};

// Pair: only where has_pairs(). Minimal filtering is for float.
template <class T>
const Kernels<T>& select_kernels();
bool has_pairs();

}  // namespace symconv
