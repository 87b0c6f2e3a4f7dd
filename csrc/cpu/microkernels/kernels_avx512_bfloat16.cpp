// Inner loops of bfloat16 for x86-64 with AVX-512.
#define SYMCONV_OF BFloat16
#define SYMCONV_WIDENED
#include "microkernels/kernels_avx512.h"
