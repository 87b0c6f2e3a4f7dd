// How a gradient of the weight is cut up: tiles, warps of a CTA, splits. Chosen by counting; knows no CUDA.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "check.h"
#include "items.h"

namespace symconv {

struct WgradLaunch {
  int set, threads, shared_bytes;
  int64_t grid;
  WgradWork work;
};

// The launches of a segment, which share the splits, and the bytes of its sums before `first_byte` of the
// next.
struct WgradSegmentPlan {
  std::vector<WgradLaunch> launches;
  WgradTotal total;
  int64_t first_byte, bytes;
  double clocks;
};

struct WgradPlan {
  std::string error;
  std::vector<WgradSegmentPlan> parts;
  int64_t bytes = 0;
};

namespace wgrad {

constexpr int kPlaceBytes = 256;                   // where CTA and warps work (tile.cuh)
constexpr int kMostPlace = 1023;                   // 10 bits an axis in the tables
constexpr int64_t kWorkspace = int64_t{64} << 20;  // of all segments together, beyond one split
constexpr int64_t kReserved = 1024;                // bytes of shared memory that a resident CTA takes besides
// Clocks of a multiprocessor: a product (an H200's rate, measured), 16 bytes a lane of shared memory, a byte
// from the second-level cache and of the workspace; guesses: a tile's waits, a CTA's start, a warp's waits in
// a step, what a thread takes to copy 16 bytes and to fold them.
constexpr double kProduct = 1.5, kMatrices = 4, kByte = 1 / 24.0, kSumByte = 1 / 15.0;
constexpr double kTile = 150, kStart = 3000, kStep = 60, kCopy = 25, kFoldTurn = 40;

inline int64_t up(int64_t n, int64_t by) { return (n + by - 1) / by; }
inline int log2_of(int64_t n) { return n > 1 ? 1 + log2_of(n / 2) : 0; }

// What the launches of a segment share.
inline WgradWork start(const WgradParams& p, const WgradSegment& s) {
  constexpr int copies[8] = {0, 1, 2, 6, 3, 5, 4, 7};  // of three axes: place of a member among the copies
  WgradWork w{};
  const WgradAxes axes = wgrad_axes(p);
  for (int a = 0; a < 3; ++a) {
    w.x[a] = static_cast<int>(axes.x[a]), w.y[a] = static_cast<int>(axes.y[a]);
    w.kernel[a] = static_cast<int>(axes.kernel[a]), w.stride[a] = static_cast<int>(axes.stride[a]);
    w.dilation[a] = static_cast<int>(axes.dilation[a]), w.padding[a] = static_cast<int>(axes.padding[a]);
  }
  for (int i = 0; i < 4; ++i) w.x_stride[i] = axes.x_stride[i], w.y_stride[i] = axes.y_stride[i];
  w.batch = static_cast<int>(p.batch), w.channels = static_cast<int>(p.channels);
  w.filters = static_cast<int>(p.filters), w.groups = static_cast<int>(p.groups);
  w.rows = static_cast<int>(s.rows), w.mask = static_cast<int>(s.mask), w.order = wgrad_order(s.mask);
  for (int m = 0; m < 1 << w.order; ++m) {
    const int64_t place = w.order == 3 ? copies[m] : m;
    w.members[m] = static_cast<int>(m == 0 ? s.row : s.copy + (place - 1) * s.rows);
  }
  return w;
}

// Sizes that follow from the tile and from the warps side by side; false if tables cannot hold them.
inline bool lay_out(WgradWork& w, const WgradShape& shape, int bytes) {
  const int pad = bytes == 2 ? 16 : 32;
  w.all_tiles = w.batch;
  for (int a = 0; a < 3; ++a) {
    w.tiles[a] = static_cast<int>(up(w.y[a], w.tile[a]));
    if (int64_t{w.all_tiles} * w.tiles[a] > 1 << 30) return false;
    w.all_tiles *= w.tiles[a];
    // Along an axis with one pixel, or one tap, only what lies under taps, or pixels, is kept.
    w.sample[a] = w.tile[a] == 1     ? w.dilation[a]
                  : w.kernel[a] == 1 ? w.stride[a]
                                     : std::gcd(w.stride[a], w.dilation[a]);
    w.step[a] = std::max(1, w.stride[a] / w.sample[a]), w.reach[a] = w.dilation[a] / w.sample[a];
    w.halo[a] = (w.tile[a] - 1) * w.step[a] + (w.kernel[a] - 1) * w.reach[a] + 1;
  }
  w.columns = static_cast<int>(up(w.halo[2], w.step[2]));
  w.halo[2] = w.columns * w.step[2];
  for (int a = 0; a < 3; ++a)
    if (int64_t{w.halo[a] - 1} * w.sample[a] > kMostPlace || w.tile[a] > kMostPlace) return false;
  const int64_t pixels = int64_t{w.halo[0]} * w.halo[1] * w.halo[2];
  if (pixels > 1 << 14) return false;
  w.pixels = static_cast<int>(pixels);
  w.runs = w.tile[0] * w.tile[1] * w.tile[2] / 8;
  if (bytes == 2) w.runs = (w.runs + 1) / 2 * 2;
  w.steps = bytes == 2 ? w.runs / 2 : w.runs;
  const int rows = w.warps_m * shape.m * 16, channels = w.warps_n * shape.n * 8;
  w.x_pitch = channels * bytes + pad, w.y_pitch = rows * bytes + pad;
  w.n_shift = log2_of(channels * bytes / 16), w.m_shift = log2_of(rows * bytes / 16);
  w.slice_bytes = w.runs * 8 * w.y_pitch;
  w.table_bytes = static_cast<int>(up(kPlaceBytes + 4 * w.pixels + 36 * w.runs, 128) * 128);
  w.x_bytes = static_cast<int>(up(int64_t{w.pixels} * w.x_pitch, 128) * 128);
  w.stage_bytes = static_cast<int>(up(w.x_bytes + (int64_t{w.slice_bytes} << w.order), 128) * 128);
  w.blocks_m = static_cast<int>(up(w.rows, rows)), w.blocks_n = static_cast<int>(up(w.channels, channels));
  w.sets = static_cast<int>(up(w.items, w.warps_items));
  return true;
}

inline int64_t shared_bytes(const WgradWork& w) { return w.table_bytes + int64_t{w.stages} * w.stage_bytes; }
inline int warps(const WgradWork& w) { return w.warps_m * w.warps_n * w.warps_items; }
inline int64_t grid(const WgradWork& w) {
  return int64_t{w.groups} * w.blocks_m * w.blocks_n * w.sets * w.splits;
}

// CTAs that share a multiprocessor: by registers eight warps, and what the shared memory holds.
inline int64_t resident(const WgradWork& w, const WgradParams& p) {
  const int64_t memory = (p.shared_bytes + kReserved) / (shared_bytes(w) + kReserved);
  return std::clamp<int64_t>(memory, 1, std::max(1, 8 / warps(w)));
}

// Clocks of a tile in each of `together` CTAs on a multiprocessor: what it can do in all, and what a warp
// does in turn.
inline double tile_clocks(const WgradWork& w, const WgradShape& s, int bytes, int64_t together) {
  const double busiest = static_cast<double>(up(warps(w) * together, 4)) * 4;  // warps go to four schedulers
  const double products = double{1} * w.steps * s.slots * s.m * s.n;           // of a warp
  const double gradient = double{1} * w.slice_bytes * (1 << w.order),
               input = double{1} * w.pixels * w.x_pitch;
  const bool folds = w.order || bytes == 4;
  const double loads = warps(w) * w.steps * (s.slices * s.m + s.slots * s.n / 2.0);
  const double memory = loads * kMatrices + (input + gradient * (folds ? 3 : 1)) / 128;
  const double each = 16.0 * warps(w) * 32;  // bytes that the CTA's threads copy at once
  const double turn = products * 4 * kProduct + w.steps * kStep +
                      std::ceil((input + gradient) / each) * kCopy +
                      (folds ? std::ceil(gradient / each) * kFoldTurn : 0);
  const double all = static_cast<double>(together);
  return std::max({busiest * products * kProduct, all * memory, all * (input + gradient) * kByte, turn}) +
         kTile;
}

// Clocks of a launch with its splits, and of what it leaves to sum up.
inline double clocks(const WgradWork& w, const WgradShape& s, int bytes, const WgradParams& p) {
  const int64_t ctas = grid(w), sms = p.multiprocessors, together = resident(w, p);
  const int64_t rest = ctas % (sms * together), last = up(rest, sms);
  const double depth = w.stages == 1 ? 1.8 : w.stages == 2 ? 1.1 : 1.0, tiles = up(w.all_tiles, w.splits);
  const auto round = [&](int64_t n) { return tiles * depth * tile_clocks(w, s, bytes, n) + kStart; };
  double total = static_cast<double>(ctas / (sms * together)) * round(together);
  if (last) total += round(last);
  const double sums =
      4.0 * w.groups * w.rows * w.channels * w.kernel[0] * w.kernel[1] * w.kernel[2] * w.splits;
  return total + 2 * sums * kSumByte / static_cast<double>(sms);
}

// The best number of splits of this work: few, or such that whole rounds of CTAs fill the device.
inline double split(WgradWork& w, const WgradShape& s, int bytes, const WgradParams& p, int most) {
  w.splits = 1;
  const int64_t base = grid(w), slots = p.multiprocessors * resident(w, p);
  double best = std::numeric_limits<double>::infinity();
  int chosen = 1;
  for (int64_t half_rounds = 0; half_rounds <= 6; ++half_rounds) {
    const int64_t n = half_rounds ? std::max<int64_t>(1, half_rounds * slots / 2 / base) : 1;
    w.splits = static_cast<int>(std::min<int64_t>({n, most, w.all_tiles}));
    const double t = clocks(w, s, bytes, p);
    if (t < best) best = t, chosen = w.splits;
  }
  w.splits = chosen;
  return best;
}

// Tiles to try: 8 to 256 output pixels, no axis much longer than the map.
inline std::vector<std::vector<int>> tiles(const WgradWork& w) {
  std::vector<std::vector<int>> all;
  for (const int z : {1, 2, 4})
    for (const int y : {1, 2, 3, 4, 6, 7, 8, 14, 16})
      for (const int x : {8, 16, 24, 32, 64, 128}) {
        if (z * y * x > 256 || (z > 1 && z >= 2 * w.y[0]) || (y > 1 && y >= 2 * w.y[1]) || x >= w.y[2] + 8)
          continue;
        all.push_back({z, y, x});
      }
  return all;
}

// The warps of a CTA, its tile, its stages and (if `splits` is 0) its splits that take the least clocks:
// returns them, infinitely many if nothing fits the shared memory.
inline double choose(WgradWork& w, const WgradShape& shape, int bytes, const WgradParams& p, int splits,
                     int most) {
  double best = std::numeric_limits<double>::infinity();
  WgradWork chosen = w;
  const auto shapes = tiles(w);
  for (int n = 1; n <= 8; n *= 2)
    for (int m = 1; n * m <= 8; m *= 2)
      for (int i = 1; n * m * i <= 8 && i <= w.items; ++i) {
        if ((n > 1 && n * shape.n * 4 >= w.channels) || (m > 1 && m * shape.m * 8 >= w.rows)) continue;
        w.warps_n = n, w.warps_m = m, w.warps_items = i;
        for (const auto& tile : shapes) {
          std::copy(tile.begin(), tile.end(), w.tile);
          if (!lay_out(w, shape, bytes)) continue;
          for (w.stages = 3; w.stages > 0; --w.stages) {
            if (shared_bytes(w) > p.shared_bytes) continue;
            w.splits = splits;
            const double t = splits ? clocks(w, shape, bytes, p) : split(w, shape, bytes, p, most);
            if (t < best) best = t, chosen = w;
          }
        }
      }
  w = chosen;
  return best;
}

inline WgradTotal total_of(const WgradParams& p, const WgradSegment& s, const WgradWork& w) {
  WgradTotal t{};
  t.groups = w.groups, t.rows = w.rows, t.channels = w.channels, t.mask = w.mask, t.splits = w.splits;
  std::copy(w.kernel, w.kernel + 3, t.kernel);
  for (t.parts = 1; t.parts < 8 && 8 * t.parts <= t.splits;) t.parts *= 2;
  const int64_t stride[] = {p.w_stride_group, p.w_stride_row, p.w_stride_channel,
                            p.w_stride_z,     p.w_stride_y,   p.w_stride_x};
  std::copy(stride, stride + 6, t.stride);
  t.first = s.row * p.w_stride_row;
  return t;
}

// The launches of one way to cut the taps up, and their clocks; infinite where something does not fit.
inline double plan_way(const WgradParams& p, const WgradSegment& s, const std::vector<WgradItems>& way,
                       int most, std::vector<WgradLaunch>& launches) {
  int splits = 0;
  double total = 0;
  for (const WgradItems& items : way) {
    WgradLaunch launch{items.set, 0, 0, 0, start(p, s)};
    WgradWork& w = launch.work;
    w.items = items.count;
    std::copy(items.taps.begin(), items.taps.end(), w.taps);
    std::copy(items.axes.begin(), items.axes.end(), w.axes);
    const int bytes = static_cast<int>(wgrad_bytes(p));
    total += choose(w, wgrad_shape_of(items.set, bytes), bytes, p, splits, most);
    splits = w.splits;
    launch.threads = 32 * warps(w), launch.shared_bytes = static_cast<int>(shared_bytes(w)),
    launch.grid = grid(w);
    if (launch.grid > std::numeric_limits<int>::max()) total = std::numeric_limits<double>::infinity();
    launches.push_back(launch);
  }
  return total;
}

inline std::string plan_segment(const WgradParams& p, const WgradSegment& s, WgradSegmentPlan& part) {
  const int64_t slab = 4 * p.groups * s.rows * p.channels * p.kernel_depth * p.kernel_height * p.kernel_width;
  const int64_t most = std::clamp<int64_t>(kWorkspace * s.rows / p.rows / slab, 1, 4096);
  const int kernel[3] = {static_cast<int>(p.kernel_depth), static_cast<int>(p.kernel_height),
                         static_cast<int>(p.kernel_width)};
  part.clocks = std::numeric_limits<double>::infinity();
  for (const auto& way : wgrad_ways(static_cast<int>(s.mask), kernel)) {
    std::vector<WgradLaunch> launches;
    const double t = plan_way(p, s, way, static_cast<int>(most), launches);
    if (t < part.clocks) part.clocks = t, part.launches = std::move(launches);
  }
  if (part.launches.empty())
    return "no tile fits the " + std::to_string(p.shared_bytes >> 10) + " KB of shared memory";
  part.total = total_of(p, s, part.launches[0].work);
  part.bytes = slab * part.total.splits;
  if (up(slab / 4, 32) > std::numeric_limits<int>::max()) return "the weight is too large";
  return "";
}

}  // namespace wgrad

inline WgradPlan wgrad_plan(const WgradParams& p) {
  WgradPlan plan;
  for (const auto check :
       {wgrad_check_sizes, wgrad_check_strides, wgrad_check_segments, wgrad_check_alignment}) {
    plan.error = check(p);
    if (!plan.error.empty()) return plan;
  }
  for (int i = 0; i < p.segments; ++i) {
    WgradSegmentPlan part{};
    plan.error = wgrad::plan_segment(p, wgrad_segment(p, i), part);
    if (!plan.error.empty()) return plan;
    part.first_byte = plan.bytes;
    plan.bytes += (part.bytes + 127) / 128 * 128;
    plan.parts.push_back(std::move(part));
  }
  return plan;
}

}  // namespace symconv
