// The tiles of the gradient of the input on Hopper, by name.
#pragma once
#include "hopperdgrad/gather.h"

namespace symconv {

// Members; then as in patch/tiles.h, but that orbits are channels of x, channels rows of the weight. p:
// patches of 8 x 8 pixels, q: of 4 x 32.
using gh128p = Gather<2, Tile<2, 4, 128, 8, 8, 4, 1, 16, 3, 1>>;
using gh128q = Gather<2, Tile<2, 4, 128, 4, 32, 2, 1, 16, 3, 1>>;
using gh64p = Gather<2, Tile<2, 4, 64, 8, 8, 4, 1, 16, 4, 1>>;
using ghv128p = Gather<4, Tile<4, 4, 128, 8, 8, 4, 1, 16, 2, 1>>;
using ghv128q = Gather<4, Tile<4, 4, 128, 4, 32, 2, 1, 16, 2, 1>>;
using ghv64p = Gather<4, Tile<4, 4, 64, 8, 8, 4, 1, 16, 3, 1>>;

// In the order of hopperdgrad_variants() and of symconv_fast/backends/cuda/hopperdgrad.py.
#define HOPPERDGRAD_TILES(F) F(gh128p) F(gh128q) F(gh64p) F(ghv128p) F(ghv128q) F(ghv64p)

}  // namespace symconv
