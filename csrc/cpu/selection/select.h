// What a pass of the CPU backend does: the one place where that is decided. Problem, operator and algorithm
// -> a reason why not, or how every multiplication lies and runs, and how much work that is.
//
// Tensors have no say: a selection goes by the layouts that the problem declares, and a tensor that lies
// otherwise is copied (native.cpp).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "export.h"
#include "packed/plan.h"
#include "scatter/plan.h"
#include "selection/description.h"
#include "selection/isa.h"
#include "selection/parts.h"

namespace symconv {

enum class Op { fprop, dgrad, wgrad };

// Those with a filtering have its name at their end. `expand` is torch's convolution on filters that are
// expanded natively. Depthwise layers have kernels of their own for the fold.
enum class Algorithm { fold, fold_f2, fold_f4, scatter, scatter_f2, scatter_f4, direct, direct_fold, expand };

// How a multiplication lays out its panel and its results.
struct Layout {
  bool planes, staged, pixel_lanes;
  bool sums_depth = false;  // of a staged gather-sum: members that differ in the depth alone are summed first
  bool by_lines = false;    // of a fold: along the width in the matrix kernel (packed/lines.h)
};

// How a segment is scattered.
struct Scattered {
  ScatterPlan plan;
  bool planes, turned, in_place, relaid;  // as in ScatterShape
};

// A multiplication: of one segment forward; backward of all of them together, or of each part of the input
// channels where both sides are folded.
struct Multiplication {
  int segment;
  int part;
  std::optional<Scattered> scattered;  // else a fold, or backward a gather-sum:
  Layout layout;
  int axis;  // whose taps are shifts of the panel, or -1
  Filtering filtering;
  bool of_input = false;  // of a weight gradient: is its panel that of the forward pass?
};

// What the work of a multiplication is counted in, by how its panel and results lie.
enum Arrangement {
  kPixels,
  kPlanes,
  kStaged,
  kTurned,
  kScatter,
  kScatterPlanes,
  kScatterTurned,
  kScatterRelaid,
  kKinds
};
struct Work {
  double passes = 0, multiply_adds = 0, products = 0, results = 0, panel = 0, runs = 0, weights = 0;
};

// Work of a pass, as the cost model has it: vectors multiplied, stored and packed, most of them in closed
// form from the sizes. Of depthwise layers: vectors with the source in registers, and without, and those that
// lanes of a group share, which are more than there are in the tensor.
struct Counts {
  double activations = 0;  // elements of input and output
  std::array<Work, kKinds> work{};
  double windows = 0, lines = 0, shared = 0;
  double sorted =
      0;  // blocks of results of one channel that are stored by themselves, since these are sorted
};

struct Request {
  const Description& description;
  Op op;
  Algorithm algorithm;
  bool relayout;  // of contiguous tensors, copied to channels_last and back
  Isa isa;        // whose kernels are meant: those of another one than that in use can be counted, not run
};

struct Selection {
  Description description;
  Op op;
  Algorithm algorithm;
  Isa isa;
  std::string reason;  // why not, as a clause; empty: it runs, and the rest holds
  Vectors vectors;
  Parts parts;      // what is copied to channels_last together, if anything is
  int64_t copied;   // elements, there and back
  Problem problem;  // of one part
  // Do channels lie together, in what the kernels are given?
  bool source_last, result_last;
  bool depthwise;                               // by the kernels of depthwise layers
  std::vector<Multiplication> multiplications;  // none for direct, depthwise and expanded ones
  int64_t run, columns;  // the fewest channels that lie together in a panel, and columns of a multiplication
  Counts counts;

  int dims() const { return description.dims(); }
  bool is_direct() const { return algorithm >= Algorithm::direct && algorithm <= Algorithm::direct_fold; }
  // Does the gradient of the bias come with that of the weight?
  bool sums_bias() const { return op == Op::wgrad && algorithm == Algorithm::direct_fold; }
};

SYMCONV_API Selection select(const Request& request);

SYMCONV_API const char* name(Op op);
SYMCONV_API const char* name(Algorithm algorithm);
SYMCONV_API const char* name(Arrangement kind);

// One input channel in every group, and more than one group: other kernels would leave lanes idle.
inline bool is_depthwise(const Problem& p) { return p.groups > 1 && p.channels == 1; }

// Do the kernels of depthwise layers fold a layer whose groups have several channels? Several groups fill a
// vector there; a panel of each group would leave lanes idle. One tie, and neighbouring taps at stride 1,
// whose sources stay in registers.
bool has_narrow_groups(const Problem& p, int lanes);

// Orbits that lie together in the upstream gradient, and input channels that do.
int64_t shortest_run(const Problem& p);
int64_t shortest_block(const Problem& p);

// By selection/select.cpp: what `s` chose, counted.
Counts count_work(const Selection& s);

}  // namespace symconv
