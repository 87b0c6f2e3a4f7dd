// Forward as a scatter.
#include "scatter.h"

#include <algorithm>

#include "convert.h"
#include "scatter_prepared.h"
#include "scratch.h"

namespace symconv {

namespace {

constexpr int64_t kPackedChannels = 64;  // of the weights, packed together: their taps share cache lines

template <class T>
class Scatterer {
 public:
  Scatterer(const PreparedScatter<T>& prepared, const MultiplyTensors<T>& tensors)
      : p_(prepared), m_(tensors), q_(prepared.problem), plan_(prepared.plan) {
    for (int axis = 0; axis < kAxes; ++axis) map_[axis] = axis_maps(q_, true, axis)[0];
  }

  void operator()() {
    const int64_t blocks = q_.groups * p_.blocks;
    Scratch<Word<T>> weights(p_.weight_words * blocks);
    const int64_t pieces = (q_.channels + kPackedChannels - 1) / kPackedChannels;
    parallel_slices(blocks * pieces, p_.threads, [&](int64_t begin, int64_t end, int64_t) {
      for (int64_t i = begin; i < end; ++i)
        pack_weights(i / pieces, i % pieces * kPackedChannels, weights.data() + i / pieces * p_.weight_words);
    });
    const int64_t filters = q_.groups * q_.filters;
    Scratch<Sum<T>> bias(m_.bias ? filters + p_.lanes : 0);
    if (m_.bias)
      for (int64_t i = 0; i < filters; ++i) bias.data()[i] = widened(m_.bias[i]);
    run_tasks(weights.data(), m_.bias ? bias.data() : nullptr);
  }

 private:
  static constexpr int kDepth = Format<T>::depth;
  static_assert(sizeof(Word<T>) == sizeof(Sum<T>) && sizeof(Element<T>) <= sizeof(Sum<T>), "share a buffer");
  using Class = ScatterAxis::Class;

  // --- weights ---

  void pack_weights(int64_t block, int64_t channel, Word<T>* out) const {
    const int64_t count = std::min(kPackedChannels, q_.channels - channel);
    const Segment& s = q_.segments[p_.segment];
    const int64_t first = block % p_.blocks * p_.width, orbits = std::min(p_.width, p_.orbits - first);
    WeightArgs<T> a{};
    a.lane_stride = m_.weight.orbit_stride, a.other_stride = m_.weight.channel_stride;
    a.others = count, a.stored = p_.lanes, a.zip = kDepth > 1;
    a.tap_stride = plan_.filtering ? m_.weight.tap_stride[plan_.outer] : 0;
    const Element<T>* source = m_.weight.data + block / p_.blocks * m_.weight_group_stride +
                               (s.first + first) * a.lane_stride + channel * a.other_stride;
    const int64_t shifts = !plan_.ring && !plan_.filtering ? q_.kernel[plan_.outer] : 1;
    for (int64_t shift = 0; shift < shifts; ++shift)
      for (size_t g = 0; g < p_.groups.size(); ++g)
        for (size_t l = 0; l < p_.line_classes(); ++l)
          for (size_t c = 0; c < plan_.line.classes.size(); ++c)
            pack_matrix(a, source, g, shift, l, c, words<T>(channel), orbits, out);
  }

