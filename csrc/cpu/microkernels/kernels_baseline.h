// Inner loops of one element type, SYMCONV_OF, for any CPU (SSE2, NEON). One file for each type includes
// this, so that they are compiled side by side.
#include "microkernels/kernels.h"

#define SYMCONV_ISA baseline
#define SYMCONV_BYTES 16
#define SYMCONV_ROWS1 12
#define SYMCONV_ROWS2 6
#define SYMCONV_ROWS3 4
#define SYMCONV_SUMS 12
#include "microkernels/kernels_impl.h"
