// Inner loops of float for any CPU.
#define SYMCONV_OF float
#include "microkernels/kernels_baseline.h"
