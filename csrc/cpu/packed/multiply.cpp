// The multiplication behind forward and input gradient.
#include "packed/multiply.h"

#include <algorithm>
#include <type_traits>

#include "microkernels/tiles.h"
#include "packed/prepared.h"
#include "packed/result_store.h"
#include "packed/runs.h"
#include "packed/segments.h"
#include "packed/stage.h"
#include "streamed.h"
#include "workspace.h"

namespace symconv {

namespace {

template <class T>
class Multiplier {
 public:
  Multiplier(const Prepared<T>& prepared, const MultiplyTensors<T>& tensors) : p_(prepared), m_(tensors) {}

  void operator()() {
    const int64_t groups = p_.problem.groups;
    Scratch<Word<T>> packed(p_.weights.elements * groups);
    const int64_t pieces = weight_pieces(p_.weights, p_.lanes);
    parallel_slices(pieces * groups, p_.threads, [&](int64_t begin, int64_t end, int64_t) {
      for (int64_t i = begin; i < end; ++i) {
        WeightView<const Element<T>> w = m_.weight;
        w.data += i / pieces * m_.weight_group_stride;
        pack_weights(p_.kernels, p_.problem, p_.plan, p_.weights, w, p_.pixel_lanes, i % pieces,
                     packed.data() + i / pieces * p_.weights.elements);
      }
    });
    run_phases(packed.data());
  }

 private:
  static constexpr int kDepth = Format<T>::depth;
  static constexpr int64_t kWordBytes = sizeof(Word<T>);
  static_assert(sizeof(Word<T>) == sizeof(Sum<T>) && sizeof(Element<T>) <= sizeof(Sum<T>), "share a buffer");

  // Each thread has its part of every phase, and waits for no other between them.
  void run_phases(const Word<T>* packed) {
    int64_t most = 0, each = 0, pixels = 0;
    for (size_t i = 0; i < p_.phases.size(); ++i) {
      most = std::max(most, tasks(i)), each = std::max(each, room(i).total);
      pixels = std::max(pixels, block_pixels(i));
    }
    const int64_t slices = std::min(most, p_.threads);
    Scratch<Sum<T>> memory(each * slices);
    Scratch<int64_t> offsets(pixels * slices);
    parallel_slices(slices, slices, [&](int64_t begin, int64_t end, int64_t) {
      const TileScope tiles;
      for (int64_t slice = begin; slice < end; ++slice) {
        const auto local = [&](size_t i) {
          return local_memory(i, memory.data() + slice * each, offsets.data() + slice * pixels);
        };
        if (p_.shares_stage()) {
          run_together(tasks(0) * slice / slices, tasks(0) * (slice + 1) / slices, packed, local(0));
          continue;
        }
        for (size_t i = 0; i < p_.phases.size(); ++i) {
          // In turns, so that phases of a single task do not all fall to the last thread.
          const int64_t part = (slice + static_cast<int64_t>(i)) % slices;
          run_part(i, tasks(i) * part / slices, tasks(i) * (part + 1) / slices, packed, local(i));
        }
      }
      if (store_.streams()) publish_streamed();
    });
  }

  int64_t tasks(size_t index) const {
    return p_.problem.groups * p_.problem.batch * p_.phases[index].tiling.tiles();
  }

  int64_t block_pixels(size_t index) const {
    const Triple& b = p_.phases[index].tiling.block;
    if constexpr (!kNarrow<T>)
      if (p_.by_lines) return p_.line_folds[index].results();
    return b[0] * b[1] * b[2];
  }

  // Elements that a thread needs in a phase.
  struct Room {
    int64_t result, panel, zipped, zeros, total;
  };
  Room room(size_t index) const {
    const Phase& phase = p_.phases[index];
    Room r{};
    r.result = p_.results(phase).stride * p_.plan.parities * phase.tiling.products;
    r.panel = p_.panel_elements(index);
    r.zipped = kDepth > 1 && p_.planes ? r.panel : 0;
    r.zeros =
        round_up(std::max({p_.contraction, p_.source_channels, block_pixels(index)}) + p_.lanes, p_.lanes);
    r.total = (r.result + r.panel + r.zipped + r.zeros + p_.stage_elements + p_.lanes) / p_.lanes * p_.lanes;
    return r;
  }

  struct Local {
    Sum<T>* result;
    Word<T>*panel, *zipped;
    Element<T>* zeros;
    Held<Element<T>> stage;
    int64_t* offset;
    Runs runs;
    GemmSegments segments;
  };

