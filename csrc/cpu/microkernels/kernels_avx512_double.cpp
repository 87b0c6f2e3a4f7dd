// Inner loops of double for x86-64 with AVX-512.
#define SYMCONV_OF double
#include "microkernels/kernels_avx512.h"
