// Source lines of a scatter, packed where the matrix kernel cannot read them in place. Included by
// scatter/scatter.cpp.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "packed/segments.h"
#include "scatter/prepared.h"

namespace symconv {

struct ScatterTask {
  int64_t group, block, image, deep;  // deep: result position
  int64_t begin, end;                 // of outer_count
  int64_t first, last;                // results [first, last) of every line
};

// Source lines [begin, end) of a plane that a stage holds; -1: of none.
struct StagedPlane {
  int64_t plane = -1, begin = 0, end = 0;
};

// Memory of one thread.
template <class T>
struct ScatterLocal {
  Word<T>*panel, *zipped;
  Sum<T>*products, *ring, *zero_sums;
  Element<T>*zeros, *turned, *stage;
  const Word<T>* weights;
  const Sum<T>* bias;
  std::vector<GemmSegments> segments;  // by line
  std::vector<ScatterSpan> spans;      // by class of positions
  int64_t stage_begin, stage_count;    // positions of a line that any class reads
  int64_t stage_line;                  // source line that the stage begins with
  std::vector<StagedPlane> planes;     // by their places in the stage
  MultiplyTensors<T> near;             // relaid: copies of lines in the place of the tensors
  int64_t have_begin, have_end;        // and the source lines that are there
  int64_t made_begin, made_end;        // and the result lines
};

template <class T>
class ScatterSource {
 public:
  ScatterSource(const PreparedScatter<T>& prepared, const MultiplyTensors<T>& tensors)
      : p_(prepared), m_(tensors), q_(prepared.problem), plan_(prepared.plan) {
    for (int axis = 0; axis < kAxes; ++axis) map_[axis] = axis_maps(q_, true, axis)[0];
  }

 protected:
  using Task = ScatterTask;
  using Local = ScatterLocal<T>;
  static constexpr int kDepth = Format<T>::depth;

  bool inside(int axis, int64_t at) const { return at >= 0 && at < q_.in[axis]; }

  // A position of a line in the source.
  const Element<T>* source(const Task& t, int64_t deep, int64_t outer, int64_t inner) const {
    const View<const Element<T>>& x = m_.source;
    return x.at(t.image * x.batch_stride + t.group * q_.channels * x.channel_stride +
                deep * x.stride[plan_.deep] + outer * x.stride[plan_.outer] + inner * x.stride[plan_.inner]);
  }

  // Do any of a group's source positions exist?
  bool present(const Task& t, const DeepGroup& g) const {
    const AxisMap& m = map_[plan_.deep];
    return inside(plan_.deep, m.a * t.deep + m.b[g.tap]) ||
           (g.mirror >= 0 && inside(plan_.deep, m.a * t.deep + m.b[g.mirror]));
  }

  // Do lines follow each other without a gap, in the source as in planes?
  bool seamless(const Local& local) const {
    const int64_t along = q_.in[plan_.inner];
    const bool source = p_.turned || m_.source.stride[plan_.outer] == along * m_.source.stride[plan_.inner];
    return p_.planes && q_.stride[plan_.inner] == 1 && !plan_.filtering && source &&
           local.spans[0].count == along;
  }

  // Which positions of a line a task reads.
  void set_spans(const Task& t, Local& local) const {
    local.spans.clear();
    int64_t begin = q_.in[plan_.inner], end = 0;
    for (size_t c = 0; c < p_.regions.size(); ++c) {
      const ScatterSpan span = p_.span(c, t.first, t.last);
      local.spans.push_back(span);
      if (!span.count) continue;
      const int64_t first = position(c, span.begin);
      begin = std::min(begin, first);
      end = std::max(end, first + q_.stride[plan_.inner] * (span.count - 1) + 1);
    }
    if (!plan_.summed) {
      const AxisMap& along = map_[plan_.inner];
      begin = along.a * t.first + along.b[0], end = begin + p_.reads(t.last - t.first);
      begin = std::clamp<int64_t>(begin, 0, q_.in[plan_.inner]);
      end = std::clamp(end, begin, q_.in[plan_.inner]);
    }
    local.stage_begin = begin, local.stage_count = std::max<int64_t>(0, end - begin);
    local.have_begin = local.have_end = local.made_begin = local.made_end = 0;
  }