  Local local_memory(size_t index, Sum<T>* memory, int64_t* offset) const {
    const Room r = room(index);
    Local local;
    local.result = memory;
    local.panel = reinterpret_cast<Word<T>*>(local.result + r.result);
    local.zipped = local.panel + r.panel;
    local.zeros = reinterpret_cast<Element<T>*>(local.zipped + r.zipped);
    local.stage.data = local.zeros + r.zeros;
    local.offset = offset;
    std::fill(local.zeros, local.zeros + r.zeros, Element<T>{});
    return local;
  }

  void run_part(size_t index, int64_t begin, int64_t end, const Word<T>* packed, Local local) const {
    const Tiling& tiling = p_.phases[index].tiling;
    const int64_t per_group = p_.problem.batch * tiling.tiles();
    for (int64_t i = begin; i < end; ++i)
      run_tile(index, tile_at(tiling, i % per_group), i / per_group,
               packed + i / per_group * p_.weights.elements, local);
  }

  // Tile by tile, of all phases: they are cut alike, and their memory is too.
  void run_together(int64_t begin, int64_t end, const Word<T>* packed, Local local) const {
    const int64_t per_group = p_.problem.batch * p_.phases[0].tiling.tiles();
    for (int64_t i = begin; i < end; ++i)
      for (size_t index = 0; index < p_.phases.size(); ++index) {
        const Tile tile = tile_at(p_.phases[index].tiling, i % per_group);
        if (tile.is_empty()) continue;
        run_tile(index, tile, i / per_group, packed + i / per_group * p_.weights.elements, local);
      }
  }

  void run_tile(size_t index, const Tile& tile, int64_t group, const Word<T>* packed, Local& local) const {
    if constexpr (!kNarrow<T>)
      if (p_.by_lines) return run_lines(index, tile, group, packed, local);
    const Phase& phase = p_.phases[index];
    destination_offsets(phase, tile, m_.out.batch_stride, m_.out.stride, local.offset);
    for (size_t c = 0; c < p_.chunks.size(); ++c) {
      const PanelLayout& layout = p_.layouts[index][c];
      pack(index, c, tile, group, local);
      Block block{phase, tile, group, packed, local, local.runs, c > 0, c + 1 == p_.chunks.size()};
      local.runs.resize(phase.tiling.products * p_.plan.parities);
      for (int product = 0; product < phase.tiling.products; ++product)
        for (int parity = 0; parity < p_.plan.parities; ++parity)
          make_runs(p_.plan, p_.weights, phase, tile, layout, c, parity, product,
                    local.runs[product * p_.plan.parities + parity]);
      p_.pixel_lanes ? multiply_planes(block) : multiply_pixels(block);
    }
  }

  // Some lines of a plane at a time.
  void run_lines(size_t index, const Tile& tile, int64_t group, const Word<T>* packed, Local& local) const {
    const Phase& phase = p_.phases[index];
    const LineFold<T>& fold = p_.line_folds[index];
    const StagePlaces places = p_.stage(index).fill(
        p_.kernels, phase, tile, m_.source, group * p_.source_channels, p_.source_channels, local.stage);
    for (int64_t d = 0; d < tile.size[0]; ++d)
      for (int64_t h = 0; h < tile.size[1]; h += fold.lines()) {
        const int64_t lines = std::min(fold.lines(), tile.size[1] - h);
        Tile part{
            tile.image, {tile.begin[0] + d, tile.begin[1] + h, tile.begin[2]}, {1, lines, tile.size[2]}};
        fold.fold(places, local.stage.data, part, local.panel);
        multiply_lines({phase, part, group, packed, local, local.runs, false, true}, fold);
      }
  }

  void pack(size_t index, size_t chunk, const Tile& tile, int64_t group, Local& local) const {
    const Phase& phase = p_.phases[index];
    const PanelLayout& layout = p_.layouts[index][chunk];
    const int64_t cut = p_.plan.fold ? p_.chunks[chunk].begin : 0;  // first channel of what is cut
    int64_t first = group * p_.source_channels + cut;
    View<const Element<T>> source = m_.source;
    StagePlaces places;
    if (p_.staged) {
      const Stage& stage = p_.stage(index);
      const int64_t all = p_.staged_channels(p_.chunks[chunk]);
      first = all == p_.source_channels ? cut : 0;  // in the stage
      places = stage.fill(p_.kernels, phase, tile, m_.source, group * p_.source_channels + cut - first, all,
                          local.stage);
      source = stage.view(local.stage);
    }
    pack_panel(p_.kernels, p_.plan, phase, tile, layout, source, p_.staged ? &places : nullptr, first,
               p_.chunks[chunk], p_.planes, local.zeros, reinterpret_cast<Stored<T>*>(local.panel),
               p_.stored_ld(phase), p_.product_stride(phase));
    if constexpr (kDepth > 1) {
      p_.planes ? zip_panel(phase, tile, layout, p_.chunks[chunk], local)
                : clear_odd_rows(phase, tile, layout, p_.chunks[chunk], local);
    }
  }

