// Inner loops of float16 for x86-64 with AVX2.
#define SYMCONV_OF Half
#define SYMCONV_WIDENED
#include "microkernels/kernels_avx2.h"
