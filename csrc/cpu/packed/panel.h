// Tiles of anchors, and the panel: the folded or summed source of one tile, ready to be multiplied.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "blocking.h"
#include "microkernels/kernels.h"
#include "packed/plan.h"

namespace symconv {

// Strided view of an activation, in elements.
template <class T>
struct View {
  T* data;
  int64_t batch_stride, channel_stride;
  Triple stride;
  int64_t origin = 0;  // index of the element at `data`, where a part stands for the whole

  // The element at an index, the sum of its positions times the strides.
  T* at(int64_t index) const { return data + (index - origin); }
};

// How the anchors of a phase are cut into boxes. Axis order[0] is outermost; with an offset axis it
// is that one, so that a tap on it is a whole number of lines. With minimal filtering one step on it
// stands for `lines_out` lines of the destination, and the panel holds `products` of such boxes.
struct Tiling {
  int order[kAxes];
  Triple count;       // anchors, in that order
  Triple block;       // of a tile
  Triple blocks;      // number of tiles
  int64_t span = 0;   // halo lines of the panel along order[0]
  int64_t b_min = 0;  // source offset of line 0 from anchor 0 on the offset axis
  int64_t lines = 0;  // of the destination along order[0]
  int lines_out = 1, products = 1;
  // Tiles along order[1] that all planes have one after the other, in a strip; 0: tiles follow their order.
  int64_t strip = 0;
  int64_t tiles() const { return blocks[0] * blocks[1] * blocks[2]; }
};

struct Tile {
  int64_t image;
  Triple begin, size;  // in tiling order
  int64_t line() const { return size[1] * size[2]; }
  int64_t pixels() const { return size[0] * line(); }
  // Where phases are cut alike, those with fewer anchors have no last tiles.
  bool is_empty() const { return size[0] <= 0 || size[1] <= 0 || size[2] <= 0; }
  // Pixels before the last step along order[0], and the lines of the destination which that one has.
  int64_t full_pixels(const Tiling& t) const {
    return lines_of_last(t) == t.lines_out ? pixels() : pixels() - line();
  }
  int lines_of_last(const Tiling& t) const {
    const int64_t left = t.lines - (begin[0] + size[0] - 1) * t.lines_out;
    return static_cast<int>(left < t.lines_out ? left : t.lines_out);
  }
};

struct Phase {
  const AxisMap* axis[kAxes];  // by axis, not by order
  Tiling tiling;
};

// Where a panel keeps its slots: row (pixels: column) of each, in words of `depth` rows, -1 where nothing
// feeds it in a phase.
struct PanelLayout {
  std::vector<int64_t> offset;
  int64_t total = 0;
  int depth = 1;
};

// Channels [begin, end) of a fold plan; sum plans have one chunk, which covers every slot whole.
struct Chunk {
  int64_t begin, end;
  // Rows of a slot, of which some may have fewer than there are chunks for.
  int64_t width(const Plan& plan, const Slot& slot) const {
    if (!plan.fold) return slot.channels;
    return std::max<int64_t>(0, std::min(end, slot.channels) - begin);
  }
};

// How large a tile may be. Its panel is written once and read once for every block of columns, so it should
// stay in the second-level cache beside the weights of one block.
struct TileLimits {
  int64_t bytes, pixels;
};
constexpr TileLimits kTile{192 << 10, 256};
constexpr TileLimits kLongTile{384 << 10, 1024};  // of staged tiles, which copy a halo of lines each

std::vector<Phase> make_phases(const Plan& plan, const Problem& p, int64_t slot_bytes,
                               const TileLimits& limits, int64_t threads, bool planes);
Tile tile_at(const Tiling& tiling, int64_t index);
bool source_present(const Plan& plan, const Phase& phase, const Group& g, int source);
PanelLayout panel_layout(const Plan& plan, const Phase& phase, const Chunk& chunk, int depth);

// Offset of every anchor of the tile in the destination.
void destination_offsets(const Phase& phase, const Tile& tile, int64_t batch_stride, const Triple& stride,
                         int64_t* out);

// Where a tile finds its source in a stage.
struct StagePlaces {
  Triple origin;            // the source position that lies first
  Triple stride;            // of the depth and the height
  int64_t residues, pitch;  // of the width, whose residues lie apart
  int64_t planes;           // that take turns, or 0
  int64_t offset(int axis, int64_t at) const {
    if (axis == kDepthAxis && planes) return (at - floor_div(at, planes) * planes) * stride[axis];
    const int64_t i = at - origin[axis];
    return axis < kAxes - 1 ? i * stride[axis] : i % residues * pitch + i / residues;
  }
};

// Fills the panel with the channels of a chunk, of which the first of the group's is `source_channel` at the
// chunk's begin; `zeros` is as long as the longest run. planes: panel[row * ld + pixel], else panel[pixel *
// ld + row]. With a stage `source` is that copy, and whole vectors are written: up to lanes - 1 pixels past
// the last one of every row.
template <class T>
void pack_panel(const Kernels<T>& kernels, const Plan& plan, const Phase& phase, const Tile& tile,
                const PanelLayout& layout, const View<const Element<T>>& source, const StagePlaces* stage,
                int64_t source_channel, const Chunk& chunk, bool planes, const Element<T>* zeros,
                Stored<T>* panel, int64_t ld, int64_t product_stride);

}  // namespace symconv
