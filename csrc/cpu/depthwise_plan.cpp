// Plans of the depthwise passes.
#include "depthwise_plan.h"

#include <algorithm>

namespace symconv {

namespace {

// Axes on which this tap and its mirror image differ, width first.
int paired_axes(const Problem& p, int mask, const Taps& tap, int (&axes)[kAxes]) {
  int tied[kAxes], n = 0;
  const int ties = tied_axes(mask, tied);
  for (int i = 0; i < ties; ++i)
    if (2 * tap[tied[i]] + 1 != p.kernel[tied[i]]) axes[n++] = tied[i];
  return n;
}

Taps mirrored(const Problem& p, Taps tap, int subset, const int* axes) {
  for (int i = 0; subset >> i; ++i)
    if (subset >> i & 1) tap[axes[i]] = static_cast<int>(p.kernel[axes[i]]) - 1 - tap[axes[i]];
  return tap;
}

// Representatives of a mirrored axis: its first half, the centre included.
int half(const Problem& p, int mask, int axis) {
  const int k = static_cast<int>(p.kernel[axis]);
  return mask >> (kAxes - 1 - axis) & 1 ? (k + 1) / 2 : k;
}

KernelLine kernel_line(const Problem& p, int mask, const Taps& tap, int weight) {
  KernelLine line;
  line.weight = weight;
  const int vertical = mask & ~1;
  int axes[kAxes];
  line.log_images = paired_axes(p, vertical, tap, axes);
  int tied[kAxes];
  const int ties = tied_axes(vertical, tied);
  for (int s = 0; s < 1 << line.log_images; ++s) {
    const Taps t = mirrored(p, tap, s, axes);
    line.tap[s][0] = t[0], line.tap[s][1] = t[1];
    line.parity[s] = 0;
    for (int i = 0; i < line.log_images; ++i)
      if (s >> i & 1) line.parity[s] |= 1 << (std::find(tied, tied + ties, axes[i]) - tied);
  }
  return line;
}

void add_tap_groups(const Problem& p, TiePlan& tie, const KernelLine& line, Taps tap) {
  const int width = static_cast<int>(p.kernel[2]);
  for (tap[2] = 0; tap[2] < half(p, tie.mask, 2); ++tap[2]) {
    TapGroup g;
    int axes[kAxes];
    g.log_taps = paired_axes(p, tie.mask, tap, axes);
    const bool pair = tie.tied && 2 * tap[2] + 1 != width;
    for (int s = 0; s < 1 << g.log_taps; ++s) {
      const Taps t = mirrored(p, tap, s, axes);
      g.tap[s] = static_cast<int32_t>((t[0] * p.kernel[1] + t[1]) * width + t[2]);
      const int up = pair ? s >> 1 : s;
      const int across = pair ? 2 * tap[2] + (s & 1) : tie.tied ? width - 1 : tap[2];
      g.place[s] = line.weight + up * width + across;
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

template <class Key>
Steps make_steps(const TiePlan& tie, const LinePhase& phase, const Box& box, int64_t pitch, int64_t keys,
                 Key key) {
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
      if (any) steps.emplace_back(static_cast<int32_t>(key(line, k)), step);
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
  int64_t low = INT64_MAX, high = INT64_MIN;
  for (int k = 0; k < width; ++k)
    if (m.present[k]) low = std::min(low, m.b[k]), high = std::max(high, m.b[k]);
  if (low > high) return;  // no tap meets this phase
  phase.column = low, phase.span = high - low;
  const auto offset = [&](int k) { return static_cast<int32_t>(m.present[k] ? m.b[k] - low : 0); };
  for (int k = 0; k < width; ++k)
    if (m.present[k]) phase.untied.push_back({offset(k), 0, k});
  for (int k = 0; k < width / 2; ++k) {
    const int image = width - 1 - k;
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

TiePlan tie_plan(const Problem& p, int mask) {
  TiePlan tie;
  tie.mask = mask;
  tie.ties = __builtin_popcount(mask);
  tie.tied = mask & 1;
  tie.vertical = tie.ties - (tie.tied ? 1 : 0);
  int weight = 0;
  for (int d = 0; d < half(p, mask, 0); ++d)
    for (int h = 0; h < half(p, mask, 1); ++h) {
      tie.lines.push_back(kernel_line(p, mask, {d, h, 0}, weight));
      add_tap_groups(p, tie, tie.lines.back(), {d, h, 0});
      weight += static_cast<int>(p.kernel[2]) << tie.lines.back().log_images;
    }
  return tie;
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

Steps steps_by_line(const TiePlan& tie, const LinePhase& phase, const Box& box, int64_t pitch) {
  return make_steps(tie, phase, box, pitch, 3 * box.lines(),
                    [&](int64_t line, size_t k) { return 3 * line + tie.lines[k].log_images; });
}

Steps steps_by_kernel_line(const TiePlan& tie, const LinePhase& phase, const Box& box, int64_t pitch) {
  return make_steps(tie, phase, box, pitch, static_cast<int64_t>(tie.lines.size()),
                    [](int64_t, size_t k) { return static_cast<int64_t>(k); });
}

int window_index(const Problem& p) {
  const int64_t k = p.kernel[2];
  if (p.transposed || p.stride[2] != 1 || p.dilation[2] != 1) return -1;
  return k == 3 ? 0 : k == 5 ? 1 : k == 7 ? 2 : -1;
}

}  // namespace symconv
