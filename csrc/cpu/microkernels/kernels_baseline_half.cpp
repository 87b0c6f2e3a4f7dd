// Inner loops of float16 for any CPU.
#define SYMCONV_OF Half
#define SYMCONV_WIDENED
#include "microkernels/kernels_baseline.h"