  // Of a class's position, in the source.
  int64_t position(size_t c, int64_t at) const {
    return plan_.line.classes[c].residue + q_.stride[plan_.inner] * at;
  }

  // Lines of a task begin here in the stage. What other tasks of the same lines left there stays.
  void begin_stage(const Task& t, const Task& before, Local& local) const {
    const AxisMap& outer = map_[plan_.outer];
    local.stage_line = std::max<int64_t>(0, outer.a * t.begin * kLinesOut[plan_.filtering] + outer.b[0]);
    const bool same = t.image == before.image && t.group == before.group && t.begin == before.begin &&
                      t.first == before.first;
    if (!same || !p_.keeps_planes) local.planes.assign(p_.staged_planes, {});
  }

  // Transposed copies of source lines from `at` on, for every tap of the deep axis, where they are not there.
  void stage(const Task& t, int64_t at, int64_t lines, Local& local) const {
    const AxisMap& m = map_[plan_.deep];
    const int64_t begin = std::max<int64_t>(0, at), end = std::min(q_.in[plan_.outer], at + lines);
    if (!p_.keeps_planes) local.stage_line = begin, local.planes.assign(p_.staged_planes, {});
    for (int64_t k = 0; k < q_.kernel[plan_.deep]; ++k) {
      const int64_t deep = m.a * t.deep + m.b[k];
      if (!inside(plan_.deep, deep)) continue;
      StagedPlane& held = local.planes[deep % p_.staged_planes];
      if (held.plane != deep || begin < held.begin || begin > held.end) held = {deep, begin, begin};
      for (; held.end < end; ++held.end)
        p_.kernels.stage_line(source(t, deep, held.end, local.stage_begin), m_.source.channel_stride,
                              m_.source.stride[plan_.inner], q_.channels, local.stage_count,
                              staged(deep, held.end, local), p_.stage_ld);
    }
  }

  // A line of a plane in the stage, of the first channel.
  Element<T>* staged(int64_t deep, int64_t line, const Local& local) const {
    return local.stage + deep % p_.staged_planes * q_.channels * p_.stage_ld +
           (line - local.stage_line) * local.stage_count;
  }

  // `count` lines of the panels from number `place` on: source lines from `at` on, or with minimal filtering
  // one, from those. Only planes hold lines outside the map.
  void pack_lines(const Task& t, int64_t place, int64_t at, int64_t count, Local& local) const {
    while (count > 0) {
      int64_t lines = 1;
      if (seamless(local) && inside(plan_.outer, at)) lines = std::min(count, q_.in[plan_.outer] - at);
      if (p_.turned) stage(t, at, lines + plan_.lines_in() - 1, local);
      if (p_.planes || plan_.filtering || inside(plan_.outer, at))
        for (size_t c = 0; c < p_.regions.size(); ++c)
          for (const DeepGroup& g : p_.groups)
            if (local.spans[c].count > 0 && present(t, g))
              plan_.summed ? pack_group(t, g, c, place, at, lines, local)
                           : pack_whole(t, g, place, at, local);
      place += lines, at += lines, count -= lines;
    }
  }

  void pack_group(const Task& t, const DeepGroup& g, size_t c, int64_t place, int64_t at, int64_t lines,
                  const Local& local) const {
    const AxisMap& m = map_[plan_.deep];
    const auto& r = p_.regions[c];
    const int64_t stride = p_.turned ? 1 : m_.source.stride[plan_.inner];
    const ScatterSpan& span = local.spans[c];
    RunArgs<T> run{};
    run.positions = lines * span.count, run.channels = q_.channels;
    for (int line = 0; line < plan_.lines_in(); ++line)
      for (int s = 0; s < (g.odd >= 0 ? 2 : 1); ++s) {
        const int tap = s ? g.mirror : g.tap;
        const int64_t deep = m.a * t.deep + m.b[tap];
        const bool there = inside(plan_.deep, deep) && inside(plan_.outer, at + line);
        run.source[line][s] = local.zeros;
        if (!there) continue;
        const int64_t first = position(c, span.begin);
        run.source[line][s] = p_.turned ? staged(deep, at + line, local) + (first - local.stage_begin)
                                        : source(t, deep, at + line, first);
        run.position_step[line][s] = q_.stride[plan_.inner] * stride;
        run.channel_step[line][s] = p_.turned ? p_.stage_ld : m_.source.channel_stride;
      }
    auto* panel = reinterpret_cast<Stored<T>*>(local.panel + r.panel);
    const int64_t place_at = place * span.count;
    for (int s = 0; s < (g.odd >= 0 ? 2 : 1); ++s) {
      const int64_t row = (s ? g.odd : g.slot) * p_.rows * kDepth;
      run.out[s] =
          p_.planes ? panel + row * r.panel_ld + place_at : panel + place_at * r.panel_ld * kDepth + row;
    }
    run.ld = p_.planes ? r.panel_ld : r.panel_ld * kDepth;
    run.product_stride = r.panel_product * kDepth;
    const int log = g.odd >= 0 ? 1 : 0;
    (p_.planes ? p_.kernels.fold_planes : p_.kernels.fold_pixels)[plan_.filtering][log](run);
    if (!p_.planes) clear_halves(run, log + 1);
  }

