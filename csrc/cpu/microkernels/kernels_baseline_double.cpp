// Inner loops of double for any CPU.
#define SYMCONV_OF double
#include "microkernels/kernels_baseline.h"
