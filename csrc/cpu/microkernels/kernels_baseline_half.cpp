// Inner loops of float16 for any CPU.
#define SYMCONV_OF Half
#include "microkernels/kernels_baseline.h"