  // All taps of two classes, in the order of their columns: what one writes past its orbits, the next mends.
  void pack_matrix(WeightArgs<T>& a, const Element<T>* source, size_t group, int64_t shift, size_t l, size_t c,
                   int64_t row, int64_t orbits, Word<T>* out) const {
    const DeepGroup& g = p_.groups[group];
    const Class& positions = plan_.line.classes[c];
    const auto& tap_stride = m_.weight.tap_stride;
    const int64_t per_shift = static_cast<int64_t>(p_.groups.size());
    const int64_t even = p_.matrix(0, l, c).ld, odd = plan_.folded ? p_.matrix(1, l, c).ld : 0;
    a.scale = Sum<T>(1) / Sum<T>(g.odd < 0 ? 1 : 2);
    a.out_stride = even * kDepth;  // the same for both parities
    a.product_stride[0] = plan_.filtering ? kDepth * (p_.matrix(1, l, c).offset - p_.matrix(0, l, c).offset) : 0;
    int64_t column = 0;
    for (const int tap : positions.taps)
      for (int64_t o = 0; o < p_.outer_taps(l); ++o, column += p_.width) {
        const int64_t outer = plan_.ring ? plan_.lines.classes[l].taps[o] : shift;
        const int64_t at = tap * tap_stride[plan_.inner] + outer * tap_stride[plan_.outer];
        a.tap[0] = at + g.tap * tap_stride[plan_.deep];
        if (g.odd >= 0) a.tap[1] = at + g.mirror * tap_stride[plan_.deep];
        for (int64_t u = 0; u < orbits; u += p_.lanes) {
          a.source = source + u * a.lane_stride;
          a.lanes = static_cast<int>(std::min<int64_t>(p_.lanes, orbits - u));
          const int64_t term = shift * per_shift + static_cast<int64_t>(group);
          set_out(a, 0, out + p_.matrix(0, l, c).offset + (term * p_.rows + row) * even + column + u);
          if (g.odd >= 0)
            set_out(a, 1,
                    out + p_.matrix(1, l, c).offset + (static_cast<int64_t>(group) * p_.rows + row) * odd +
                        column + u);
          p_.kernels.fold_weights[plan_.filtering][g.odd >= 0 ? 1 : 0](a);
        }
      }
  }

  static void set_out(WeightArgs<T>& a, int source, Word<T>* to) { a.out[source] = reinterpret_cast<Stored<T>*>(to); }

  // --- tasks ---

  // Of the matrix kernel: where the panel's and the weights' rows begin, and how many they are.
  struct Segments {
    std::vector<int64_t> a, b, k;
  };

  struct Task {
    int64_t group, block, image, deep;  // deep: result position
    int64_t begin, end;                 // of outer_count
  };

  struct Local {
    Word<T>*panel, *zipped;
    Sum<T>*products, *ring, *zero_sums;
    Element<T>*zeros, *turned, *stage;
    const Word<T>* weights;
    const Sum<T>* bias;
    std::vector<Segments> segments;  // by line
  };

  void run_tasks(const Word<T>* weights, const Sum<T>* bias) const {
    const int64_t base = p_.tasks();
    int64_t splits = 1;
    if (base < 4 * p_.threads)
      while (base * splits % p_.threads && splits < p_.outer_count) ++splits;
    const int64_t tasks = base * splits, slices = std::min(tasks, p_.threads);
    const int64_t lines = p_.planes ? p_.source_lines(p_.chunk) : 1;
    const int64_t longest = std::max({q_.channels, lines * q_.in[plan_.inner], p_.sums_ld}) + p_.lanes;
    const int64_t zipped = kDepth > 1 && p_.planes ? p_.panel_words : 0;
    const int64_t products = p_.product_stride * p_.kept();
    const int64_t ring = p_.ring_lines * p_.sums_member * 2 * plan_.parities() + p_.lanes;
    const int64_t each = round_to(p_.panel_words + zipped + products + ring + 2 * longest + p_.stage_words +
                                      p_.turned_words + p_.lanes,
                                  p_.lanes);
    Scratch<Sum<T>> memory(each * slices);
    parallel_slices(tasks, slices, [&](int64_t begin, int64_t end, int64_t slice) {
      Local local;
      local.products = memory.data() + slice * each;
      local.ring = local.products + products;
      local.zero_sums = local.ring + ring;
      local.zeros = reinterpret_cast<Element<T>*>(local.zero_sums + longest);
      local.panel = reinterpret_cast<Word<T>*>(local.zero_sums + 2 * longest);
      local.zipped = local.panel + p_.panel_words;
      local.turned = reinterpret_cast<Element<T>*>(local.zipped + zipped);
      local.stage = local.turned + p_.turned_words;
      local.bias = bias;
      std::fill(local.zero_sums, local.zero_sums + 2 * longest, Sum<T>(0));
      for (int64_t i = begin; i < end; ++i) {
        int64_t rest = i / splits;
        Task t;
        t.begin = p_.outer_count * (i % splits) / splits, t.end = p_.outer_count * (i % splits + 1) / splits;
        t.deep = rest % q_.out[plan_.deep], rest /= q_.out[plan_.deep];
        t.image = rest % q_.batch, rest /= q_.batch;
        t.block = rest % p_.blocks, t.group = rest / p_.blocks;
        local.weights = weights + (t.group * p_.blocks + t.block) * p_.weight_words;
        plan_.ring ? run_ring(t, local) : run_lines(t, local);
      }
    });
  }