  // Pixels of the tile, halo lines included.
  static int64_t packed_pixels(const Phase& phase, const Tile& tile) {
    return (tile.size[0] + phase.tiling.span) * tile.line();
  }

  // Panels of planes: neighbouring rows, one after the other as they were packed, become pairs.
  void zip_panel(const Phase& phase, const Tile& tile, const PanelLayout& layout, const Chunk& chunk,
                 const Local& local) const {
    const int64_t ld = p_.panel_ld(phase);
    for (size_t i = 0; i < p_.plan.slots.size(); ++i) {
      if (layout.offset[i] < 0) continue;
      const auto* rows = reinterpret_cast<const Stored<T>*>(local.panel) + layout.offset[i] * kDepth * ld;
      p_.kernels.vnni_interleave({rows, local.zipped + layout.offset[i] * ld, ld, ld,
                                  chunk.width(p_.plan, p_.plan.slots[i]), packed_pixels(phase, tile)});
    }
  }

  // What is multiplied of a panel.
  const Word<T>* words_of(const Local& local) const {
    return kDepth > 1 && p_.planes ? local.zipped : local.panel;
  }

  // Panels of pixels: the last row of a slot, where it fills half a word.
  void clear_odd_rows(const Phase& phase, const Tile& tile, const PanelLayout& layout, const Chunk& chunk,
                      const Local& local) const {
    for (size_t i = 0; i < p_.plan.slots.size(); ++i) {
      const int64_t width = chunk.width(p_.plan, p_.plan.slots[i]);
      if (layout.offset[i] < 0 || width % kDepth == 0) continue;
      auto* last = reinterpret_cast<Stored<T>*>(local.panel) + layout.offset[i] * kDepth + width;
      for (int64_t p = 0; p < packed_pixels(phase, tile); ++p) last[p * p_.stored_ld(phase)] = {};
    }
  }

  // Everything that the multiplication of one tile and one chunk of channels needs.
  struct Block {
    const Phase& phase;
    const Tile& tile;
    int64_t group;
    const Word<T>* packed;
    Local& local;
    const Runs& runs;
    bool add, last;

    StoredTile stored() const { return {phase, tile, group, local.offset}; }
  };

  void multiply_pixels(const Block& x) const {
    const int64_t pixels = x.tile.pixels(), ld = p_.panel_ld(x.phase), step = p_.product_stride(x.phase);
    const auto r = p_.results(x.phase);
    const bool whole = p_.keeps_tile();
    GemmSegments& segments = x.local.segments;
    GemmArgs<Word<T>> g{};
    const int64_t pixel = p_.planes ? 1 : ld, row = p_.planes ? ld : 1;
    g.lda = pixel, g.a_step = row, g.ldc = r.ld, g.add = x.add;
    for (const ColumnBlock& block : p_.blocks) {
      const int64_t width = block.vectors * p_.lanes, column = block.vector * p_.lanes;
      g.ldb = width;
      for_blocks(
          x, pixels, block.vectors,
          [&](int64_t p0, int64_t rows, int64_t place) {
            const int64_t p1 = p0 + rows;
            Sum<T>* tile = x.local.result + (whole ? p0 * r.ld + column : place * r.ld);
            if (x.last) store_.expect(x.stored(), p0, p1, column, width);
            for (size_t i = 0; i < x.runs.size(); ++i) {
              const size_t parity = i % p_.plan.parities, product = i / p_.plan.parities;
              segments.clear();
              for (const Run& run : x.runs[i]) {
                if (p1 <= run.valid_begin || p0 >= run.valid_end) continue;
                segments.add((p0 + run.shift) * pixel + run.panel_row * row, run.weight_row * width,
                             run.rows);
              }
              segments.attach(g);
              g.a = words_of(x.local) + product * step;
              g.b = x.packed + p_.weights.offset[parity] + column * p_.weights.total_rows[parity];
              g.c = tile + (parity * x.phase.tiling.products + product) * r.stride;
              p_.kernels.gemm(static_cast<int>(rows), block.vectors, g);
            }
          },
          [&](int64_t p0, int64_t p1) {
            store_.pixels(x.stored(), x.local.result + (whole ? p0 * r.ld + column : 0), p0, p1, column,
                          width);
          });
    }
  }

  // Calls multiply(begin, rows, place) for every block of the matrix kernel, `place` rows behind the first
  // of those that are stored together, and store(begin, end) for these if they are complete.
  template <class Multiply, class Store>
  void for_blocks(const Block& x, int64_t count, int vectors, const Multiply& multiply,
                  const Store& store) const {
    const int64_t most = p_.kernels.max_rows[vectors];
    for_pieces(count, most * p_.together(x.phase), [&](int64_t begin, int64_t rows) {
      for_pieces(rows, most, [&](int64_t place, int64_t some) { multiply(begin + place, some, place); });
      if (x.last) store(begin, begin + rows);
    });
  }

