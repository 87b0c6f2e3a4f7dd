// Inner loops of float16 for x86-64 with AVX2.
#define SYMCONV_OF Half
#include "microkernels/kernels_avx2.h"
