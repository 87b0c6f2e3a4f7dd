// Inner loops of float for x86-64 with AVX2.
#define SYMCONV_OF float
#include "microkernels/kernels_avx2.h"
