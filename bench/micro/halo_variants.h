// The tiles that are measured, by name.
#pragma once
#include "halo_group.h"

namespace halo {

// name: tie, rows x 8 pixels x orbits of a warp, patch, patches, groups of orbits, channels, stages, CTAs
// resident
using h64 = Tile<Tie::h, 8, 32, 16, 16, 1, 2, 32, 3, 1>;
using h64p = Tile<Tie::h, 8, 32, 8, 8, 4, 2, 32, 3, 1>;
using h32 = Tile<Tie::h, 8, 32, 16, 16, 1, 1, 32, 2, 2>;
using h32p = Tile<Tie::h, 8, 32, 8, 8, 4, 1, 32, 2, 2>;
using h32s = Tile<Tie::h, 4, 32, 8, 16, 1, 1, 32, 2, 3>;
using h32sp = Tile<Tie::h, 4, 32, 8, 8, 2, 1, 32, 2, 3>;
using hv32 = Tile<Tie::hv, 4, 32, 16, 16, 1, 1, 32, 3, 1>;
using hv32p = Tile<Tie::hv, 4, 32, 8, 8, 4, 1, 32, 3, 1>;
using hv16 = Tile<Tie::hv, 8, 16, 16, 16, 1, 1, 32, 3, 2>;
using hv16p = Tile<Tie::hv, 8, 16, 8, 8, 4, 1, 32, 2, 2>;

// With wgmma. p: patches of 8 x 8 pixels, q: of 4 x 32, r: of 2 x 16; k: stages of 64 channels; f: products
// flow from stage to stage; c: clusters of two CTAs.
using wh64 = Boxes<Tile<Tie::h, 4, 64, 16, 16, 1, 1, 32, 3, 1>>;
using wh64p = Boxes<Tile<Tie::h, 4, 64, 8, 8, 4, 1, 32, 3, 1>>;
using wh64q = Boxes<Tile<Tie::h, 4, 64, 4, 32, 2, 1, 32, 3, 1>>;
using wh64k = Boxes<Tile<Tie::h, 2, 64, 8, 16, 1, 1, 64, 2, 1>>;
using wh64c = Boxes<Tile<Tie::h, 4, 64, 16, 16, 1, 1, 32, 3, 1>, 2>;
using wh64qc = Boxes<Tile<Tie::h, 4, 64, 4, 32, 2, 1, 32, 3, 1>, 2>;
using wh64pf = Boxes<Tile<Tie::h, 4, 64, 8, 8, 4, 1, 32, 3, 1>, 1, true>;
using wh64qf = Boxes<Tile<Tie::h, 4, 64, 4, 32, 2, 1, 32, 3, 1>, 1, true>;
using wh128 = Boxes<Tile<Tie::h, 2, 128, 8, 16, 1, 1, 32, 2, 1>>;
using wh128f = Boxes<Tile<Tie::h, 2, 128, 8, 16, 1, 1, 32, 2, 1>, 1, true>;
using wh128r = Boxes<Tile<Tie::h, 2, 128, 2, 16, 4, 1, 32, 2, 1>>;
using wh32 = Boxes<Tile<Tie::h, 8, 32, 16, 16, 2, 1, 32, 3, 1>>;
using wh32p = Boxes<Tile<Tie::h, 8, 32, 8, 8, 8, 1, 32, 2, 1>>;
using whv64 = Boxes<Tile<Tie::hv, 2, 64, 8, 16, 1, 1, 32, 4, 1>>;
using whv64p = Boxes<Tile<Tie::hv, 2, 64, 8, 8, 2, 1, 32, 4, 1>>;
using whv64q = Boxes<Tile<Tie::hv, 2, 64, 4, 32, 1, 1, 32, 4, 1>>;
using whv64k = Boxes<Tile<Tie::hv, 2, 64, 8, 16, 1, 1, 64, 2, 1>>;
using whv64r = Boxes<Tile<Tie::hv, 2, 64, 2, 16, 4, 1, 32, 3, 1>>;
using whv64c = Boxes<Tile<Tie::hv, 2, 64, 8, 16, 1, 1, 32, 4, 1>, 2>;
using whv64qc = Boxes<Tile<Tie::hv, 2, 64, 4, 32, 1, 1, 32, 4, 1>, 2>;
using whv64qkc = Boxes<Tile<Tie::hv, 2, 64, 4, 32, 1, 1, 64, 2, 1>, 2>;
using whv64pf = Boxes<Tile<Tie::hv, 2, 64, 8, 8, 2, 1, 32, 4, 1>, 1, true>;
using whv64kf = Boxes<Tile<Tie::hv, 2, 64, 8, 16, 1, 1, 64, 2, 1>, 1, true>;
using whv32 = Boxes<Tile<Tie::hv, 4, 32, 16, 16, 1, 1, 32, 5, 1>>;
using whv32p = Boxes<Tile<Tie::hv, 4, 32, 8, 8, 4, 1, 32, 4, 1>>;
using whv32qc = Boxes<Tile<Tie::hv, 4, 32, 4, 32, 2, 1, 32, 4, 1>, 2>;

}  // namespace halo
