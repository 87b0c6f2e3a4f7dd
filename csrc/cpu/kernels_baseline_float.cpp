// Inner loops of float for any CPU.
#define SYMCONV_OF float
#include "kernels_baseline.h"
