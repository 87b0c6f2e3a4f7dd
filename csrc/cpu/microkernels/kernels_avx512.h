// Inner loops of one element type, SYMCONV_OF, for x86-64 with AVX-512: compiled with its own target, called
// only where the CPU has it. One file for each type includes this, so that they are compiled side by side.
#include "microkernels/kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>  // functions that are always inlined: none is left for the linker to choose

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")
#endif

#define SYMCONV_HALF_INSTRUCTIONS
#define SYMCONV_ISA avx512
#define SYMCONV_MASKED_STORES
#define SYMCONV_STREAM(to, v) _mm512_stream_si512(to, v)
#define SYMCONV_STREAMED __m512i
#define SYMCONV_BYTES 64
#define SYMCONV_ROWS1 28
#define SYMCONV_ROWS2 14
#define SYMCONV_ROWS3 8
#define SYMCONV_SUMS 24
#include "microkernels/kernels_impl.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