  void multiply_planes(const Block& x) const {
    const int64_t pixels = x.tile.pixels(), ld = p_.panel_ld(x.phase), step = p_.product_stride(x.phase);
    const auto r = p_.results(x.phase);
    const bool whole = p_.keeps_tile();
    GemmSegments& segments = x.local.segments;
    GemmArgs<Word<T>> g{};
    g.ldb = ld, g.ldc = r.ld, g.add = x.add;
    const int64_t vectors = ceil_div(pixels, p_.lanes);
    for (ColumnBlock block{}; block.vector < vectors; block.vector += block.vectors) {
      block = block_of(block.vector, vectors);
      const int64_t p0 = block.vector * p_.lanes, p1 = std::min(pixels, p0 + block.vectors * p_.lanes);
      for_blocks(
          x, p_.columns, block.vectors,
          [&](int64_t u0, int64_t rows, int64_t place) {
            Sum<T>* tile = x.local.result + (whole ? u0 * r.ld + p0 : place * r.ld);
            for (size_t i = 0; i < x.runs.size(); ++i) {
              const size_t parity = i % p_.plan.parities, product = i / p_.plan.parities;
              segments.clear();
              for (const Run& run : x.runs[i]) {
                if (p1 <= run.valid_begin || p0 >= run.valid_end) continue;
                segments.add(run.weight_row, run.panel_row * ld + run.shift + p0, run.rows);
              }
              segments.attach(g);
              g.lda = p_.weights.ld[parity];
              g.a = x.packed + p_.weights.offset[parity] + u0 * g.lda;
              g.b = words_of(x.local) + product * step;
              g.c = tile + (parity * x.phase.tiling.products + product) * r.stride;
              p_.kernels.gemm(static_cast<int>(rows), block.vectors, g);
            }
          },
          [&](int64_t u0, int64_t u1) {
            store_.planes(x.stored(), x.local.result + (whole ? u0 * r.ld + p0 : 0), u0, u1, p0, p1);
          });
    }
  }

  // All orbits of a parity in turn: its lines stay in the first-level cache.
  void multiply_lines(const Block& x, const LineFold<T>& fold) const {
    const auto r = p_.results(x.phase);
    Tile line = x.tile;
    for (line.size[1] = 1; line.begin[1] < x.tile.begin[1] + x.tile.size[1]; ++line.begin[1])
      destination_offsets(x.phase, line, m_.out.batch_stride, m_.out.stride,
                          x.local.offset + (line.begin[1] - x.tile.begin[1]) * fold.place());
    const int64_t vectors = ceil_div((x.tile.size[1] - 1) * fold.place() + x.tile.size[2], p_.lanes);
    for (int64_t v = 0; v < vectors; v += fold.kVectors) {
      const int some = static_cast<int>(std::min<int64_t>(fold.kVectors, vectors - v));
      for (int parity = 0; parity < p_.plan.parities; ++parity)
        for_pieces(p_.columns, p_.kernels.mirrored_rows[some], [&](int64_t u0, int64_t rows) {
          fold.multiply(parity, rows, x.packed + p_.weights.offset[parity] + u0 * p_.weights.ld[parity],
                        x.local.panel, v, some, x.local.result + parity * r.stride + u0 * r.ld, r.ld,
                        p_.weights);
        });
      store_.lines(x.stored(), x.local.result, fold.place(), v * p_.lanes, (v + some) * p_.lanes);
    }
  }

  const Prepared<T>& p_;
  const MultiplyTensors<T>& m_;
  const ResultStore<T> store_{p_, m_};
};

}  // namespace

template <class T>
std::shared_ptr<const Prepared<T>> prepare(MultiplyShape shape, int64_t threads) {
  static_assert(!std::is_copy_constructible_v<Prepared<T>> && !std::is_copy_assignable_v<Prepared<T>>);
  return std::make_shared<const Prepared<T>>(std::move(shape), threads);
}

template <class T>
void multiply(const Prepared<T>& prepared, const MultiplyTensors<T>& tensors) {
  Multiplier<T>(prepared, tensors)();
}

#define SYMCONV_INSTANTIATE(T)                                                    \
  template std::shared_ptr<const Prepared<T>> prepare<T>(MultiplyShape, int64_t); \
  template void multiply<T>(const Prepared<T>&, const MultiplyTensors<T>&);
SYMCONV_FOR_ALL_TYPES(SYMCONV_INSTANTIATE)

}  // namespace symconv