  // --- packing ---

  bool inside(int axis, int64_t at) const { return at >= 0 && at < q_.in[axis]; }

  // First position of a line in the source.
  const Element<T>* source(const Task& t, int64_t deep, int64_t outer) const {
    return m_.source.data + t.image * m_.source.batch_stride +
           t.group * q_.channels * m_.source.channel_stride + deep * m_.source.stride[plan_.deep] +
           outer * m_.source.stride[plan_.outer];
  }

  // Do any of a group's source positions exist?
  bool present(const Task& t, const DeepGroup& g) const {
    const AxisMap& m = map_[plan_.deep];
    return inside(plan_.deep, m.a * t.deep + m.b[g.tap]) ||
           (g.mirror >= 0 && inside(plan_.deep, m.a * t.deep + m.b[g.mirror]));
  }

  // Do lines follow each other without a gap, in the source as in planes?
  bool seamless() const {
    const bool source =
        p_.turned || m_.source.stride[plan_.outer] == q_.in[plan_.inner] * m_.source.stride[plan_.inner];
    return p_.planes && q_.stride[plan_.inner] == 1 && !plan_.filtering && source;
  }

  // Transposed copies of source lines from `at` on, for every tap of the deep axis.
  void stage(const Task& t, int64_t at, int64_t lines, const Local& local) const {
    if constexpr (kCanStage<T>) {
      const AxisMap& m = map_[plan_.deep];
      for (int64_t k = 0; k < q_.kernel[plan_.deep]; ++k)
        for (int64_t l = 0; l < lines && inside(plan_.deep, m.a * t.deep + m.b[k]); ++l)
          if (inside(plan_.outer, at + l))
            p_.kernels.stage_line(source(t, m.a * t.deep + m.b[k], at + l), m_.source.channel_stride,
                                  m_.source.stride[plan_.inner], q_.channels, q_.in[plan_.inner],
                                  local.stage + k * q_.channels * p_.stage_ld + l * q_.in[plan_.inner],
                                  p_.stage_ld);
    }
  }

  // Lines of the panels from number `place` on: source lines from `at` on, or with minimal filtering one, from
  // those. Only planes hold lines outside the map.
  void pack_lines(const Task& t, int64_t place, int64_t at, int64_t count, const Local& local) const {
    while (count > 0) {
      int64_t lines = 1;
      if (seamless() && inside(plan_.outer, at)) lines = std::min(count, q_.in[plan_.outer] - at);
      if (p_.turned) stage(t, at, lines + plan_.products() - 1, local);
      if (p_.planes || plan_.filtering || inside(plan_.outer, at))
        for (size_t c = 0; c < p_.regions.size(); ++c)
          for (const DeepGroup& g : p_.groups)
            if (p_.positions(c) > 0 && present(t, g)) pack_group(t, g, c, place, at, lines, local);
      place += lines, at += lines, count -= lines;
    }
  }

