// Products of all taps of a scatter, by the matrix kernel. Included by scatter/scatter.cpp.
#pragma once

#include <algorithm>
#include <vector>

#include "scatter/source.h"

namespace symconv {

template <class T>
class ScatterProducts : public ScatterSource<T> {
 public:
  using ScatterSource<T>::ScatterSource;

 protected:
  using Base = ScatterSource<T>;
  using Base::kDepth;
  using Base::p_, Base::m_, Base::q_, Base::plan_, Base::map_;
  using typename Base::Local, typename Base::Task;

  // Lines that are multiplied together.
  struct Lines {
    size_t line_class;
    int64_t count;
    int64_t at;    // source line of the first one, at the first tap where the outer axis is contracted
    int64_t step;  // source lines from one to the next
  };

  // Products of weight `w`: a parity, or a product of minimal filtering.
  void multiply(const Task& t, const Lines& lines, int w, Local& local) const {
    for (size_t c = 0; c < p_.regions.size(); ++c)
      p_.planes ? multiply_planes(t, lines, c, w, local) : multiply_pixels(t, lines, c, w, local);
  }

  const std::vector<ScatterTerm>& terms(int w) const { return p_.terms[plan_.folded ? w : 0]; }

  // Segments of the matrix kernel for line number `line`. `add` takes a term, its source line, and the first
  // row of its weights.
  template <class Add>
  void for_segments(const Task& t, const Lines& lines, int64_t line, int w, int64_t weight_ld,
                    const Add& add) const {
    const auto& all = terms(w);
    const AxisMap& outer = map_[plan_.outer];
    for (size_t i = 0; i < all.size(); ++i) {
      if (!this->present(t, p_.groups[all[i].group])) continue;
      int64_t source_line = lines.at + line * lines.step;
      if (!plan_.ring && !plan_.filtering) {
        source_line += outer.b[all[i].tap] - outer.b[0];
        if (!this->inside(plan_.outer, source_line) && !p_.planes) continue;
      }
      add(all[i], source_line, static_cast<int64_t>(i) * p_.rows * weight_ld);
    }
  }

  Sum<T>* products(size_t c, int w, const Local& local) const {
    return local.products + p_.regions[c].product + (plan_.ring ? 0 : w) * p_.product_stride;
  }

  // What waits for the taps of the outer axis (ring): products of a line, or sums of them along it.
  Sum<T>* ring_line(int64_t line, int parity, int member, const Local& local) const {
    const int64_t place = (line % p_.ring_lines * plan_.parities() + parity) * plan_.line_members() + member;
    return local.ring + place * p_.sums_member;
  }

  // Of pixels, with the zeros before them.
  Sum<T>* line_products(const Lines& lines, int64_t l, size_t c, int w, const Local& local) const {
    if (!plan_.summed) return ring_line(lines.at + l, w, 0, local);
    return products(c, w, local) + l * local.spans[c].pitch() * p_.regions[c].product_ld;
  }

  void multiply_pixels(const Task& t, const Lines& lines, size_t c, int w, Local& local) const {
    const auto& r = p_.regions[c];
    const auto& matrix = p_.matrix(w, lines.line_class, c);
    const ScatterSpan& span = local.spans[c];
    const int64_t positions = span.count, filtered = plan_.line_of(w);
    const int64_t stride = m_.source.stride[plan_.inner];
    const AxisMap &deep = map_[plan_.deep], &along = map_[plan_.inner];
    GemmArgs<Word<T>> g{};
    g.lda = p_.direct ? q_.stride[plan_.inner] * stride / kDepth : r.panel_ld * (plan_.summed ? 1 : along.a);
    g.ldb = matrix.ld, g.ldc = plan_.summed ? r.product_ld : p_.sums_ld;
    // A line that is there: where lines are relaid not all are.
    const int64_t there = p_.relaid ? local.have_begin : 0;
    const Word<T>* origin =
        p_.direct ? reinterpret_cast<const Word<T>*>(this->source(
                        t, 0, there, positions ? this->position(c, span.begin) : local.stage_begin))
                  : local.panel + r.panel + filtered * r.panel_product;
    const auto offset = [&](const ScatterTerm& term, int64_t line) {
      if (!plan_.summed)
        return ((line - lines.at) * p_.panel_rows(c) + along.b[term.tap] - along.b[0]) * r.panel_ld +
               term.slot * p_.rows;
      if (p_.direct)
        return ((deep.a * t.deep + deep.b[p_.groups[term.group].tap]) * m_.source.stride[plan_.deep] +
                (line - there) * m_.source.stride[plan_.outer]) /
               kDepth;
      return (line - lines.at) * positions * r.panel_ld + term.slot * p_.rows;
    };
    if (static_cast<int64_t>(local.segments.size()) < lines.count) local.segments.resize(lines.count);
    for (int64_t l = 0; l < lines.count; ++l) {
      clear_halo(span, line_products(lines, l, c, w, local), g.ldc);
      GemmSegments& segments = local.segments[l];
      segments.clear();
      for_segments(t, lines, l, w, matrix.ld, [&](const ScatterTerm& term, int64_t line, int64_t weights) {
        segments.add(offset(term, line), weights, p_.rows);
      });
    }
    for (const ColumnBlock& block : p_.blocks_of[&matrix - p_.matrices.data()])
      for (int64_t l = 0; l < lines.count; ++l) {
        local.segments[l].attach(g);
        g.b = local.weights + matrix.offset + block.vector * p_.lanes;
        Sum<T>* to = line_products(lines, l, c, w, local) + span.before * g.ldc + block.vector * p_.lanes;
        for_pieces(positions, p_.kernels.max_rows[block.vectors], [&](int64_t p0, int64_t count) {
          g.a = origin + p0 * g.lda, g.c = to + p0 * g.ldc;
          p_.kernels.gemm(static_cast<int>(count), block.vectors, g);
        });
      }
  }

