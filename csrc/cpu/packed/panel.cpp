// Cutting the work into tiles, and packing the panel of one tile.
#include "packed/panel.h"

#include <algorithm>
#include <array>
#include <bit>

#include "blocking.h"

namespace symconv {

namespace {

constexpr int64_t kMinPixels = 14;

// Equal blocks of at most `limit`.
int64_t even_block(int64_t count, int64_t limit) {
  limit = std::clamp<int64_t>(limit, 1, std::max<int64_t>(count, 1));
  return ceil_div(count, ceil_div(count, limit));
}

void set_block(Tiling& t, int axis, int64_t limit) {
  t.block[axis] = std::max<int64_t>(1, even_block(t.count[axis], limit));
  t.blocks[axis] = ceil_div(t.count[axis], t.block[axis]);
}

void choose_blocks(Tiling& t, int64_t slot_bytes, const TileLimits& limits, bool planes) {
  int64_t pixels =
      std::clamp<int64_t>(limits.bytes / std::max<int64_t>(slot_bytes, 1), kMinPixels, limits.pixels);
  if (t.span == 0) {
    pixels = std::max<int64_t>(pixels / t.products, kMinPixels);
    set_block(t, 2, pixels);
    set_block(t, 1, pixels / t.block[2]);
    set_block(t, 0, pixels / (t.block[2] * t.block[1]));
    return;
  }
  // Halo lines are packed again for every tile: at least four times as many lines as halo.
  const int64_t lines = std::min<int64_t>(t.count[0], 4 * t.span) + t.span;
  set_block(t, 2, std::max<int64_t>(planes ? 32 : kMinPixels, pixels / lines));
  set_block(t, 1, 1);
  set_block(t, 0, std::max<int64_t>(1, pixels / t.block[2] - t.span));
}

// More, smaller tiles until the threads share them evenly or there are plenty.
void balance(Tiling& t, int64_t outer, int64_t threads) {
  for (int round = 0; round < 8; ++round) {
    const int64_t tasks = outer * t.tiles();
    if (tasks % threads == 0 || tasks >= 8 * threads) return;
    int axis = 0;
    while (axis < kAxes && t.block[axis] <= 1) ++axis;
    if (axis == kAxes) return;
    const int64_t block = ceil_div(t.count[axis], t.blocks[axis] + 1);
    t.block[axis] = block < t.block[axis] ? block : t.block[axis] - 1;
    t.blocks[axis] = ceil_div(t.count[axis], t.block[axis]);
  }
}

Tiling make_tiling(const Plan& plan, const Phase& phase, int64_t outer, int64_t slot_bytes,
                   const TileLimits& limits, int64_t threads, bool planes) {
  Tiling t;
  int n = 0;
  if (plan.offset_axis >= 0) t.order[n++] = plan.offset_axis;
  for (int axis = 0; axis < kAxes; ++axis)
    if (axis != plan.offset_axis) t.order[n++] = axis;
  for (int i = 0; i < kAxes; ++i) t.count[i] = phase.axis[t.order[i]]->count;
  if (plan.offset_axis >= 0) {
    const auto [low, high] = phase.axis[plan.offset_axis]->reach();
    t.b_min = low;
    t.lines_out = kLinesOut[plan.filtering];
    t.products = kLinesIn[plan.filtering];
    t.span = plan.filtering ? 0 : high - low;
  }
  t.lines = t.count[0];
  t.count[0] = ceil_div(t.lines, t.lines_out);
  choose_blocks(t, slot_bytes, limits, planes);
  balance(t, outer, threads);
  return t;
}

// One source of a group on one line of the tile, or absent.
struct LineSource {
  bool valid;
  int64_t base;  // element offset of the line in the source
  int64_t b;     // inner source position = a * t + b
};

template <class T>
using PackRun = void (*)(const RunArgs<T>&);

template <class T>
struct Packer {
  const Kernels<T>& kernels;
  const Plan& plan;
  const Phase& phase;
  const Tile& tile;
  const PanelLayout& layout;
  const View<const Element<T>>& source;
  const StagePlaces* stage;  // null: `source` is the tensor itself
  int64_t source_channel;
  const Chunk& chunk;
  bool planes;
  const Element<T>* zeros;
  Stored<T>* panel;
  int64_t ld, product_stride;

  int inner() const { return phase.tiling.order[2]; }

  // Position of a source on an outer axis of the tiling.
  int64_t position(int level, int64_t index, int line, const Taps& tap) const {
    const int axis = phase.tiling.order[level];
    const AxisMap& m = *phase.axis[axis];
    const int64_t t = tile.begin[level] + index;
    if (axis == kDepthAxis && plan.sums_depth()) return t;
    return axis == plan.offset_axis ? t * phase.tiling.lines_out + line + phase.tiling.b_min
                                    : m.a * t + m.b[tap[axis]];
  }

