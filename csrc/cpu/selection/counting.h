// Kernels that count what they multiply and pack, for tests and for `exact`: a table of them takes the place
// of that in use. Passes that are made in the meantime have it; no other pass ever asks.
#pragma once

#include <cstdint>

#include "export.h"
#include "microkernels/kernels.h"

namespace symconv {

// `dry` kernels count and do nothing else.
enum class Counting { off, on, dry };

// Of the calling thread: what kernels its passes get.
SYMCONV_API Counting& counting();

struct Done {
  int64_t products = 0;     // multiply-adds of the matrix kernels, with the lanes that hold nothing
  int64_t panel_bytes = 0;  // written to panels, of sources as they are folded, summed or transformed
  int64_t workspace = 0;    // bytes that were in use at the same time, at most
};

// Since this was last called, by all threads; `workspace` of the calling one.
SYMCONV_API Done take_done();

template <class T>
const Kernels<T>& counting_kernels(const Kernels<T>& own, Counting how);

// By workspace.cpp, of memory that is told apart by its owner.
void count_taken(const void* owner, int64_t bytes);
void count_given_back(const void* owner);

}  // namespace symconv
