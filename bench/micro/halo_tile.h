// Tile shapes, addresses and the arithmetic of the halo-tile kernels, for nvcc and for a host stand-in alike.
//
// A 3 x 3 convolution, stride 1, padding 1, channels last, of filters tied by h (mirrored along W) or hv. A
// CTA owns kPatches patches of pixels, each with a halo of one pixel, times kOrbits orbits. The body of a
// warp is written over a machine M: on the GPU a register is a register of one lane, on the host it is an
// array over 32 lanes, so that the same addresses, fragments and epilogue run on both.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define HALO_FN __host__ __device__ __forceinline__
#define HALO_UNROLL _Pragma("unroll")
#else
#define HALO_FN inline
#define HALO_UNROLL
#endif

namespace halo {

enum class Tie { h, hv };

constexpr int kTaps = 9;  // folded taps: as many as a reduced filter has

// Rows, Orbits: of a warp (columns are 8); Height x Width: pixels of a patch; Groups: of orbits, one warp
// each.
template <Tie TIE, int ROWS, int ORBITS, int HEIGHT, int WIDTH, int PATCHES, int GROUPS, int CHANNELS,
          int STAGES, int RESIDENT>
struct Tile {
  static constexpr Tie kTie = TIE;
  static constexpr int kMembers = TIE == Tie::h ? 2 : 4;
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
  static_assert(ROWS % 2 == 0 && HEIGHT % ROWS == 0 && WIDTH % 8 == 0 && ORBITS % 16 == 0, "tile of a warp");
  static_assert(kChunks == 2 || kChunks == 4 || kChunks == 8, "channels of a stage");
  static_assert(kWeightBytes % 128 == 0 && kPitch % 2 == 0, "alignment of the swizzle");
};

struct Problem {
  int batch, height, width, channels, orbits;
  int down, across;  // patches of an image
  int orbit_blocks;  // blocks of kOrbits orbits
  int steps;         // stages of kChannels channels
  int tiles;         // of the whole problem: groups of patches times blocks of orbits
  int leave_out;     // to see what each part costs: 1 copies after the first stages, 2 stores
};

template <class T>
HALO_FN Problem problem(int batch, int height, int width, int channels, int orbits) {
  Problem p{batch, height, width, channels, orbits, 0, 0, 0, 0, 0, 0};
  p.down = (height + T::kHeight - 1) / T::kHeight;
  p.across = (width + T::kWidth - 1) / T::kWidth;
  p.orbit_blocks = (orbits + T::kOrbits - 1) / T::kOrbits;
  p.steps = channels / T::kChannels;
  p.tiles = (batch * p.down * p.across + T::kPatches - 1) / T::kPatches * p.orbit_blocks;
  return p;
}

// Where a patch lies: image (or -1 beyond the last), first row and column.
struct Patch {
  int image, row, column;
};

template <class T>
HALO_FN Patch patch_at(const Problem& p, int tile, int patch) {
  const int index = tile / p.orbit_blocks * T::kPatches + patch, each = p.down * p.across;
  const int image = index / each, inside = index % each;
  return {image < p.batch ? image : -1, inside / p.across * T::kHeight, inside % p.across * T::kWidth};
}

// Bytes from the start of a stage to a chunk of a halo pixel; the key comes from the column alone, so that
// the windows of all rows differ by constants.
template <class T, class I>
HALO_FN I halo_address(I row, I column, I chunk, int patch) {
  const I key = (column >> T::kKeyShift) & (T::kChunks - 1);
  return (row * T::kPitch + column + patch * T::kPatchPixels) * (T::kChannels * 2) + (chunk ^ key) * 16;
}

// The same for a chunk of one folded tap of an orbit's weights.
template <class T, class I>
HALO_FN I weight_address(int tap, I orbit, I chunk) {
  const I key = (orbit >> T::kKeyShift) & (T::kChunks - 1);
  return (orbit + tap * T::kOrbits) * (T::kChannels * 2) + (chunk ^ key) * 16;
}

// Row of the weight tile that holds an orbit. In a run of 4 kTogether orbits, column 2t + e of the j-th n8
// block is orbit t * kTogether + 2j + e, so that a lane ends up with consecutive orbits and stores them as
// they are.
template <class T>
HALO_FN int weight_row(int orbit) {
  constexpr int run = 4 * T::kTogether;
  const int inside = orbit % run, t = inside / T::kTogether, j = inside % T::kTogether / 2, e = inside % 2;
  return orbit - inside + j * 8 + 2 * t + e;
}

// What one asynchronous copy of a thread does: source in units of 8 channels (-1: zeros), target in bytes.
struct Copy {
  int source, target;
};

template <class T>
HALO_FN Copy copy_at(const Problem& p, int tile, int index) {
  const int pixel = index / T::kChunks, chunk = index % T::kChunks;
  const int patch = pixel / T::kPatchPixels, inside = pixel % T::kPatchPixels;
  const int row = inside / T::kPitch, column = inside % T::kPitch;
  const Patch at = patch_at<T>(p, tile, patch);
  const int y = at.row + row - 1, x = at.column + column - 1;
  const bool valid = at.image >= 0 && y >= 0 && y < p.height && x >= 0 && x < p.width;
  const int source = valid ? ((at.image * p.height + y) * p.width + x) * (p.channels / 8) + chunk : -1;
  return {source, halo_address<T, int>(row, column, chunk, patch)};
}

// Weight of folded tap `tap` of a filter w[kh * 3 + kw]; the order is that of multiply() below.
HALO_FN float folded(Tie tie, int tap, const float* w) {
  if (tie == Tie::h) {
    const int row = tap < 6 ? tap / 2 : tap - 6;
    const float* r = w + row * 3;
    return tap >= 6 ? r[1] : tap % 2 == 0 ? 0.5f * (r[0] + r[2]) : 0.5f * (r[0] - r[2]);
  }
  float side[3];  // tap / 3 == 0: sum over the sides, 1: difference, 2: centre
  HALO_UNROLL
  for (int kh = 0; kh < 3; ++kh) {
    const float* r = w + kh * 3;
    side[kh] = tap / 3 == 0 ? 0.5f * (r[0] + r[2]) : tap / 3 == 1 ? 0.5f * (r[0] - r[2]) : r[1];
  }
  return tap % 3 == 0 ? 0.5f * (side[0] + side[2]) : tap % 3 == 1 ? 0.5f * (side[0] - side[2]) : side[1];
}

// Patch and first pixel of a warp's rows x 8 pixels inside its patch.
template <class T>
HALO_FN Patch warp_patch(int pixel_warp) {
  const int inside = pixel_warp % (T::kDownPatch * T::kAcrossPatch);
  return {pixel_warp / (T::kDownPatch * T::kAcrossPatch), inside / T::kAcrossPatch * T::kRows,
          inside % T::kAcrossPatch * 8};
}

}  // namespace halo
