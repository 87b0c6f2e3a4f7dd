// Inner loops of float16 for any CPU.
#define SYMCONV_OF Half
#include "kernels_baseline.h"
