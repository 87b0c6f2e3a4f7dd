// What a scatter can work out before there are tensors: blocks of orbits, chunks of lines, and where
// everything lies in memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <utility>
#include <vector>

#include "blocking.h"
#include "packed/weights.h"
#include "scatter/scatter.h"

namespace symconv {

// Of all that belongs to a block of orbits. Where lines are filtered each block packs them again, and CPUs
// with long vectors have the cache for more.
constexpr int64_t kBlockBytes = 512 << 10, kFilteredBlockBytes = 1 << 20, kLongVector = 64;
constexpr int64_t kProductBytes = 128 << 10;  // of a chunk of lines, about
constexpr int64_t kChunkPositions = 48;       // which a chunk should have, where lines are short
constexpr double kSplitCost = 1.05;           // lines cut for the threads, over lines as they are
// Of transposed source lines that results at other places of the deep axis read too, and how many lines of
// results must share them: those between two parts are multiplied in both.
constexpr int64_t kStageBytes = 1280 << 10, kLeastShared = 12;

// Positions along the deep axis that are loaded together: a tap, or a pair of mirrored ones, which leaves as
// a sum and a difference.
struct DeepGroup {
  int tap, mirror;  // -1 without
  int slot, odd;    // where sum and difference lie in a panel
};

// One run of contraction rows: channels of a slot, for one tap of the inner or outer axis where that is
// contracted.
struct ScatterTerm {
  int group;  // of the deep axis
  int slot;
  int tap;  // else 0
};

// Source positions of a class that a tile of results reads.
struct ScatterSpan {
  int64_t begin, count;   // those that exist
  int64_t before, after;  // those that do not, on both sides: kept as zeros beside pixels, masked in planes
  int64_t pitch() const { return before + count + after; }
};

template <class T>
struct PreparedScatter : ScatterShape {
  PreparedScatter(ScatterShape shape, int64_t threads_)
      : ScatterShape(std::move(shape)),
        kernels(select_kernels<T>()),
        threads(threads_),
        lanes(kernels.lanes),
        rows(words<T>(problem.channels)),
        orbits(problem.segments[segment].rows),
        outer_count((problem.out[plan.outer] + kLinesOut[plan.filtering] - 1) / kLinesOut[plan.filtering]) {
    list_terms();
    choose_tiles();
    choose_orbits();
    place_weights();
    choose_lines();
    place_panel();
    if (planes) make_masks();
    if (turned) place_turned();
    if (relaid) place_relaid();
  }

  // --- contraction ---

  void list_terms() {
    const int taps = static_cast<int>(problem.kernel[plan.deep]);
    int slot = 0;
    for (int k = 0; k < taps; ++k) {
      const int mirror = mirrored(taps, k);
      if (plan.folded && mirror < k) break;
      const bool pair = plan.folded && mirror > k;
      groups.push_back({k, pair ? mirror : -1, slot, pair ? slot + 1 : -1});
      slot += pair ? 2 : 1;
    }
    slots = slot;
    terms.resize(plan.parities());
    for (int tap = 0; tap < shifts(); ++tap)
      for (size_t i = 0; i < groups.size(); ++i) {
        terms[0].push_back({static_cast<int>(i), groups[i].slot, tap});
        if (groups[i].odd >= 0) terms[1].push_back({static_cast<int>(i), groups[i].odd, tap});
      }
  }

  // The axis whose taps are contracted by shifts, or -1, and how many these are.
  int shifted_axis() const {
    return !plan.summed ? plan.inner : plan.ring || plan.filtering ? -1 : plan.outer;
  }
  int shifts() const { return shifted_axis() < 0 ? 1 : static_cast<int>(problem.kernel[shifted_axis()]); }

  // --- weights: [row][taps of the inner axis][taps of the outer one][orbits of the block] ---

  // Classes of source lines, by which taps of the outer axis reach them.
  size_t line_classes() const { return plan.ring ? plan.lines.classes.size() : 1; }
  int64_t outer_taps(size_t line_class) const {
    return plan.ring ? static_cast<int64_t>(plan.lines.classes[line_class].taps.size()) : 1;
  }
  int64_t columns(size_t line_class, size_t position_class) const {
    return outer_taps(line_class) * static_cast<int64_t>(plan.line.classes[position_class].taps.size()) *
           width;
  }

  // Long lines are cut, so that what is kept of one does not grow with it, and a single line too, for the
  // threads.
  void choose_tiles() {
    const int64_t along = problem.out[plan.inner],
                  lines = problem.groups * problem.batch * problem.out[plan.deep] * problem.out[plan.outer];
    tiles = along > kLongLine ? (along + kTilePositions - 1) / kTilePositions : 1;
    if (lines < threads) tiles = std::max(tiles, std::min(threads, along / kChunkPositions));
    tiles = std::max<int64_t>(1, tiles);
    tile = (along + tiles - 1) / tiles;
    tiles = (along + tile - 1) / tile;
  }