  // A stage has zeros around the map, so that every position exists there.
  bool inside(int level, int64_t at) const {
    return stage || (at >= 0 && at < phase.axis[phase.tiling.order[level]]->extent);
  }

  int64_t offset(int level, int64_t at) const {
    const int axis = phase.tiling.order[level];
    return stage ? stage->offset(axis, at) : phase.axis[axis]->source(at) * source.stride[axis];
  }

  LineSource line_source(const Group& g, int s, int line, int64_t i0, int64_t i1) const {
    const Taps& tap = g.tap[s];
    const int64_t at0 = position(0, i0, line, tap), at1 = position(1, i1, line, tap);
    const bool valid = inside(0, at0) && inside(1, at1) && source_present(plan, phase, g, s);
    const int64_t base = source.batch_stride * tile.image + offset(0, at0) + offset(1, at1) +
                         (source_channel + g.channel[s]) * source.channel_stride;
    return {valid, base, phase.axis[inner()]->b[tap[inner()]]};
  }

  RunArgs<T> run_args(const Group& g, int64_t positions) const {
    RunArgs<T> r;
    r.ld = ld;
    r.loose = stage != nullptr;
    r.product_stride = product_stride;
    r.positions = positions;
    r.channels = chunk.width(plan, plan.slots[g.slot[0]]);
    return r;
  }

  void set_out(RunArgs<T>& r, const Group& g, int64_t pixel) const {
    for (int s = 0; s < 1 << g.log_sources; ++s) {
      const int64_t row = layout.offset[g.slot[s < g.slots ? s : 0]] * layout.depth;
      r.out[s] = planes ? panel + row * ld + pixel : panel + pixel * ld + row;
    }
  }

  PackRun<T> function(const Group& g) const {
    const int outputs = std::countr_zero(static_cast<unsigned>(g.slots));
    if (plan.sums_members)
      return (planes ? kernels.both_planes : kernels.both_pixels)[g.log_sources][outputs];
    // Of one odd parity all results of a butterfly go to one place, its own one last.
    const auto& table = !plan.adds ? (planes ? kernels.fold_planes : kernels.fold_pixels)
                                   : (planes ? kernels.sum_planes : kernels.sum_pixels);
    return table[plan.filtering][g.log_sources];
  }

  void run(const Group& g, const LineSource (&from)[kMaxLines][kMaxSources], int64_t pixel, int64_t t,
           int64_t positions) const {
    const AxisMap& m = *phase.axis[inner()];
    const int64_t step = m.a * source.stride[inner()];
    const int sources = 1 << g.log_sources;
    RunArgs<T> r = run_args(g, positions);
    for (int line = 0; line < phase.tiling.products; ++line)
      for (int s = 0; s < sources; ++s) {
        const int64_t at = m.a * t + from[line][s].b;
        const bool valid = from[line][s].valid && inside(2, at);
        r.source[line][s] = valid ? source.data + from[line][s].base + offset(2, at) : zeros;
        r.position_step[line][s] = valid ? step : 0;
        r.channel_step[line][s] = valid ? source.channel_stride : 0;
      }
    set_out(r, g, pixel);
    function(g)(r);
  }

  // Anchors for which the same sources lie in the map form one run: with taps far apart there are many for
  // which some do not.
  void pack_line(const Group& g, int64_t i0, int64_t i1) const {
    const AxisMap& m = *phase.axis[inner()];
    const int64_t begin = tile.begin[2], end = begin + tile.size[2];
    LineSource from[kMaxLines][kMaxSources];
    std::array<int64_t, 2 * kMaxSources + 1> borders;  // where a run ends
    int count = 0;
    const auto add_border = [&](int64_t t) {
      if (t > begin && t < end) borders[count++] = t;
    };
    for (int s = 0; s < 1 << g.log_sources; ++s) {
      bool valid = false;
      for (int line = 0; line < phase.tiling.products; ++line) {
        from[line][s] = line_source(g, s, line, i0, i1);
        valid = valid || from[line][s].valid;
      }
      if (!valid) continue;
      add_border(-floor_div(from[0][s].b, m.a));
      add_border(floor_div(m.extent - 1 - from[0][s].b, m.a) + 1);
    }
    borders[count++] = end;
    std::sort(borders.begin(), borders.begin() + count);
    const int64_t pixel = (i0 * tile.size[1] + i1) * tile.size[2] - begin;
    int64_t t = begin;
    for (int i = 0; i < count; ++i) {
      if (borders[i] > t) run(g, from, pixel + t, t, borders[i] - t);
      t = borders[i];
    }
  }

