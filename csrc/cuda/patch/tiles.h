// The tiles of the patch kernels, by name: what was quickest on some layer of an H200 (docs/halo.md).
#pragma once
#include "patch/tile.h"

namespace symconv {

// members, rows x 8 pixels x orbits of a warp, patch, patches, groups of orbits, channels, stages, CTAs
// resident. p: patches of 8 x 8 pixels; s: small.
using h64 = Tile<2, 8, 32, 16, 16, 1, 2, 32, 3, 1>;
using h64p = Tile<2, 8, 32, 8, 8, 4, 2, 32, 3, 1>;
using h32 = Tile<2, 8, 32, 16, 16, 1, 1, 32, 2, 2>;
using h32p = Tile<2, 8, 32, 8, 8, 4, 1, 32, 2, 2>;
using h32s = Tile<2, 4, 32, 8, 16, 1, 1, 32, 2, 3>;
using hv32 = Tile<4, 4, 32, 16, 16, 1, 1, 32, 3, 1>;
using hv32p = Tile<4, 4, 32, 8, 8, 4, 1, 32, 3, 1>;
using hv16 = Tile<4, 8, 16, 16, 16, 1, 1, 32, 3, 2>;
using hv16p = Tile<4, 8, 16, 8, 8, 4, 1, 32, 2, 2>;

// In the order of patch_variants() and of symconv_fast/backends/cuda/patch.py.
#define PATCH_TILES(F) F(h64) F(h64p) F(h32) F(h32p) F(h32s) F(hv32) F(hv32p) F(hv16) F(hv16p)

}  // namespace symconv
