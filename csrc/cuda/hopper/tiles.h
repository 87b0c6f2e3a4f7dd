// The tiles of the Hopper kernels, by name: those that were quickest on some layer of an H200 (docs/halo.md),
// or nearly.
#pragma once
#include "hopper/group.h"

namespace symconv {

// Arguments as in patch/tiles.h. p: patches of 8 x 8 pixels, q: of 4 x 32; k: stages of 64 channels.
using wh64 = Boxes<Tile<2, 4, 64, 16, 16, 1, 1, 32, 3, 1>>;
using wh64p = Boxes<Tile<2, 4, 64, 8, 8, 4, 1, 32, 3, 1>>;
using wh64q = Boxes<Tile<2, 4, 64, 4, 32, 2, 1, 32, 3, 1>>;
using wh128 = Boxes<Tile<2, 2, 128, 8, 16, 1, 1, 32, 2, 1>>;
using wh32p = Boxes<Tile<2, 8, 32, 8, 8, 8, 1, 32, 2, 1>>;
using whv64k = Boxes<Tile<4, 2, 64, 8, 16, 1, 1, 64, 2, 1>>;
using whv64p = Boxes<Tile<4, 2, 64, 8, 8, 2, 1, 32, 4, 1>>;
using whv64q = Boxes<Tile<4, 2, 64, 4, 32, 1, 1, 32, 4, 1>>;
using whv32 = Boxes<Tile<4, 4, 32, 16, 16, 1, 1, 32, 5, 1>>;
using whv32p = Boxes<Tile<4, 4, 32, 8, 8, 4, 1, 32, 4, 1>>;
using whv32q = Boxes<Tile<4, 4, 32, 4, 32, 2, 1, 32, 4, 1>>;

// In the order of hopper_variants() and of symconv_fast/backends/cuda/hopper.py.
#define HOPPER_TILES(F) \
  F(wh64) F(wh64p) F(wh64q) F(wh128) F(wh32p) F(whv64k) F(whv64p) F(whv64q) F(whv32) F(whv32p) F(whv32q)

}  // namespace symconv