  // In the stage, of a line `line`, `i0`, `i1` further on, where planes do not take turns in between; only
  // the axes that are not the inner one have a part in it.
  int64_t line_offset(int line, int64_t i0, int64_t i1) const {
    const Taps none{};
    return offset(0, position(0, i0, line, none)) + offset(1, position(1, i1, line, none)) -
           offset(0, position(0, 0, 0, none)) - offset(1, position(1, 0, 0, none));
  }

  // A group's sources on one line of a tile, from a stage: every position exists there, so that they keep
  // their distances on all lines, unless planes take turns.
  StagedRun<T> staged_run(const Group& g, int64_t i0) const {
    const AxisMap& m = *phase.axis[inner()];
    StagedRun<T> run{};
    run.log_sources = g.log_sources;
    run.channels = chunk.width(plan, plan.slots[g.slot[0]]);
    for (int s = 0; s < 1 << g.log_sources; ++s) {
      const LineSource f = line_source(g, s, 0, i0, 0);
      run.step[s] = f.valid ? source.channel_stride : 0;
      run.source[s] = f.valid ? source.data + f.base + offset(2, m.a * tile.begin[2] + f.b) : zeros;
      run.row[s] = layout.offset[g.slot[s < g.slots ? s : 0]] * layout.depth * ld;
    }
    return run;
  }

  // By group; those that nothing feeds have none.
  std::vector<StagedRun<T>> staged_runs(int64_t i0) const {
    std::vector<StagedRun<T>> runs;
    runs.reserve(plan.groups.size());
    for (const Group& g : plan.groups)
      if (layout.offset[g.slot[0]] >= 0) runs.push_back(staged_run(g, i0));
    return runs;
  }

  // Line by line: all taps read the same few of them, which stay in the first-level cache. Calls pack(runs,
  // their distance on this line, that of lines which are filtered together, pixel).
  template <class Pack>
  void for_staged_lines(const Pack& pack) const {
    const int64_t outer = line_offset(0, 1, 0), middle = line_offset(0, 0, 1), apart = line_offset(1, 0, 0);
    std::vector<StagedRun<T>> runs = staged_runs(0);
    for (int64_t i0 = 0; i0 < tile.size[0] + phase.tiling.span; ++i0) {
      if (stage->planes && i0 > 0) runs = staged_runs(i0);
      const int64_t from = stage->planes ? 0 : i0 * outer;
      for (int64_t i1 = 0; i1 < tile.size[1]; ++i1)
        pack(runs, from + i1 * middle, apart, (i0 * tile.size[1] + i1) * tile.size[2]);
    }
  }

  void pack_staged() const {
    if (plan.filtering || plan.sums_members) return pack_staged_runs();
    StagedLine<T> line{};
    line.positions = tile.size[2], line.ld = ld;
    for_staged_lines([&](const std::vector<StagedRun<T>>& runs, int64_t from, int64_t, int64_t pixel) {
      line.run = runs.data(), line.runs = static_cast<int64_t>(runs.size());
      line.from = from, line.out = panel + pixel;
      (plan.adds ? kernels.sum_line : kernels.fold_line)(line);
    });
  }

  // The same by a call for each group, which may be filtered.
  void pack_staged_runs() const {
    for_staged_lines([&](const std::vector<StagedRun<T>>& runs, int64_t from, int64_t apart, int64_t pixel) {
      size_t i = 0;
      for (const Group& g : plan.groups) {
        if (layout.offset[g.slot[0]] < 0) continue;
        const StagedRun<T>& run = runs[i++];
        RunArgs<T> r = run_args(g, tile.size[2]);
        for (int l = 0; l < phase.tiling.products; ++l)
          for (int s = 0; s < 1 << g.log_sources; ++s) {
            const int64_t moves = run.step[s] ? 1 : 0;
            r.source[l][s] = run.source[s] + moves * (from + l * apart);
            r.position_step[l][s] = moves, r.channel_step[l][s] = run.step[s];
          }
        set_out(r, g, pixel);
        function(g)(r);
      }
    });
  }

