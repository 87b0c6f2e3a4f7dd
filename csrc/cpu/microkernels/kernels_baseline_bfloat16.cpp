// Inner loops of bfloat16 for any CPU.
#define SYMCONV_OF BFloat16
#define SYMCONV_WIDENED
#include "microkernels/kernels_baseline.h"