  // Tasks of a block, before lines are shared out, and of all.
  int64_t block_tasks() const { return problem.batch * problem.out[plan.deep] * tiles; }
  int64_t tasks() const { return problem.groups * blocks * block_tasks(); }

  // Parts into which the lines of each are cut, where the threads could not share them evenly.
  int64_t splits() const {
    int64_t parts = 1;
    if (tasks() < 4 * threads)
      while (tasks() * parts % threads && parts < outer_count) ++parts;
    return std::max(parts, staged_parts);
  }

  // Does each thread pack a block of weights when it comes to it? They are then in its cache, and only a
  // block is kept. Not where threads share blocks.
  bool packs_blocks() const { return blocks * problem.groups > threads && alone(blocks) && splits() == 1; }
  bool alone(int64_t of_group) const { return problem.groups * of_group % threads == 0; }

  int64_t block_bytes() const {
    const bool more = plan.filtering && lanes * static_cast<int64_t>(sizeof(Sum<T>)) >= kLongVector;
    return more ? kFilteredBlockBytes : kBlockBytes;
  }

  void choose_orbits() {
    int64_t each = 0;
    for (const auto& t : terms) each += static_cast<int64_t>(t.size());
    each *= kProducts[plan.filtering] * rows;
    // Products of a line, and the sums that wait in the ring, all in units of a tap's.
    if (plan.summed) each += tile * kept();
    if (plan.ring)
      each += tile * plan.line_members() * plan.parities() * (reach() + 1) /
              (plan.summed ? problem.kernel[plan.inner] : 1);
    each *= plan.taps(problem) * static_cast<int64_t>(sizeof(Word<T>));
    const int64_t most = std::max<int64_t>(lanes, block_bytes() / each);
    blocks = ceil_div(orbits, most);
    // Few positions: threads share the orbits, so that each reads weights of its own.
    if (tasks() < threads && problem.out[plan.outer] * problem.out[plan.inner] < 256)
      blocks = std::max(blocks, std::min(threads, orbits / lanes));
    width = blocks > 1 ? even_width(blocks) : orbits;
    blocks = ceil_div(orbits, width);
  }

  // Whole vectors of orbits, in at least so many blocks: so that the thread with the most of them is done
  // first, and that threads have blocks of their own if that costs next to nothing.
  int64_t even_width(int64_t least) const {
    int64_t best = 0;
    double shortest = 0;
    for (int64_t n = least; n <= 2 * least; ++n) {
      const int64_t w = round_up(ceil_div(orbits, n), lanes);
      const double time = static_cast<double>(w) * share(ceil_div(orbits, w));
      if (best && time >= shortest) continue;
      best = w, shortest = time;
    }
    return best;
  }

  // Tasks of the thread that has most of them, with so many blocks in a group: few are cut until threads
  // share them evenly, at the cost of more lines.
  double share(int64_t of_group) const {
    const int64_t all = problem.groups * of_group * block_tasks();
    if (alone(of_group) || all >= 4 * threads) return static_cast<double>(ceil_div(all, threads));
    return kSplitCost * static_cast<double>(all) / static_cast<double>(threads);
  }

  struct Matrix {
    int64_t offset, ld;  // words
  };
  const Matrix& matrix(int weight, size_t line_class, size_t position_class) const {
    return matrices[(weight * line_classes() + line_class) * plan.line.classes.size() + position_class];
  }

  void place_weights() {
    const int64_t part = width % lanes;  // the last vector of a row goes past it
    for (int w = 0; w < plan.weights(); ++w)
      for (size_t l = 0; l < line_classes(); ++l)
        for (size_t c = 0; c < plan.line.classes.size(); ++c) {
          const int64_t ld = odd_lines<Word<T>>(columns(l, c) + (part ? lanes - part : 0));
          matrices.push_back({weight_words, ld});
          weight_words += ld * rows * static_cast<int64_t>(terms[plan.folded ? w : 0].size());
          blocks_of.push_back(column_blocks(columns(l, c), lanes));
        }
    weight_words += lanes;
  }

  // --- lines ---

  // Products of a position, over all its classes, of the fullest line.
  int64_t most_columns() const {
    int64_t most = 0;
    for (size_t l = 0; l < line_classes(); ++l) {
      int64_t sum = 0;
      for (size_t c = 0; c < plan.line.classes.size(); ++c) sum += columns(l, c);
      most = std::max(most, sum);
    }
    return most;
  }
  // Products are kept for that many weights at a time.
  int kept() const { return plan.ring ? 1 : plan.weights(); }

  // From the first source line of a result line to the last.
  int64_t reach() const { return problem.dilation[plan.outer] * (problem.kernel[plan.outer] - 1); }

