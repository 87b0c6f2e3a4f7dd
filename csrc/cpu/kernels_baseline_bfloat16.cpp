// Inner loops of bfloat16 for any CPU.
#define SYMCONV_OF BFloat16
#include "kernels_baseline.h"