  void pack_group(const Task& t, const DeepGroup& g, size_t c, int64_t place, int64_t at, int64_t lines,
                  const Local& local) const {
    const AxisMap& m = map_[plan_.deep];
    const auto& r = p_.regions[c];
    const int64_t stride = p_.turned ? 1 : m_.source.stride[plan_.inner];
    RunArgs<T> run{};
    run.positions = lines * p_.positions(c), run.channels = q_.channels;
    for (int line = 0; line < plan_.products(); ++line)
      for (int s = 0; s < (g.odd >= 0 ? 2 : 1); ++s) {
        const int tap = s ? g.mirror : g.tap;
        const int64_t deep = m.a * t.deep + m.b[tap];
        const bool there = inside(plan_.deep, deep) && inside(plan_.outer, at + line);
        run.source[line][s] = local.zeros;
        if (!there) continue;
        run.source[line][s] =
            plan_.line.classes[c].residue * stride +
            (p_.turned ? local.stage + tap * q_.channels * p_.stage_ld + line * q_.in[plan_.inner]
                       : source(t, deep, at + line));
        run.position_step[line][s] = q_.stride[plan_.inner] * stride;
        run.channel_step[line][s] = p_.turned ? p_.stage_ld : m_.source.channel_stride;
      }
    auto* panel = reinterpret_cast<Stored<T>*>(local.panel + r.panel);
    const int64_t pixel = place * p_.positions(c), plane = p_.first(c) + place * p_.pitch(c);
    for (int s = 0; s < (g.odd >= 0 ? 2 : 1); ++s) {
      const int64_t row = (s ? g.odd : g.slot) * p_.rows * kDepth;
      run.out[s] = p_.planes ? panel + row * r.panel_ld + plane : panel + pixel * r.panel_ld * kDepth + row;
    }
    run.ld = p_.planes ? r.panel_ld : r.panel_ld * kDepth;
    run.product_stride = p_.planes ? r.panel_product * kDepth : r.panel_product * kDepth;
    const int log = g.odd >= 0 ? 1 : 0;
    (p_.planes ? p_.kernels.fold_planes : p_.kernels.fold_pixels)[plan_.filtering][log](run);
    if constexpr (kDepth > 1) {
      if (!p_.planes && q_.channels % kDepth)  // half a word is left over
        for (int s = 0; s <= log; ++s)
          for (int64_t i = 0; i < run.positions; ++i) run.out[s][i * run.ld + q_.channels] = {};
    }
  }

  // Planes of pairs: neighbouring rows become words.
  void zip(const Task& t, const Local& local) const {
    for (size_t c = 0; c < p_.regions.size(); ++c) {
      const auto& r = p_.regions[c];
      for (const DeepGroup& g : p_.groups)
        for (const int slot : {g.slot, g.odd}) {
          if (slot < 0 || !present(t, g)) continue;
          const auto* panel = reinterpret_cast<const Stored<T>*>(local.panel + r.panel);
          p_.kernels.zip({panel + slot * p_.rows * kDepth * r.panel_ld,
                          local.zipped + r.panel + slot * p_.rows * r.panel_ld, r.panel_ld, r.panel_ld,
                          q_.channels, p_.span(c, p_.source_lines(p_.chunk))});
        }
    }
  }

  // --- products ---

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

  // Segments of the matrix kernel for line number `line`; left sides are told apart by `offset`.
  template <class Offset>
  void set_segments(const Task& t, const Lines& lines, int64_t line, int w, int64_t weight_ld, Segments& segments,
                    const Offset& offset) const {
    segments.a.clear(), segments.b.clear(), segments.k.clear();
    const auto& all = terms(w);
    const AxisMap& outer = map_[plan_.outer];
    for (size_t i = 0; i < all.size(); ++i) {
      if (!present(t, p_.groups[all[i].group])) continue;
      int64_t source_line = lines.at + line * lines.step;
      if (!plan_.ring && !plan_.filtering) {
        source_line += outer.b[all[i].tap] - outer.b[0];
        if (!inside(plan_.outer, source_line) && !p_.planes) continue;
      }
      segments.a.push_back(offset(all[i], source_line));
      segments.b.push_back(static_cast<int64_t>(i) * p_.rows * weight_ld);
      segments.k.push_back(p_.rows);
    }
  }

