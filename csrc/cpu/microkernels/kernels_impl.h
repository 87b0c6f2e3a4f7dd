// Bodies of the inner loops. Included by one file for each instruction set and element type, which defines
// SYMCONV_OF (the type; SYMCONV_WIDENED if it is summed in float32), SYMCONV_ISA (a namespace), SYMCONV_BYTES
// (of a vector), SYMCONV_ROWS2 and SYMCONV_ROWS3 (rows of a matrix tile with 2 and 3 vectors: as many as the
// registers hold) and SYMCONV_SUMS (vectors of a tile that the registers hold beside all else). No standard
// header may be included here: inline functions compiled for a wide instruction set could be kept by the
// linker for everybody.

#define SYMCONV_INLINE __attribute__((always_inline)) inline

namespace symconv::SYMCONV_ISA {

#include "microkernels/vectors_impl.h"

// Element type of a value, for constants; never called.
float scalar(float);
float scalar(V<float>);
double scalar(double);
double scalar(V<double>);

#include "microkernels/elements_impl.h"

#include "microkernels/winograd.h"

#include "microkernels/gemm_impl.h"

#include "microkernels/mirrored_impl.h"

#include "microkernels/pack_impl.h"

#include "microkernels/store_impl.h"

#include "microkernels/folded_impl.h"

#include "microkernels/store_transposed_impl.h"

#include "microkernels/scatter_impl.h"

#include "microkernels/weights_impl.h"

#include "microkernels/gather_impl.h"

#include "microkernels/stage_impl.h"

#ifndef SYMCONV_PAIR_INSTRUCTIONS
#include "microkernels/depthwise_impl.h"
#include "microkernels/depthwise_lanes_impl.h"
#endif

#include "microkernels/table_impl.h"

}  // namespace symconv::SYMCONV_ISA