  // Source lines that a chunk of result lines reads (no ring), or of lines that are multiplied together
  // (ring).
  int64_t source_lines(int64_t chunk) const {
    if (plan.ring || plan.filtering) return chunk;
    return (chunk - 1) * problem.stride[plan.outer] + reach() + 1;
  }

  void choose_lines() {
    const int64_t positions = std::max<int64_t>(1, tile);
    const int64_t bytes = positions * most_columns() * kept() * static_cast<int64_t>(sizeof(Sum<T>));
    int64_t most = std::max<int64_t>(1, kProductBytes / std::max<int64_t>(1, bytes));
    const int64_t stride = problem.stride[plan.outer];
    if (stride > 1 && (plan.ring || planes)) most = 1;
    most = std::clamp<int64_t>(most, 1, std::max<int64_t>(1, outer_count));
    // Lines that are packed are packed again for every chunk that reads them.
    const int64_t wanted = ceil_div(kChunkPositions, positions);
    chunk = planes ? fullest_chunk(most) : plan.ring || direct ? std::min(most, wanted) : most;
    if (plan.ring) ring_lines = reach() + chunk;
  }

  // The number of lines that leaves fewest lanes empty.
  int64_t fullest_chunk(int64_t most) const {
    int64_t best = 1;
    double filled = 0;
    for (int64_t lines = 1; lines <= most; ++lines) {
      const double now =
          static_cast<double>(lines) / static_cast<double>(round_up(most_positions(0) * lines, lanes));
      if (now > filled * 1.01) best = lines, filled = now;
    }
    return best;
  }

  // --- panel of a class of positions, and products of it ---

  // Of results [begin, end) of a line.
  ScatterSpan span(size_t c, int64_t begin, int64_t end) const {
    const ScatterAxis::Class& k = plan.line.classes[c];
    const int64_t low = begin + k.low, high = end + k.high;
    const int64_t from = std::clamp<int64_t>(low, 0, k.count), to = std::clamp<int64_t>(high, from, k.count);
    if (from == to) return {low, 0, 0, planes ? 0 : high - low};
    return {from, to - from, planes ? 0 : from - low, planes ? 0 : high - to};
  }
  // Of any tile, with those outside where they are kept.
  int64_t most_positions(size_t c) const {
    const ScatterAxis::Class& k = plan.line.classes[c];
    const int64_t most = tile + k.high - k.low;
    return planes ? std::min(most, k.count) : most;
  }

  // Source positions of a line that so many results read, with those that do not exist.
  int64_t reads(int64_t results) const {
    const int64_t reach_along = problem.dilation[plan.inner] * (problem.kernel[plan.inner] - 1);
    return problem.stride[plan.inner] * (results - 1) + reach_along + 1;
  }
  int64_t most_line() const { return std::min(problem.in[plan.inner], reads(tile)); }
  // Rows of a line in a panel of pixels.
  int64_t panel_rows(size_t c) const { return plan.summed ? most_positions(c) : reads(tile); }

  void make_masks() {
    mask_ld = round_up(problem.out[plan.inner], lanes) + lanes;
    masks.assign(problem.kernel[plan.inner] * mask_ld, 0);
    for (int k = 0; k < problem.kernel[plan.inner]; ++k) {
      const int64_t count = plan.line.classes[plan.line.class_of[k]].count, shift = plan.line.shift[k];
      for (int64_t t = 0; t < problem.out[plan.inner]; ++t)
        masks[k * mask_ld + t] = t + shift >= 0 && t + shift < count ? -1 : 0;
    }
  }

  void place_panel() {
    const int64_t lines = source_lines(chunk);
    for (size_t c = 0; c < plan.line.classes.size(); ++c) {
      Region& r = regions.emplace_back();
      r.panel = panel_words;
      if (planes) {
        r.panel_ld = odd_lines<Word<T>>(most_positions(c) * lines + kMaxVectors * lanes);
        r.panel_product = slots * rows * r.panel_ld;
      } else {
        r.panel_ld = apart<Word<T>>(slots * rows);
        r.panel_product = lines * panel_rows(c) * r.panel_ld;
      }
      if (!direct) panel_words += r.panel_product * plan.lines_in() + kMaxVectors * lanes;
      int64_t most = 0;
      for (size_t l = 0; l < line_classes(); ++l) most = std::max(most, columns(l, c));
      const ScatterAxis::Class& k = plan.line.classes[c];
      const int64_t margin =
          planes ? round_up(tile + std::abs(k.low) + std::abs(k.high), lanes) : 0;  // masked
      r.product = product_stride + margin;
      r.product_ld = planes ? apart<Word<T>>(round_up(most_positions(c) * chunk, lanes))
                            : apart<Word<T>>(round_up(most, lanes));
      if (!plan.summed) continue;  // products are written to the ring
      product_stride +=
          (planes ? most : chunk * most_positions(c)) * r.product_ld + 2 * margin + kMaxVectors * lanes;
    }
    if (!plan.ring) return;
    int64_t most = 0;
    for (size_t l = 0; l < line_classes(); ++l) most = std::max(most, outer_taps(l));
    sums_ld = planes ? round_up(tile, lanes) : apart<Word<T>>(round_up(most * width, lanes));
    sums_member = (planes ? most * width : tile) * sums_ld;
  }

