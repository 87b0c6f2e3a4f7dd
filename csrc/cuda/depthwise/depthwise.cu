// Launching the depthwise kernels.
#include <limits>

#include "depthwise/kernels.cuh"
#include "depthwise/plan.h"

#include "depthwise/instances.h"

namespace symconv {
namespace {

constexpr int64_t kMost = int64_t{1} << 20;  // of a size, a distance or a number of channels of a group
constexpr int64_t kMostShared = 227 << 10;
constexpr int64_t kMostStride = int64_t{1} << 42;
constexpr int64_t kMostInt = std::numeric_limits<int32_t>::max();

bool within(int64_t v, int64_t least, int64_t most) { return least <= v && v <= most; }

struct NamedSize {
  const char* name;
  int64_t value, least, most;
};

std::string check_sizes(const DepthwiseParams& p) {
  const NamedSize sizes[] = {{"op", p.op, 0, 2},
                             {"dtype", p.dtype, 0, 2},
                             {"bias", p.bias, 0, 1},
                             {"activation", p.activation, 0, 3},
                             {"swap", p.swap, 0, 1},
                             {"batch", p.batch, 1, kMostInt},
                             {"channels", p.channels, 1, kMostInt / 2},
                             {"rows", p.rows, 1, kMost},
                             {"filters", p.filters, 1, kMost},
                             {"segments", p.segments, 1, kSegments},
                             {"x_height", p.x_height, 1, kMost},
                             {"x_width", p.x_width, 1, kMost},
                             {"y_height", p.y_height, 1, kMost},
                             {"y_width", p.y_width, 1, kMost},
                             {"kernel_height", p.kernel_height, 1, 1 << 12},
                             {"kernel_width", p.kernel_width, 1, 1 << 12},
                             {"stride_height", p.stride_height, 1, 1 << 10},
                             {"stride_width", p.stride_width, 1, 1 << 10},
                             {"dilation_height", p.dilation_height, 1, 1 << 10},
                             {"dilation_width", p.dilation_width, 1, 1 << 10},
                             {"padding_height", p.padding_height, 0, kMost},
                             {"padding_width", p.padding_width, 0, kMost},
                             {"block", p.block, 1, 32},
                             {"images", p.images, 1, 1 << 12},
                             {"tile_height", p.tile_height, 1, 1 << 12},
                             {"tile_width", p.tile_width, 1, 1 << 12},
                             {"pairs", p.pairs, 1, 1 << 12},
                             {"chunks", p.chunks, 1, 1 << 16},
                             {"shared_bytes", p.shared_bytes, 0, kMostShared}};
  for (const auto& [name, value, least, most] : sizes)
    if (!within(value, least, most))
      return std::string(name) + " = " + std::to_string(value) + " is not from " + std::to_string(least) +
             " to " + std::to_string(most);
  return "";
}

bool output_fits(int64_t x, int64_t y, int64_t taps, int64_t stride, int64_t dilation, int64_t padding) {
  const int64_t room = x + 2 * padding - dilation * (taps - 1) - 1;
  return room >= 0 && room / stride + 1 == y;
}

std::string check_segments(const DepthwiseParams& p, const DepthwiseDevice& d) {
  int64_t next = 0;
  for (int i = 0; i < d.segments; ++i) {
    const DepthwiseSegment& s = d.segment[i];
    const int64_t members = s.mask == 3 ? 4 : s.mask ? 2 : 1, rows = s.rows;
    if (s.row != next) return "the rows of segment " + std::to_string(i) + " do not follow those before";
    next += rows;
    if (!within(s.mask, 0, 3) || (s.mask == 3 && p.swap))
      return "mask_" + std::to_string(i) + " is not a tie of these kernels";
    if (!within(s.row, 0, p.rows - 1) || !within(rows, 1, p.rows - s.row) || !within(s.copy, 0, p.filters) ||
        (members > 1 && s.copy + (members - 1) * rows > p.filters) || s.row + rows > p.filters)
      return "the rows of segment " + std::to_string(i) + " are not all in the tensors";
  }
  return next == p.rows ? "" : "some rows of the weight are in no segment";
}

std::string check_tile(const DepthwiseParams& p, const DepthwisePlan& plan) {
  const DepthwiseAxis &across = plan.device.axis[0], &along = plan.device.axis[1];
  if (p.op == 0 && along.tile % (kRun * along.output_step)) return "tiles of the output are not whole runs";
  if (p.op == 1 && along.tile % (kRun * along.row_step)) return "tiles of the input are not whole runs";
  if (p.op == 1 && p.images * p.block * p.tile_height * p.tile_width / kRun > kDgradThreads)
    return "a tile has too many runs";
  if (p.op == 2 && p.pairs * blocks_of_taps(along) * p.block > kWgradThreads)
    return "a CTA has too many taps";
  if (plan.shared > p.shared_bytes)
    return "it needs " + std::to_string(plan.shared) + " bytes of shared memory and has " +
           std::to_string(p.shared_bytes);
  if (plan.grid > kMostInt || (p.op == 2 && plan.grid * p.rows * across.taps > kMostInt))
    return "the grid is too large";
  return "";
}

// Kernels count pixels of a window in 32 bits, before the tile is known to fit.
bool window_is_small(const DepthwiseParams& p) {
  const auto extent = [&](int64_t tile, int64_t stride, int64_t dilation, int64_t taps) {
    return (p.op == 1 ? tile : tile * stride) + dilation * (taps + (p.op == 2 ? kRun * stride : 0)) + 2;
  };
  const int64_t rows = extent(p.tile_height, p.stride_height, p.dilation_height, p.kernel_height);
  const int64_t columns = extent(p.tile_width, p.stride_width, p.dilation_width, p.kernel_width);
  return rows * columns < 1 << 22 && (rows + 1) * (columns + 32) * p.block * p.images < 1 << 26 &&
         p.kernel_height * p.kernel_width < 1 << 16;
}

template <class T, bool PLAIN>
std::string launch_wgrad(const DepthwisePlan& plan, const DepthwiseParams& p, const Pointers& at,
                         const Queue& queue) {
  const DepthwiseDevice& d = plan.device;
  float* work = static_cast<float*>(at.workspace);
  for (int i = 0; i < d.segments; ++i) {
    const DepthwiseSegment& s = d.segment[i];
    const bool fold = s.mask & 1, two = s.mask & 2;
    const int64_t columns = fold ? (d.axis[0].taps + 1) / 2 : d.axis[0].taps;
    const int grid = static_cast<int>(plan.grid * ceil_divide(columns, p.pairs) * s.rows);
    const auto kernel =
        fold ? (two ? depthwise_wgrad<T, true, true, PLAIN> : depthwise_wgrad<T, true, false, PLAIN>)
             : (two ? depthwise_wgrad<T, false, true, PLAIN> : depthwise_wgrad<T, false, false, PLAIN>);
    const std::string error =
        launch(kernel, grid, plan.threads, static_cast<int>(plan.shared), queue, d, i, at.x, at.w, work);
    if (!error.empty()) return error;
  }
  const int64_t all = p.rows * p.kernel_height * p.kernel_width * p.channels;
  return launch(depthwise_sum<T>, static_cast<int>(ceil_divide(all, kSumThreads)), kSumThreads, 0, queue, d,
                static_cast<const float*>(work), at.y);
}

template <class T, bool PLAIN>
std::string launch_plan(const DepthwisePlan& plan, const DepthwiseParams& p, const Pointers& at,
                        const Queue& queue) {
  if (p.op == 2) return launch_wgrad<T, PLAIN>(plan, p, at, queue);
  const int grid = static_cast<int>(plan.grid), shared = static_cast<int>(plan.shared);
  if (p.op == 1)
    return launch(depthwise_dgrad<T, PLAIN>, grid, plan.threads, shared, queue, plan.device, at.x, at.w,
                  at.y);
  return launch(depthwise_fprop<T, PLAIN>, grid, plan.threads, shared, queue, plan.device, at.x, at.w,
                at.bias, at.y);
}

template <class T>
std::string launch_as(const DepthwiseParams& p, const Pointers& at, const Queue& queue) {
  const DepthwisePlan plan = plan_of(p, at.x, at.w, at.y);
  return plan.plain ? launch_plan<T, true>(plan, p, at, queue) : launch_plan<T, false>(plan, p, at, queue);
}

}  // namespace

std::string depthwise_check(const DepthwiseParams& p) {
  std::string wrong = check_sizes(p);
  if (!wrong.empty()) return wrong;
  if (!output_fits(p.x_height, p.y_height, p.kernel_height, p.stride_height, p.dilation_height,
                   p.padding_height) ||
      !output_fits(p.x_width, p.y_width, p.kernel_width, p.stride_width, p.dilation_width, p.padding_width))
    return "the sizes of input and output do not belong together";
  for (const int64_t stride : {p.x_stride_y, p.x_stride_x, p.y_stride_y, p.y_stride_x})
    if (!within(stride, -kMostInt, kMostInt)) return "rows or columns are too far apart";
  for (const int64_t stride : {p.x_stride_n, p.x_stride_c, p.y_stride_n, p.y_stride_c, p.w_stride_group,
                               p.w_stride_row, p.w_stride_y, p.w_stride_x})
    if (!within(stride, -kMostStride, kMostStride)) return "a stride is too large";
  if (!window_is_small(p)) return "a tile is too large";
  if (p.rows * p.kernel_height * p.kernel_width * p.channels > kMostInt) return "the weight is too large";
  // Pairs of elements need an even address: the larger window that they need is counted.
  const DepthwisePlan plan = plan_of(p, nullptr, nullptr, nullptr);
  wrong = check_segments(p, plan.device);
  return wrong.empty() ? check_tile(p, plan) : wrong;
}

int64_t depthwise_workspace(const DepthwiseParams& p) {
  return p.op == 2 ? 4 * p.chunks * p.rows * p.kernel_height * p.kernel_width * p.channels : 0;
}

std::string depthwise_launch(const DepthwiseParams& p, const Pointers& pointers, const Queue& queue) {
  const std::string wrong = depthwise_check(p);
  if (!wrong.empty()) return wrong;
  if (!pointers.x || !pointers.w || !pointers.y || (p.op == 2 && !pointers.workspace) ||
      (p.bias && !pointers.bias))
    return "a tensor is missing";
  for (const void* pointer : {pointers.x, pointers.w, pointers.bias, static_cast<const void*>(pointers.y),
                              static_cast<const void*>(pointers.workspace)})
    if (reinterpret_cast<uintptr_t>(pointer) % 16) return "tensors must start at multiples of 16 bytes";
  const DeviceGuard guard(queue.device);
  if (guard.error()) return error_text(guard.error());
  if (p.dtype == 0) return launch_as<Bfloat16>(p, pointers, queue);
  if (p.dtype == 1) return launch_as<Float16>(p, pointers, queue);
  return launch_as<Float32>(p, pointers, queue);
}

std::vector<Variant> depthwise_variants() {
  const int most = static_cast<int>(kMostShared);
  return {{"depthwise", "fprop", 80, kFpropThreads, most, 3},
          {"depthwise", "dgrad", 80, kDgradThreads, most, 2},
          {"depthwise", "wgrad", 80, kWgradThreads, most, 2},
          {"depthwise", "sum", 80, kSumThreads, 0, 8}};
}

}  // namespace symconv
