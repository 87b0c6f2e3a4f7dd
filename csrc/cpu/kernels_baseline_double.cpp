// Inner loops of double for any CPU.
#define SYMCONV_OF double
#include "kernels_baseline.h"