  void pack() const {
    if (stage) return pack_staged();
    for (int64_t i0 = 0; i0 < tile.size[0] + phase.tiling.span; ++i0)
      for (int64_t i1 = 0; i1 < tile.size[1]; ++i1)
        for (const Group& g : plan.groups)
          if (layout.offset[g.slot[0]] >= 0) pack_line(g, i0, i1);
  }
};

}  // namespace

std::vector<Phase> make_phases(const Plan& plan, const Problem& p, int64_t slot_bytes,
                               const TileLimits& limits, int64_t threads, bool planes) {
  std::vector<Phase> phases;
  for (const AxisMap& d : plan.axes[0])
    for (const AxisMap& h : plan.axes[1])
      for (const AxisMap& w : plan.axes[2]) {
        if (d.count == 0 || h.count == 0 || w.count == 0) continue;
        Phase phase{{&d, &h, &w}, {}};
        phase.tiling = make_tiling(plan, phase, p.batch * p.groups, slot_bytes, limits, threads, planes);
        phases.push_back(phase);
      }
  return phases;
}

Tile tile_at(const Tiling& t, int64_t index) {
  Tile tile;
  int64_t at[kAxes];
  if (t.strip) {
    tile.image = index / t.tiles(), index %= t.tiles();
    const int64_t first = index / (t.strip * t.blocks[0] * t.blocks[2]) * t.strip;
    index -= first * t.blocks[0] * t.blocks[2];
    const int64_t strip = std::min(t.strip, t.blocks[1] - first);
    at[1] = first + index % strip, index /= strip;
    at[0] = index % t.blocks[0], at[2] = index / t.blocks[0];
  } else {
    for (int i = kAxes - 1; i >= 0; --i) at[i] = index % t.blocks[i], index /= t.blocks[i];
    tile.image = index;
  }
  for (int i = 0; i < kAxes; ++i) {
    tile.begin[i] = at[i] * t.block[i];
    tile.size[i] = std::min(t.block[i], t.count[i] - tile.begin[i]);
  }
  return tile;
}

bool source_present(const Plan& plan, const Phase& phase, const Group& g, int source) {
  for (int axis = 0; axis < kAxes; ++axis) {
    if (axis == plan.offset_axis) continue;
    const std::vector<char>& present = phase.axis[axis]->present;
    const int64_t tap = g.tap[source][axis];
    const bool either =
        axis == kDepthAxis && plan.sums_depth() && present[mirrored<int64_t>(present.size(), tap)];
    if (!present[tap] && !either) return false;
  }
  return true;
}

PanelLayout panel_layout(const Plan& plan, const Phase& phase, const Chunk& chunk, int depth) {
  PanelLayout layout;
  layout.depth = depth;
  layout.offset.assign(plan.slots.size(), -1);
  for (const Group& g : plan.groups) {
    bool fed = false;
    for (int s = 0; s < 1 << g.log_sources; ++s) fed = fed || source_present(plan, phase, g, s);
    if (!fed || chunk.width(plan, plan.slots[g.slot[0]]) == 0) continue;
    for (int s = 0; s < g.slots; ++s) layout.offset[g.slot[s]] = 0;
  }
  for (size_t i = 0; i < plan.slots.size(); ++i) {
    if (layout.offset[i] < 0) continue;
    layout.offset[i] = layout.total;
    layout.total += ceil_div(chunk.width(plan, plan.slots[i]), depth);
  }
  return layout;
}

void destination_offsets(const Phase& phase, const Tile& tile, int64_t batch_stride, const Triple& stride,
                         int64_t* out) {
  int64_t first[kAxes], step[kAxes];
  for (int i = 0; i < kAxes; ++i) {
    const int axis = phase.tiling.order[i];
    const AxisMap& m = *phase.axis[axis];
    const int64_t lines = i == 0 ? phase.tiling.lines_out : 1;
    first[i] = (m.first + m.step * lines * tile.begin[i]) * stride[axis];
    step[i] = m.step * lines * stride[axis];
  }
  for (int64_t i0 = 0; i0 < tile.size[0]; ++i0)
    for (int64_t i1 = 0; i1 < tile.size[1]; ++i1)
      for (int64_t i2 = 0; i2 < tile.size[2]; ++i2)
        *out++ = batch_stride * tile.image + first[0] + first[1] + first[2] + i0 * step[0] + i1 * step[1] +
                 i2 * step[2];
}

template <class T>
void pack_panel(const Kernels<T>& kernels, const Plan& plan, const Phase& phase, const Tile& tile,
                const PanelLayout& layout, const View<const Element<T>>& source, const StagePlaces* stage,
                int64_t source_channel, const Chunk& chunk, bool planes, const Element<T>* zeros,
                Stored<T>* panel, int64_t ld, int64_t product_stride) {
  Packer<T>{kernels,        plan,  phase,  tile,  layout, source, stage,
            source_channel, chunk, planes, zeros, panel,  ld,     product_stride}
      .pack();
}

#define SYMCONV_INSTANTIATE(T)                                                                               \
  template void pack_panel<T>(const Kernels<T>&, const Plan&, const Phase&, const Tile&, const PanelLayout&, \
                              const View<const Element<T>>&, const StagePlaces*, int64_t, const Chunk&,      \
                              bool, const Element<T>*, Stored<T>*, int64_t, int64_t);
SYMCONV_FOR_ALL_TYPES(SYMCONV_INSTANTIATE)

}  // namespace symconv