  Sum<T>* products(size_t c, int w, const Local& local) const {
    return local.products + p_.regions[c].product + (plan_.ring ? 0 : w) * p_.product_stride;
  }

  void multiply_pixels(const Task& t, const Lines& lines, size_t c, int w, Local& local) const {
    const auto& r = p_.regions[c];
    const auto& matrix = p_.matrix(w, lines.line_class, c);
    const int64_t positions = p_.positions(c), filtered = plan_.folded ? 0 : w;
    const int64_t stride = m_.source.stride[plan_.inner];
    GemmArgs<Word<T>> g{};
    g.lda = p_.direct ? q_.stride[plan_.inner] * stride / kDepth : r.panel_ld;
    g.ldb = matrix.ld, g.ldc = r.product_ld;
    const Word<T>* origin =
        p_.direct ? reinterpret_cast<const Word<T>*>(source(t, 0, 0) + plan_.line.classes[c].residue * stride)
                  : local.panel + r.panel + filtered * r.panel_product;
    const AxisMap& deep = map_[plan_.deep];
    const auto offset = [&](const ScatterTerm& term, int64_t line) {
      if (p_.direct)
        return ((deep.a * t.deep + deep.b[p_.groups[term.group].tap]) * m_.source.stride[plan_.deep] +
                line * m_.source.stride[plan_.outer]) /
               kDepth;
      return (line - lines.at) * positions * r.panel_ld + term.slot * p_.rows;
    };
    if (static_cast<int64_t>(local.segments.size()) < lines.count) local.segments.resize(lines.count);
    for (int64_t l = 0; l < lines.count; ++l) {
      clear_halo(c, products(c, w, local) + l * p_.pitch(c) * r.product_ld);
      set_segments(t, lines, l, w, matrix.ld, local.segments[l], offset);
    }
    for (const ColumnBlock& block : p_.blocks_of[&matrix - p_.matrices.data()])
      for (int64_t l = 0; l < lines.count; ++l) {
        const Segments& segments = local.segments[l];
        g.a_offset = segments.a.data(), g.b_offset = segments.b.data(), g.k = segments.k.data();
        g.segments = static_cast<int64_t>(segments.k.size());
        g.b = local.weights + matrix.offset + block.vector * p_.lanes;
        Sum<T>* to =
            products(c, w, local) + (l * p_.pitch(c) + p_.first(c)) * r.product_ld + block.vector * p_.lanes;
        const int64_t most = p_.kernels.max_rows[block.vectors], pieces = (positions + most - 1) / most;
        for (int64_t piece = 0; piece < pieces; ++piece) {
          const int64_t p0 = positions * piece / pieces, p1 = positions * (piece + 1) / pieces;
          g.a = origin + p0 * g.lda, g.c = to + p0 * g.ldc;
          p_.kernels.gemm(static_cast<int>(p1 - p0), block.vectors, g);
        }
      }
  }

  void clear_halo(size_t c, Sum<T>* line) const {
    const int64_t ld = p_.regions[c].product_ld, before = p_.first(c), positions = p_.positions(c);
    std::fill(line, line + before * ld, Sum<T>(0));
    std::fill(line + (before + positions) * ld, line + p_.pitch(c) * ld, Sum<T>(0));
  }

