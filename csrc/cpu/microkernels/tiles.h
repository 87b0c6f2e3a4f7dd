// Tile registers of AMX, which a thread configures before it multiplies with them.
#pragma once

namespace symconv {

// The matrix kernels of the calling thread leave the tile registers configured from call to call while one of
// these lives, and release them at its end: a configuration takes as long as a small tile's products, and
// registers in use would be saved at every switch of threads. Nothing else that uses tiles may run meanwhile.
// Outside of any, each call configures and releases.
class TileScope {
 public:
  TileScope();
  ~TileScope();
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

}  // namespace symconv
