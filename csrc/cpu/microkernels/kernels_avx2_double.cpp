// Inner loops of double for x86-64 with AVX2.
#define SYMCONV_OF double
#include "microkernels/kernels_avx2.h"