  void multiply_planes(const Task& t, const Lines& lines, size_t c, int w, Local& local) const {
    const auto& r = p_.regions[c];
    const auto& matrix = p_.matrix(w, lines.line_class, c);
    const int64_t filtered = plan_.folded ? 0 : w, rows = p_.columns(lines.line_class, c);
    GemmArgs<Word<T>> g{};
    g.lda = 1, g.a_step = matrix.ld, g.ldb = r.panel_ld, g.ldc = r.product_ld;
    const auto offset = [&](const ScatterTerm& term, int64_t line) {
      return term.slot * p_.rows * r.panel_ld + (line - lines.at) * p_.pitch(c);
    };
    if (local.segments.empty()) local.segments.resize(1);
    Segments& segments = local.segments[0];
    set_segments(t, lines, 0, w, matrix.ld, segments, offset);
    g.a_offset = segments.b.data(), g.b_offset = segments.a.data(), g.k = segments.k.data();
    g.segments = static_cast<int64_t>(segments.k.size());
    const Word<T>* b = (kDepth > 1 ? local.zipped : local.panel) + r.panel + filtered * r.panel_product;
    for (const ColumnBlock& block : column_blocks(p_.span(c, lines.count), p_.lanes)) {
      const int64_t most = p_.kernels.max_rows[block.vectors], pieces = (rows + most - 1) / most;
      for (int64_t piece = 0; piece < pieces; ++piece) {
        const int64_t r0 = rows * piece / pieces, r1 = rows * (piece + 1) / pieces;
        g.a = local.weights + matrix.offset + r0;
        g.b = b + block.vector * p_.lanes;
        g.c = products(c, w, local) + r0 * g.ldc + block.vector * p_.lanes;
        p_.kernels.gemm(static_cast<int>(r1 - r0), block.vectors, g);
      }
    }
  }

  // Products of a tap of the inner axis, where tap `at` of a member takes them, for result position 0 of line
  // number `line`.
  const Sum<T>* product(int w, size_t line_class, int64_t line, int tap, int at, const Local& local) const {
    const size_t c = plan_.line.class_of[at];
    const int64_t ld = p_.regions[c].product_ld;
    const int64_t row = plan_.line.index[tap] * p_.outer_taps(line_class) * p_.width;
    const int64_t position = p_.first(c) + line * p_.pitch(c) + plan_.line.shift[at];
    return products(c, w, local) + (p_.planes ? row * ld + position : position * ld + row);
  }

  // Where the sums over the inner axis find products: both members, for every tap.
  void set_sources(ScatterArgs<T>& a, int w, size_t line_class, int64_t line, const Local& local) const {
    const int taps = static_cast<int>(q_.kernel[plan_.inner]);
    a.taps = taps;
    if (p_.planes) a.mask = p_.masks.data(), a.mask_ld = p_.mask_ld;
    for (int k = 0; k < taps; ++k) {
      a.step[k] = p_.regions[plan_.line.class_of[k]].product_ld;
      a.source[0][k] = product(w, line_class, line, k, k, local);
      a.source[1][k] = product(w, line_class, line, taps - 1 - k, k, local);
    }
  }

  // --- the outer axis is contracted: results of a line are complete at once ---

  void run_lines(const Task& t, Local& local) const {
    const AxisMap& outer = map_[plan_.outer];
    const int64_t results = kLinesOut[plan_.filtering], step = outer.a * results;
    for (int64_t o = t.begin; o < t.end; o += p_.chunk) {
      const int64_t count = std::min(p_.chunk, t.end - o), at = o * step + outer.b[0];
      if (!p_.direct) {
        if (plan_.filtering)
          for (int64_t l = 0; l < count; ++l) pack_lines(t, l, at + l * step, 1, local);
        else
          pack_lines(t, 0, at, p_.source_lines(count), local);
        if constexpr (kDepth > 1)
          if (p_.planes) zip(t, local);
      }
      const Lines lines{0, count, at, plan_.filtering ? 1 : step};
      for (int w = 0; w < plan_.weights(); ++w) multiply(t, lines, w, local);
      for (int64_t l = 0; l < count; ++l) store_line(t, o + l, l, local);
    }
  }

