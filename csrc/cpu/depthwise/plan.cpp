// Plans of the depthwise passes.
#include "depthwise/plan.h"

#include <algorithm>

namespace symconv {

namespace {

KernelLine kernel_line(const Problem& p, const TiePlan& tie, const Taps& tap, int weight) {
  KernelLine line;
  line.weight = weight;
  const Tie upright = tie.without(2), paired = upright.paired(p.kernel, tap);
  line.log_images = paired.axes();
  for (int s = 0; s < paired.members(); ++s) {
    const Taps t = paired.image(p.kernel, tap, s);
    line.tap[s][0] = static_cast<int>(t[0]), line.tap[s][1] = static_cast<int>(t[1]);
    line.parity[s] = upright.member_of(paired, s);
  }
  return line;
}

// The taps that are kept of a line of filters that are their own images: weights of the one parity as they
// are. Backwards an odd line is its own negative.
void add_kept_taps(const Problem& p, const Segment& segment, TiePlan& tie, const KernelLine& line, Taps tap,
                   bool backwards) {
  const int64_t width = p.kernel[2];
  const Triple kept = segment.kept(p.kernel);
  const int64_t first = line.weight + combination_of(line, tie.own_up) * width;
  for (tap[2] = 0; tap[2] < kept[2]; ++tap[2]) {
    const bool pair = tie.tied && tap[2] < width / 2;
    const int64_t across = pair        ? 2 * tap[2] + tie.own_across
                           : tie.tied  ? width - 1
                           : backwards ? mirrored(width, tap[2])
                                       : tap[2];
    TapGroup g{};
    g.tap[0] = static_cast<int32_t>((tap[0] * kept[1] + tap[1]) * kept[2] + tap[2]);
    g.place[0] = static_cast<int32_t>(first + across);
    g.sign = backwards && tie.own_across ? -1 : 1;
    tie.taps.push_back(g);
  }
}

void add_tap_groups(const Problem& p, TiePlan& tie, const KernelLine& line, Taps tap) {
  const int64_t width = p.kernel[2];
  for (tap[2] = 0; tap[2] < tie.representatives(p.kernel)[2]; ++tap[2]) {
    const Tie paired = tie.paired(p.kernel, tap);
    TapGroup g;
    g.log_taps = paired.axes();
    const bool pair = paired.has(2);
    for (int s = 0; s < paired.members(); ++s) {
      const Taps t = paired.image(p.kernel, tap, s);
      g.tap[s] = static_cast<int32_t>((t[0] * p.kernel[1] + t[1]) * width + t[2]);
      const int64_t up = pair ? s >> 1 : s;
      const int64_t across = pair ? 2 * tap[2] + (s & 1) : tie.tied ? width - 1 : tap[2];
      g.place[s] = static_cast<int32_t>(line.weight + up * width + across);
    }
    tie.taps.push_back(g);
  }
}

// Orders `steps` by key, which counts from 0 to keys - 1.
Steps grouped(const std::vector<std::pair<int32_t, DepthwiseStep>>& steps, int64_t keys) {
  Steps out;
  out.first.assign(keys + 1, 0);
  for (const auto& s : steps) ++out.first[s.first + 1];
  for (int64_t k = 0; k < keys; ++k) out.first[k + 1] += out.first[k];
  out.all.resize(steps.size());
  std::vector<int32_t> at(out.first.begin(), out.first.end() - 1);
  for (const auto& s : steps) out.all[at[s.first]++] = s.second;
  return out;
}

// Line of the packed source (0: zeros) that `tap` of the kernel meets at this anchor.
int32_t source_row(const LinePhase& phase, const Box& box, const int64_t (&anchor)[2], const int (&tap)[2],
                   int64_t pitch) {
  int64_t at[2];
  for (int i = 0; i < 2; ++i) {
    const AxisMap& m = *phase.axis[i];
    at[i] = m.a * anchor[i] + m.b[tap[i]];
    if (!m.present[tap[i]] || at[i] < 0 || at[i] >= m.extent) return 0;
  }
  const int64_t height = box.source_end[1] - box.source_begin[1];
  return static_cast<int32_t>((1 + (at[0] - box.source_begin[0]) * height + at[1] - box.source_begin[1]) *
                              pitch);
}

// A step on another plane. Row 0 is that plane's own line of zeros.
DepthwiseStep on_plane(DepthwiseStep step, int64_t plane, const Contraction& c) {
  for (int32_t& row : step.row) row += static_cast<int32_t>(plane * c.source);
  step.weight += static_cast<int32_t>(plane * c.weights);
  return step;
}

template <class Key>
Steps make_steps(const TiePlan& tie, const LinePhase& phase, const Box& box, int64_t pitch,
                 const Contraction& contraction, int64_t keys, Key key) {
  std::vector<std::pair<int32_t, DepthwiseStep>> steps;
  for (int64_t line = 0; line < box.lines(); ++line) {
    const int64_t anchor[2] = {box.anchor(line, 0), box.anchor(line, 1)};
    for (size_t k = 0; k < tie.lines.size(); ++k) {
      const KernelLine& from = tie.lines[k];
      DepthwiseStep step{{}, from.weight, static_cast<int32_t>(line)};
      bool any = false;
      for (int s = 0; s < 1 << from.log_images; ++s) {
        step.row[s] = source_row(phase, box, anchor, from.tap[s], pitch);
        any = any || step.row[s];
      }
      for (int64_t plane = 0; any && plane < contraction.planes; ++plane)
        steps.emplace_back(static_cast<int32_t>(key(line, k)), on_plane(step, plane, contraction));
    }
  }
  return grouped(steps, keys);
}

// Source positions that the anchors [begin, end) of an axis need.
void source_range(const AxisMap& m, int64_t begin, int64_t end, int64_t& source_begin, int64_t& source_end) {
  int64_t low = m.extent, high = 0;
  for (size_t k = 0; k < m.b.size(); ++k) {
    if (!m.present[k]) continue;
    low = std::min(low, m.a * begin + m.b[k]);
    high = std::max(high, m.a * (end - 1) + m.b[k] + 1);
  }
  source_begin = std::clamp<int64_t>(low, 0, m.extent);
  source_end = std::clamp<int64_t>(high, source_begin, m.extent);
}

void set_columns(LinePhase& phase, const Problem& p) {
  const AxisMap& m = *phase.axis[2];
  const int width = static_cast<int>(p.kernel[2]);
  const auto [first, last] = m.reach();
  phase.column = first, phase.span = last - first;
  const auto offset = [&](int k) { return static_cast<int32_t>(m.present[k] ? m.b[k] - phase.column : 0); };
  for (int k = 0; k < width; ++k)
    if (m.present[k]) phase.untied.push_back({offset(k), 0, k});
  for (int k = 0; k < width / 2; ++k) {
    const int image = mirrored(width, k);
    const LineTap tap{offset(k), offset(image), 2 * k};
    if (m.present[k] && m.present[image])
      phase.pairs.push_back(tap);
    else if (m.present[k])
      phase.lefts.push_back(tap);
    else if (m.present[image])
      phase.rights.push_back(tap);
  }
  if (width % 2 && m.present[width / 2]) phase.plain.push_back({offset(width / 2), 0, width - 1});
}

}  // namespace

int combination_of(const KernelLine& line, int up) {
  const int* end = line.parity + (1 << line.log_images);
  const int* found = std::find(line.parity, end, up);
  return found == end ? -1 : static_cast<int>(found - line.parity);
}

TiePlan tie_plan(const Problem& p, const Segment& segment, bool backwards) {
  const Tie &of = segment.tie, upright = of.without(2);
  TiePlan tie{of,
              of.has(2),
              upright.axes(),
              segment.own_image,
              segment.odd.has(2),
              of.part_of(segment.parity(), upright),
              {},
              {}};
  int weight = 0;
  const Triple half = of.representatives({p.kernel[0], p.kernel[1], 1});
  for_taps(half, [&](const Taps& tap) {
    const KernelLine line = kernel_line(p, tie, tap, weight);
    if (tie.own_image && combination_of(line, tie.own_up) < 0) return;  // it is its own negative
    tie.own_image ? add_kept_taps(p, segment, tie, line, tap, backwards) : add_tap_groups(p, tie, line, tap);
    weight += static_cast<int>(p.kernel[2]) << line.log_images;
    tie.lines.push_back(line);
  });
  return tie;
}

MirroredTaps mirrored_taps(const Problem& p) {
  MirroredTaps found;
  const Triple stride{p.kernel[1] * p.kernel[2], p.kernel[2], 1};
  for (const MirroredRow& filter : p.across) {
    std::vector<TapGroup>& taps = found[filter.mirrors];
    if (!taps.empty()) continue;
    for_taps(p.kernel, [&](const Taps& tap) {
      TapGroup g{};
      g.tap[0] = static_cast<int32_t>(dot(kAllAxes.image(p.kernel, tap, filter.mirrors), stride));
      g.place[0] = static_cast<int32_t>(dot(tap, stride));
      taps.push_back(g);
    });
  }
  return found;
}

LineTaps LinePhase::taps(bool tied) const {
  if (!tied) return {untied.data(), nullptr, nullptr, nullptr, static_cast<int64_t>(untied.size()), 0, 0, 0};
  return {plain.data(),
          pairs.data(),
          lefts.data(),
          rights.data(),
          static_cast<int64_t>(plain.size()),
          static_cast<int64_t>(pairs.size()),
          static_cast<int64_t>(lefts.size()),
          static_cast<int64_t>(rights.size())};
}

Runs::Runs(int64_t lines, int64_t width, int64_t pitch, int64_t first, bool together)
    : lines_(lines), count_(lines), together_(together && lines > 0 && width > 0 && width <= kPositions) {
  if (!together_) return;
  const int64_t most = std::min(lines, (kPositions + width - 1) / width);
  count_ = (lines + most - 1) / most;
  for (int64_t line = 0; line < most; ++line)
    for (int64_t i = 0; i < width; ++i)
      place_[line * width + i] = static_cast<int32_t>(line * pitch + first + i);
}

int64_t line_pitch(const LinePhase& phase, int64_t positions) {
  return ((positions - 1) * phase.axis[2]->a + phase.span + 1) | 1;
}

std::vector<LinePhase> line_phases(const std::vector<AxisMap> (&axes)[kAxes], const Problem& p) {
  std::vector<LinePhase> phases;
  for (const AxisMap& d : axes[0])
    for (const AxisMap& h : axes[1])
      for (const AxisMap& w : axes[2]) {
        if (!d.count || !h.count || !w.count) continue;
        LinePhase phase;
        phase.axis[0] = &d, phase.axis[1] = &h, phase.axis[2] = &w;
        set_columns(phase, p);
        phases.push_back(std::move(phase));
      }
  return phases;
}

void cut_boxes(LinePhase& phase, int64_t pitch, int64_t most, int64_t at_least) {
  int64_t size[2] = {phase.axis[0]->count, phase.axis[1]->count}, parts[2] = {1, 1};
  for (;;) {
    Box box;
    for (int i = 0; i < 2; ++i)
      source_range(*phase.axis[i], 0, size[i], box.source_begin[i], box.source_end[i]);
    const bool small = (box.source_lines() + 1) * pitch <= most && parts[0] * parts[1] >= at_least;
    const int axis = size[0] > 1 ? 0 : 1;  // a box of one plane needs no second plane in the cache
    if (small || size[axis] <= (axis == 1 ? 8 : 1)) break;  // the halo must not outweigh the rest
    parts[axis] *= 2;
    size[axis] = (phase.axis[axis]->count + parts[axis] - 1) / parts[axis];
  }
  for (int64_t d = 0; d < phase.axis[0]->count; d += size[0])
    for (int64_t h = 0; h < phase.axis[1]->count; h += size[1]) {
      Box box{{d, h},
              {std::min(d + size[0], phase.axis[0]->count), std::min(h + size[1], phase.axis[1]->count)},
              {},
              {}};
      for (int i = 0; i < 2; ++i)
        source_range(*phase.axis[i], box.begin[i], box.end[i], box.source_begin[i], box.source_end[i]);
      phase.boxes.push_back(box);
    }
}

Steps steps_by_line(const TiePlan& tie, const LinePhase& phase, const Box& box, int64_t pitch,
                    const Contraction& contraction) {
  return make_steps(tie, phase, box, pitch, contraction, 3 * box.lines(),
                    [&](int64_t line, size_t k) { return 3 * line + tie.lines[k].log_images; });
}

Steps steps_by_kernel_line(const TiePlan& tie, const LinePhase& phase, const Box& box, int64_t pitch) {
  return make_steps(tie, phase, box, pitch, {1, 0, 0}, static_cast<int64_t>(tie.lines.size()),
                    [](int64_t, size_t k) { return static_cast<int64_t>(k); });
}

int window_index(const Problem& p) {
  const int64_t k = p.kernel[2];
  if (p.transposed || p.stride[2] != 1 || p.dilation[2] != 1) return -1;
  return k == 3 ? 0 : k == 5 ? 1 : k == 7 ? 2 : -1;
}

}  // namespace symconv
