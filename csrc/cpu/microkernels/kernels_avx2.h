// Inner loops of one element type, SYMCONV_OF, for x86-64 with AVX2: compiled with its own target, called
// only where the CPU has it. One file for each type includes this, so that they are compiled side by side.
#include "microkernels/kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>  // functions that are always inlined: none is left for the linker to choose

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#define SYMCONV_ISA avx2
#define SYMCONV_STREAM(to, v) _mm256_stream_si256(to, v)
#define SYMCONV_STREAMED __m256i
#define SYMCONV_BYTES 32
#define SYMCONV_ROWS1 12
#define SYMCONV_ROWS2 6
#define SYMCONV_ROWS3 4
#define SYMCONV_SUMS 12
#include "microkernels/kernels_impl.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
