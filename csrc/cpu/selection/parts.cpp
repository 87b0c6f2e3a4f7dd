// Equal parts of the batch, or of an image.
#include "selection/parts.h"

#include <algorithm>

#include "blocking.h"

namespace symconv {
namespace {

constexpr double kMostHalo = 1.5;  // source lines that are copied, over those that there are

int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -ceil_div(-a, b); }

int64_t product(const Triple& t) { return t[0] * t[1] * t[2]; }

struct Map {
  int64_t lines, line;  // along the outermost dimension; elements of one, of all channels
};
Map map_of(int64_t channels, const Triple& extent, int axis) {
  return {extent[axis], channels * product(extent) / extent[axis]};
}
Map input_of(const Problem& p, int axis) { return map_of(p.groups * p.channels, p.in, axis); }
Map output_of(const Problem& p, int axis) { return map_of(p.groups * p.filters, p.out, axis); }

int64_t activations(const Problem& p) {
  return p.batch * p.groups * (p.channels * product(p.in) + p.filters * product(p.out));
}

// Parts of so many lines of results.
Parts with_lines(const Problem& p, int axis, bool of_input, int64_t lines) {
  Parts parts;
  parts.of = of_input ? PartOf::input : PartOf::output;
  const int64_t stride = p.stride[axis], reach = p.dilation[axis] * (p.kernel[axis] - 1);
  parts.images = 1, parts.lines = lines;
  if (of_input) {
    parts.per = stride, parts.offset = -floor_div(reach - p.padding[axis], stride);
    parts.source_lines = (lines - 1 + p.padding[axis] - stride * parts.offset) / stride + 1;
  } else {
    parts.step = stride, parts.offset = -p.padding[axis];
    parts.source_lines = (lines - 1) * stride + reach + 1;
  }
  parts.number = p.batch * ceil_div(of_input ? p.in[axis] : p.out[axis], lines);
  return parts;
}

std::optional<Parts> some_lines(const Problem& p, int axis, bool of_input, int64_t bytes) {
  if (p.transposed) return std::nullopt;
  const Map source = of_input ? output_of(p, axis) : input_of(p, axis);
  const Map result = of_input ? input_of(p, axis) : output_of(p, axis);
  const int64_t stride = of_input ? p.stride[axis] : 1;
  const auto fits = [&](int64_t lines) {
    const int64_t read = with_lines(p, axis, of_input, lines).source_lines;
    return (source.line * read + result.line * lines) * bytes <= kMostPartBytes;
  };
  int64_t lines = result.lines;
  while (lines > stride && !fits(lines)) lines = ceil_div(ceil_div(lines, 2), stride) * stride;
  const int64_t even = ceil_div(result.lines, lines);
  lines = ceil_div(ceil_div(result.lines, even), stride) * stride;
  const Parts parts = with_lines(p, axis, of_input, lines);
  const int64_t read = ceil_div(result.lines, lines) * parts.source_lines;
  const bool near = static_cast<double>(read) <= kMostHalo * static_cast<double>(source.lines);
  if (!fits(lines) || !near || lines >= result.lines) return std::nullopt;
  return parts;
}

}  // namespace

std::optional<Parts> choose_parts(const Problem& p, int dims, PartOf what, int64_t bytes) {
  const int64_t size = activations(p);
  Parts whole;
  whole.of = what;
  if (size <= p.groups * p.orbits * p.channels * kernel_taps(p)) {
    whole.images = p.batch, whole.number = 1;
    return whole;
  }
  int64_t images = std::min(p.batch, kMostPartBytes * p.batch / (size * bytes));
  while (images > 0 && p.batch % images) --images;
  if (images) {
    whole.images = images, whole.number = p.batch / images;
    return whole;
  }
  if (what == PartOf::sum) return std::nullopt;
  return some_lines(p, kAxes - dims, what == PartOf::input, bytes);
}

Problem problem_of(const Problem& p, int dims, const Parts& parts) {
  Problem part = p;
  if (parts.images) part.batch = parts.images;
  if (!parts.lines) return part;
  const int axis = kAxes - dims;
  const bool of_input = parts.of == PartOf::input;
  part.padding[axis] = of_input ? p.padding[axis] - p.stride[axis] * parts.offset : 0;
  part.in[axis] = of_input ? parts.lines : parts.source_lines;
  part.out[axis] = of_input ? parts.source_lines : parts.lines;
  return part;
}

int64_t copied_elements(const Problem& p, int dims, const Parts& parts) {
  if (!parts.lines) return activations(p);
  const int axis = kAxes - dims;
  const Map source = parts.of == PartOf::input ? output_of(p, axis) : input_of(p, axis);
  const int64_t halo = parts.number * parts.source_lines - p.batch * source.lines;
  return activations(p) + halo * source.line;
}

}  // namespace symconv