  void store_line(const Task& t, int64_t o, int64_t line, const Local& local) const {
    ScatterArgs<T> a{};
    set_sources(a, 0, 0, line, local);
    a.product_stride = p_.product_stride;
    const int64_t results = kLinesOut[plan_.filtering];
    a.lines = static_cast<int>(std::min(results, q_.out[plan_.outer] - o * results));
    store(t, o * results, 0, a, local);
    if (p_.turned) turn(t, o * results, a.lines, local);
  }

  // --- the outer axis is scattered too: sums over the inner one wait in a ring ---

  void run_ring(const Task& t, Local& local) const {
    const AxisMap& outer = map_[plan_.outer];
    const int64_t from = std::max<int64_t>(0, outer.a * t.begin + outer.b.front());
    const int64_t to = std::min(q_.in[plan_.outer] - 1, outer.a * (t.end - 1) + outer.b.back());
    int64_t next = t.begin;
    for (int64_t i = from; i <= to; i += p_.chunk) {
      const int64_t count = std::min(p_.chunk, to + 1 - i);
      add_to_ring(t, i, count, local);
      while (next < t.end && outer.a * next + outer.b.back() < i + count) store_from_ring(t, next++, local);
    }
    while (next < t.end) store_from_ring(t, next++, local);
  }

  Sum<T>* ring_line(int64_t line, int parity, int member, const Local& local) const {
    const int64_t place = (line % p_.ring_lines * plan_.parities() + parity) * 2 + member;
    return local.ring + place * p_.sums_member;
  }

  // Sums over the inner axis of `count` source lines from line `at` on, all of one class.
  void add_to_ring(const Task& t, int64_t at, int64_t count, Local& local) const {
    size_t l = 0;
    while (l < p_.line_classes() && plan_.lines.classes[l].residue != at % q_.stride[plan_.outer]) ++l;
    if (l == p_.line_classes()) return;  // no tap reaches them
    if (!p_.direct) {
      pack_lines(t, 0, at, count, local);
      if constexpr (kDepth > 1)
        if (p_.planes) zip(t, local);
    }
    for (int parity = 0; parity < plan_.parities(); ++parity) {
      multiply(t, {l, count, at, 1}, parity, local);
      for (int64_t i = 0; i < count; ++i) add_line(l, parity, at + i, i, local);
    }
  }

  void add_line(size_t line_class, int parity, int64_t at, int64_t line, const Local& local) const {
    ScatterArgs<T> a{};
    set_sources(a, parity, line_class, line, local);
    const int64_t across = p_.outer_taps(line_class) * p_.width, along = q_.out[plan_.inner];
    a.rows = p_.planes ? across : along, a.columns = p_.planes ? along : across;
    a.sums_step = p_.sums_ld;
    for (int m = 0; m < 2; ++m) a.sums[m] = ring_line(at, parity, m, local);
    p_.kernels.scatter_lines[a.taps == 3 ? 0 : 1](a);
  }

  void store_from_ring(const Task& t, int64_t o, const Local& local) const {
    const AxisMap& outer = map_[plan_.outer];
    ScatterArgs<T> a{};
    const int taps = static_cast<int>(q_.kernel[plan_.outer]);
    a.taps = taps;
    for (int member = 0; member < 2; ++member) {
      for (int k = 0; k < taps; ++k) {
        const int64_t line = outer.a * o + outer.b[k];
        const bool there = inside(plan_.outer, line);
        a.step[k] = there ? p_.sums_ld : 0;
        for (int s = 0; s < 2 * plan_.parities(); ++s) {
          const int64_t row = plan_.lines.index[s & 1 ? taps - 1 - k : k] * p_.width;
          a.source[s][k] = there ? ring_line(line, s / 2, member, local) + row * (p_.planes ? p_.sums_ld : 1)
                                 : local.zero_sums;
        }
      }
      a.lines = 1;
      store(t, o, member, a, local);
    }
    if (p_.turned) turn(t, o, 1, local);
  }

  // --- results ---

