// Instruction sets, and what a choice between algorithms has to know of them.
#pragma once

#include <c10/core/ScalarType.h>

#include "export.h"

namespace symconv {

enum class Isa { baseline, avx2, avx512, avx512_bf16, amx_bf16 };

// The one in use.
SYMCONV_API Isa running_isa();

// Of the kernels for tensors of a type.
struct Vectors {
  int lanes;    // sums
  int depth;    // rows of a contraction in a word of the matrix kernel
  bool widens;  // are elements widened while they are packed?
};
Vectors vectors_of(c10::ScalarType type, Isa isa);

}  // namespace symconv
