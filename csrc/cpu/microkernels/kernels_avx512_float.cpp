// Inner loops of float for x86-64 with AVX-512.
#define SYMCONV_OF float
#include "microkernels/kernels_avx512.h"
