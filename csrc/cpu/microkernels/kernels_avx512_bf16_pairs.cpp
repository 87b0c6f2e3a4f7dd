// Inner loops for bfloat16 on x86-64 with AVX512_BF16: compiled with its own target, called only where the
// CPU has it.
#include "microkernels/kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>  // functions that are always inlined: none is left for the linker to choose

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx512bf16,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx512bf16,avx2,fma")
#endif

#define SYMCONV_PAIR_INSTRUCTIONS
#define SYMCONV_HALF_INSTRUCTIONS
#define SYMCONV_ISA avx512_bf16
#define SYMCONV_MASKED_STORES
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
