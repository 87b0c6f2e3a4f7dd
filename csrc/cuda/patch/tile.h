// Tile shapes and addresses of the patch kernels: 3 x 3, stride 1, padding 1, channels innermost.
//
// A CTA owns kPatches patches of pixels, each with a halo of one pixel, times kOrbits orbits. Filters are
// tied along columns (two members) or along columns and rows (four); a tie along the rows of a map is the
// first with rows and columns of the map exchanged, so `row` and `column` here are those of the tile.
#pragma once
#include "device.h"

namespace symconv {

constexpr int kTaps = 9;  // folded taps: as many as a reduced filter has

// Rows, Orbits: of a warp (columns are 8); Height x Width: pixels of a patch; Groups: of orbits, a warp each.
template <int MEMBERS, int ROWS, int ORBITS, int HEIGHT, int WIDTH, int PATCHES, int GROUPS, int CHANNELS,
          int STAGES, int RESIDENT>
struct Tile {
  static constexpr int kMembers = MEMBERS;
  static constexpr int kRows = ROWS, kWarpOrbits = ORBITS, kBlocks8 = ORBITS / 8;
  static constexpr int kHeight = HEIGHT, kWidth = WIDTH, kPatches = PATCHES, kGroups = GROUPS;
  static constexpr int kChannels = CHANNELS, kStages = STAGES, kResident = RESIDENT;
  static constexpr int kTogether = ORBITS % 32 == 0 ? 8 : 4;  // consecutive orbits that a lane stores at once
  static constexpr int kFragments = ROWS / 2;  // m16 fragments of a warp: image rows (q, q + ROWS / 2)
  static constexpr int kWindows =
      kFragments + 2;  // pairs of rows that the vertical taps of all fragments reach
  static constexpr int kDownPatch = HEIGHT / ROWS, kAcrossPatch = WIDTH / 8;
  static constexpr int kPixelWarps = PATCHES * kDownPatch * kAcrossPatch;
  static constexpr int kWarps = kPixelWarps * GROUPS, kThreads = kWarps * 32;
  static constexpr int kOrbits = ORBITS * GROUPS;
  static constexpr int kPitch = WIDTH + 2, kPatchPixels = (HEIGHT + 2) * kPitch,
                       kHalo = PATCHES * kPatchPixels;
  static constexpr int kChunks = CHANNELS / 8;  // 16-byte chunks of a pixel
  static constexpr int kKeyShift = kChunks == 2 ? 2 : kChunks == 4 ? 1 : 0;
  static constexpr int kHaloChunks = kHalo * kChunks;
  static constexpr int kWeightChunks = kTaps * kOrbits * kChunks;
  static constexpr int kHaloBytes = (kHaloChunks * 16 + 127) / 128 * 128, kWeightBytes = kWeightChunks * 16;
  static constexpr int kStageBytes = kHaloBytes + kWeightBytes;
  static constexpr int kLoads = (kHaloChunks + kThreads - 1) / kThreads;
  static constexpr int kWeightLoads = (kWeightChunks + kThreads - 1) / kThreads;
  static constexpr int kTableBytes = kLoads * kThreads * 8;
  static constexpr int kSharedBytes = STAGES * kStageBytes + kTableBytes;
  static_assert(MEMBERS == 2 || MEMBERS == 4, "ties along one or two axes");
  static_assert(ROWS % 2 == 0 && HEIGHT % ROWS == 0 && WIDTH % 8 == 0 && ORBITS % 16 == 0, "tile of a warp");
  static_assert(kChunks == 2 || kChunks == 4 || kChunks == 8, "channels of a stage");
  static_assert(kThreads % kChunks == 0, "a thread copies the same chunk of every pixel");
  static_assert(kWeightBytes % 128 == 0 && kPitch % 2 == 0, "alignment of the swizzle");
};

// A problem as the kernels see it, rows and columns those of the tile.
struct Layer {
  int images, depth, height, width;       // images: planes of the whole batch
  int chunks, orbits;                     // of a group: chunks of 8 input channels, rows of the weight
  int down, across;                       // patches of an image
  int orbit_blocks, blocks;               // blocks of kOrbits orbits: of a group, of all groups
  int steps;                              // stages of kChannels channels
  int tiles;                              // of the whole problem: groups of patches times blocks of orbits
  int x_image, x_plane, x_row, x_column;  // strides in chunks of 8 channels
  int y_row, y_column;                    // strides in elements
  int64_t y_image, y_plane;
  int activation;
  int whole;  // are all stores of a lane's orbits possible at once?
};

namespace {

// Where a patch lies: image (or -1 beyond the last), first row and column.
struct Patch {
  int image, row, column;
};

template <class T>
__device__ __forceinline__ Patch patch_at(const Layer& p, int tile, int patch) {
  const int index = tile / p.blocks * T::kPatches + patch, each = p.down * p.across;
  const int image = index / each, inside = index % each;
  return {image < p.images ? image : -1, inside / p.across * T::kHeight, inside % p.across * T::kWidth};
}

// Patch and first pixel of a warp's rows x 8 pixels inside its patch.
template <class T>
__device__ __forceinline__ Patch warp_patch(int pixel_warp) {
  const int inside = pixel_warp % (T::kDownPatch * T::kAcrossPatch);
  return {pixel_warp / (T::kDownPatch * T::kAcrossPatch), inside / T::kAcrossPatch * T::kRows,
          inside % T::kAcrossPatch * 8};
}

// Bytes from the start of a stage to a chunk of a halo pixel; the key comes from the column alone, so that
// the windows of all rows differ by constants.
template <class T>
__device__ __forceinline__ uint32_t halo_address(uint32_t row, uint32_t column, uint32_t chunk, int patch) {
  const uint32_t key = (column >> T::kKeyShift) & (T::kChunks - 1);
  return (row * T::kPitch + column + patch * T::kPatchPixels) * (T::kChannels * 2) + (chunk ^ key) * 16;
}

// The same for a chunk of one folded tap of an orbit's weights.
template <class T>
__device__ __forceinline__ uint32_t weight_address(int tap, uint32_t orbit, uint32_t chunk) {
  const uint32_t key = (orbit >> T::kKeyShift) & (T::kChunks - 1);
  return (orbit + tap * T::kOrbits) * (T::kChannels * 2) + (chunk ^ key) * 16;
}

// Row of the weight tile that holds an orbit. In a run of 4 kTogether orbits, column 2t + e of the j-th n8
// block is orbit t * kTogether + 2j + e, so that a lane ends up with consecutive orbits and stores them as
// they are.
template <class T>
__device__ __forceinline__ int weight_row(int orbit) {
  constexpr int run = 4 * T::kTogether;
  const int inside = orbit % run, t = inside / T::kTogether, j = inside % T::kTogether / 2, e = inside % 2;
  return orbit - inside + j * 8 + 2 * t + e;
}

// What one asynchronous copy of a thread does: source in chunks of 8 channels (-1: zeros), target in bytes.
struct Copy {
  int source;
  uint32_t target;
};

template <class T>
__device__ __forceinline__ Copy copy_at(const Layer& p, int tile, int index) {
  const int pixel = index / T::kChunks, chunk = index % T::kChunks;
  const int patch = pixel / T::kPatchPixels, inside = pixel % T::kPatchPixels;
  const int row = inside / T::kPitch, column = inside % T::kPitch;
  const Patch at = patch_at<T>(p, tile, patch);
  const int y = at.row + row - 1, x = at.column + column - 1;
  const bool valid = at.image >= 0 && y >= 0 && y < p.height && x >= 0 && x < p.width;
  const int group = tile % p.blocks / p.orbit_blocks;
  const int source = valid ? at.image / p.depth * p.x_image + at.image % p.depth * p.x_plane + y * p.x_row +
                                 x * p.x_column + group * p.chunks + chunk
                           : -1;
  return {source, halo_address<T>(row, column, chunk, patch)};
}

}  // namespace

}  // namespace symconv