  // Source lines, [plane][channel][line][position], and one step of result lines,
  // [line][member][orbit][position]. Planes are kept for all results that read them where their lines, cut
  // into parts, are few enough for a cache; else there are those of a chunk.
  void place_turned() {
    const int64_t taps = problem.kernel[plan.deep], between = problem.dilation[plan.deep] * (taps - 1) + 1;
    const int64_t line = problem.channels * most_line() * static_cast<int64_t>(sizeof(Element<T>));
    int64_t parts = 1;
    const auto fits = [&] { return between * line * staged_lines(parts) <= kStageBytes; };
    while (!fits() && outer_count / (parts + 1) >= kLeastShared) ++parts;
    keeps_planes = taps > 1 && problem.stride[plan.deep] < between && fits();
    if (keeps_planes) staged_parts = parts;
    staged_planes = keeps_planes ? between : places_of_taps();
    const int64_t lines = keeps_planes ? staged_lines(splits()) : source_lines(chunk) + plan.lines_in();
    stage_ld = apart<Word<T>>(round_up(lines * most_line(), lanes));
    stage_words = staged_planes * problem.channels * stage_ld + lanes;
    turned_ld = round_up(tile, lanes);
    turned_words = kLinesOut[plan.filtering] * plan.members() * orbits * turned_ld;
  }

  // The least number by which the planes that one result reads leave different remainders: their places.
  int64_t places_of_taps() const {
    const int64_t taps = problem.kernel[plan.deep];
    for (int64_t places = taps;; ++places) {
      int64_t tap = 1;
      while (tap < taps && problem.dilation[plan.deep] * tap % places) ++tap;
      if (tap == taps) return places;
    }
  }

  // Source lines that one of so many parts of the result lines reads.
  int64_t staged_lines(int64_t parts) const {
    const int64_t results = ceil_div(outer_count, parts) * kLinesOut[plan.filtering];
    return std::min(problem.in[plan.outer], (results - 1) * problem.stride[plan.outer] + reach() + 1);
  }

  // Source lines of a chunk, [line][position][channel], and result lines, [line][position][filter], enough of
  // them to fill vectors where they are short.
  void place_relaid() {
    int64_t lines = source_lines(chunk);
    if (plan.filtering) lines = (chunk - 1) * kLinesOut[plan.filtering] + kLinesIn[plan.filtering];
    stage_ld = most_line() * problem.channels;
    stage_words = lines * stage_ld + lanes;
    turned_ld = problem.filters;
    turned_lines = std::max<int64_t>(kLinesOut[plan.filtering], ceil_div(kChunkPositions, tile));
    turned_words = turned_lines * tile * turned_ld + lanes;
  }

  struct Region {
    int64_t panel, panel_ld, panel_product;
    int64_t product, product_ld;
  };

  const Kernels<T>& kernels;
  int64_t threads;
  int lanes;
  int64_t rows;         // words of the channels
  int64_t orbits;       // of the segment
  int64_t outer_count;  // lines of results, or steps of minimal filtering
  int slots = 0;
  std::vector<DeepGroup> groups;
  std::vector<std::vector<ScatterTerm>> terms;  // by parity
  int64_t tile = 0, tiles = 0;                  // results of a line at a time
  int64_t width = 0, blocks = 0;                // orbits of a block
  std::vector<Matrix> matrices;
  std::vector<std::vector<ColumnBlock>> blocks_of;  // columns of each matrix
  int64_t weight_words = 0;                         // of a block
  int64_t chunk = 1, ring_lines = 0;
  std::vector<Region> regions;  // by class of positions
  int64_t panel_words = 0;
  int64_t product_stride = 0;       // from the products of one weight to those of the next
  std::vector<Bits<Sum<T>>> masks;  // by tap of the inner axis and result position (planes)
  int64_t mask_ld = 0;
  int64_t stage_ld = 0, stage_words = 0, turned_ld = 0, turned_words = 0;
  bool keeps_planes = false;
  int64_t staged_planes = 0, staged_parts = 1;
  int64_t turned_lines = 0;              // that are transposed together (relaid)
  int64_t sums_ld = 0, sums_member = 0;  // of a line in the ring: [parity][line member][position or row]
};

}  // namespace symconv