  static void clear_halo(const ScatterSpan& span, Sum<T>* line, int64_t ld) {
    std::fill(line, line + span.before * ld, Sum<T>(0));
    std::fill(line + (span.before + span.count) * ld, line + span.pitch() * ld, Sum<T>(0));
  }

  void multiply_planes(const Task& t, const Lines& lines, size_t c, int w, Local& local) const {
    const auto& r = p_.regions[c];
    const auto& matrix = p_.matrix(w, lines.line_class, c);
    const int64_t filtered = plan_.line_of(w), rows = p_.columns(lines.line_class, c);
    GemmArgs<Word<T>> g{};
    g.lda = 1, g.a_step = matrix.ld, g.ldb = r.panel_ld, g.ldc = r.product_ld;
    if (local.segments.empty()) local.segments.resize(1);
    GemmSegments& segments = local.segments[0];
    segments.clear();
    for_segments(t, lines, 0, w, matrix.ld, [&](const ScatterTerm& term, int64_t line, int64_t weights) {
      segments.add(weights, term.slot * p_.rows * r.panel_ld + (line - lines.at) * local.spans[c].count,
                   p_.rows);
    });
    segments.attach(g);
    const Word<T>* b = (kDepth > 1 ? local.zipped : local.panel) + r.panel + filtered * r.panel_product;
    for (const ColumnBlock& block : column_blocks(local.spans[c].count * lines.count, p_.lanes)) {
      g.b = b + block.vector * p_.lanes;
      for_pieces(rows, p_.kernels.max_rows[block.vectors], [&](int64_t r0, int64_t count) {
        g.a = local.weights + matrix.offset + r0;
        g.c = products(c, w, local) + r0 * g.ldc + block.vector * p_.lanes;
        p_.kernels.gemm(static_cast<int>(count), block.vectors, g);
      });
    }
  }

  // Products of a tap of the inner axis, where tap `at` of a member takes them, for a task's first result of
  // line number `line`.
  const Sum<T>* product(const Task& t, int w, size_t line_class, int64_t line, int tap, int at,
                        const Local& local) const {
    const size_t c = plan_.line.class_of[at];
    const int64_t ld = p_.regions[c].product_ld;
    const int64_t row = plan_.line.index[tap] * p_.outer_taps(line_class) * p_.width;
    const ScatterSpan& span = local.spans[c];
    const int64_t position = line * span.pitch() + span.before + t.first + plan_.line.shift[at] - span.begin;
    return products(c, w, local) + (p_.planes ? row * ld + position : position * ld + row);
  }

  // Where the sums over the inner axis find products: both members, for every tap. With both parities of a
  // filtered axis the same for the odd one.
  void set_sources(const Task& t, ScatterArgs<T>& a, int w, size_t line_class, int64_t line,
                   const Local& local) const {
    const int taps = static_cast<int>(q_.kernel[plan_.inner]);
    a.taps = taps;
    if (p_.planes) a.mask = p_.masks.data() + t.first, a.mask_ld = p_.mask_ld;
    for (int k = 0; k < taps; ++k) {
      a.step[k] = p_.regions[plan_.line.class_of[k]].product_ld;
      a.source[0][k] = product(t, w, line_class, line, k, k, local);
      a.source[1][k] = product(t, w, line_class, line, mirrored(taps, k), k, local);
      if (!plan_.filters_parities()) continue;
      a.source[2][k] = product(t, w + plan_.lines_in(), line_class, line, k, k, local);
      a.source[3][k] = product(t, w + plan_.lines_in(), line_class, line, mirrored(taps, k), k, local);
    }
  }
};

}  // namespace symconv