  // A line that is contracted along, with zeros for what lies outside the map.
  void pack_whole(const Task& t, const DeepGroup& g, int64_t place, int64_t at, const Local& local) const {
    const AxisMap &m = map_[plan_.deep], &along = map_[plan_.inner];
    const auto& r = p_.regions[0];
    const int64_t from = along.a * t.first + along.b[0], to = from + p_.reads(t.last - t.first);
    const int64_t first = std::clamp<int64_t>(0, from, to);
    const int64_t last = std::clamp(q_.in[plan_.inner], first, to);
    const int64_t stride = m_.source.stride[plan_.inner], ld = r.panel_ld * kDepth;
    const int64_t row = place * p_.panel_rows(0) * r.panel_ld + g.slot * p_.rows;
    auto* const panel = reinterpret_cast<Stored<T>*>(local.panel + r.panel + row);
    for (const auto& [begin, end] : {std::pair{from, first}, std::pair{last, to}})
      for (int64_t i = begin; i < end; ++i)
        std::fill_n(panel + (i - from) * ld, p_.rows * kDepth, Stored<T>{});
    if (first == last) return;
    RunArgs<T> run{};
    run.source[0][0] = source(t, m.a * t.deep + m.b[g.tap], at, first);
    run.position_step[0][0] = stride, run.channel_step[0][0] = m_.source.channel_stride;
    run.out[0] = panel + (first - from) * ld, run.ld = ld;
    run.positions = last - first, run.channels = q_.channels;
    p_.kernels.fold_pixels[kPlain][0](run);
    clear_halves(run, 1);
  }

  // The half of a word that an odd number of channels leaves over, in panels of pixels.
  void clear_halves(const RunArgs<T>& run, int sources) const {
    if constexpr (kDepth > 1) {
      for (int s = 0; s < sources && q_.channels % kDepth; ++s)
        for (int64_t i = 0; i < run.positions; ++i) run.out[s][i * run.ld + q_.channels] = {};
    }
  }

  // Planes of pairs, when all lines are there: neighbouring rows become words.
  void zip(const Task& t, const Local& local) const {
    if constexpr (kDepth > 1) {
      for (size_t c = 0; c < p_.regions.size() && p_.planes; ++c)
        for (const DeepGroup& g : p_.groups)
          for (const int slot : {g.slot, g.odd})
            if (slot >= 0 && present(t, g)) zip_slot(c, slot, local);
    }
  }

  void zip_slot(size_t c, int slot, const Local& local) const {
    const auto& r = p_.regions[c];
    const auto* panel = reinterpret_cast<const Stored<T>*>(local.panel + r.panel);
    const int64_t row = slot * p_.rows * r.panel_ld;
    p_.kernels.vnni_interleave({panel + row * kDepth, local.zipped + r.panel + row, r.panel_ld, r.panel_ld,
                                q_.channels, local.spans[c].count * p_.source_lines(p_.chunk)});
  }

  const PreparedScatter<T>& p_;
  const MultiplyTensors<T>& m_;
  const Problem& q_;
  const ScatterPlan& plan_;
  AxisMap map_[kAxes];
};

}  // namespace symconv