  Element<T>* result(const Task& t, int64_t o, int64_t channel) const {
    return m_.out.data + t.image * m_.out.batch_stride + t.deep * m_.out.stride[plan_.deep] +
           o * m_.out.stride[plan_.outer] + channel * m_.out.channel_stride;
  }

  // Line `o` of the members that differ in the axis which the sums are over (and in the folded one); `member`
  // is which of the inner axis it is where that is not the one.
  void store(const Task& t, int64_t o, int member, ScatterArgs<T>& a, const Local& local) const {
    const Segment& s = q_.segments[p_.segment];
    const int64_t first = t.block * p_.width, orbits = std::min(p_.width, p_.orbits - first);
    const int64_t along = q_.out[plan_.inner];
    a.rows = p_.planes ? orbits : along, a.columns = p_.planes ? along : orbits;
    a.out_step = p_.turned   ? p_.turned_ld
                 : p_.planes ? m_.out.channel_stride
                             : m_.out.stride[plan_.inner];
    a.line_stride = p_.turned ? p_.members() * p_.orbits * p_.turned_ld : m_.out.stride[plan_.outer];
    a.bias_of_row = p_.planes;
    for (int i = 0; i < 2 * plan_.parities(); ++i) {
      const int whole = plan_.ring ? member | (i & 1) << 1 | (i >> 1) << 2 : i;
      const int64_t channel = t.group * q_.filters + member_channel(s, whole) + first;
      a.out[i] = p_.turned ? local.turned + row_of_member(whole) * p_.turned_ld : result(t, o, channel);
      a.bias[i] = local.bias ? local.bias + channel : nullptr;
    }
    p_.kernels.scatter_store[a.taps == 3 ? 0 : 1][plan_.folded ? 1 : 0][plan_.filtering](a);
  }

  // Turned results: copies come after the rows themselves, in the order of their channels.
  int64_t row_of_member(int member) const {
    const Segment& s = q_.segments[p_.segment];
    return member ? p_.orbits + member_channel(s, member) - s.copies : 0;
  }

  // Transposes what `store` left to `lines` lines of the result.
  void turn(const Task& t, int64_t o, int lines, const Local& local) const {
    if constexpr (kCanStage<T>) {
      const Segment& s = q_.segments[p_.segment];
      const int64_t rows = p_.members() * p_.orbits, along = q_.out[plan_.inner];
      const bool together = s.copies == s.first + p_.orbits;
      for (int line = 0; line < lines; ++line)
        for (int64_t row = 0, to; row < rows; row = to) {
          to = together || row > 0 ? rows : p_.orbits;
          const int64_t channel = t.group * q_.filters + (row > 0 ? s.copies : s.first);
          p_.kernels.stage_line(local.turned + (line * rows + row) * p_.turned_ld, 1, p_.turned_ld, along,
                                to - row, result(t, o + line, channel), m_.out.stride[plan_.inner]);
        }
    }
  }

  const PreparedScatter<T>& p_;
  const MultiplyTensors<T>& m_;
  const Problem& q_;
  const ScatterPlan& plan_;
  AxisMap map_[kAxes];
};

}  // namespace

template <class T>
std::shared_ptr<const PreparedScatter<T>> prepare_scatter(ScatterShape shape, int64_t threads) {
  return std::make_shared<const PreparedScatter<T>>(std::move(shape), threads);
}

template <class T>
void scatter(const PreparedScatter<T>& prepared, const MultiplyTensors<T>& tensors) {
  Scatterer<T>(prepared, tensors)();
}

#define SYMCONV_INSTANTIATE(T)                                                                          \
  template std::shared_ptr<const PreparedScatter<T>> prepare_scatter<T>(ScatterShape, int64_t threads); \
  template void scatter<T>(const PreparedScatter<T>&, const MultiplyTensors<T>&);
SYMCONV_FOR_ALL_TYPES(SYMCONV_INSTANTIATE)

}  // namespace symconv
