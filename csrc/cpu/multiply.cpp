// The multiplication behind forward and input gradient.
#include "multiply.h"

#include <algorithm>

#include "scratch.h"

namespace symconv {

namespace {

constexpr int64_t kMaxPanelBytes = 1 << 20;  // of the smallest tile; above it the channels are cut

// One run of contraction rows that lie together in the panel and in the weights.
struct Run {
  int64_t panel_row, weight_row, rows;
  int64_t shift;            // lines of the panel
  int64_t valid_begin, valid_end;  // pixels of the tile for which the shifted line is in the map
};

template <class T>
class Multiplier {
 public:
  explicit Multiplier(const Multiply<T>& m)
      : m_(m), kernels_(select_kernels<T>()), threads_(thread_count()), lanes_(kernels_.lanes) {
    chunks_ = cut_channels();
    int64_t widest = 0;
    for (const Slot& slot : m.plan.slots) widest += chunks_[0].width(m.plan, slot);
    phases_ = make_phases(m.plan, m.problem, widest * static_cast<int64_t>(sizeof(T)), threads_, m.planes);
    weights_ = weight_layout(m.problem, m.plan, m.columns, chunks_, lanes_, m.planes);
    blocks_ = column_blocks(m.columns, lanes_);
    for (const Phase& phase : phases_) {
      std::vector<PanelLayout> layouts;
      for (const Chunk& chunk : chunks_) layouts.push_back(panel_layout(m.plan, phase, chunk));
      layouts_.push_back(layouts);
    }
    for (int64_t c = 0; c < m.columns; ++c) channel_offset_.push_back(c * m.out.channel_stride);
  }

  void operator()() {
    const int64_t groups = m_.problem.groups;
    Scratch<T> packed(weights_.elements * groups);
    const int64_t pieces = weight_pieces(weights_, lanes_);
    parallel_slices(pieces * groups, threads_, [&](int64_t begin, int64_t end, int64_t) {
      for (int64_t i = begin; i < end; ++i) {
        WeightView<const T> w = m_.weight;
        w.data += i / pieces * m_.weight_group_stride;
        pack_weights(kernels_, m_.problem, m_.plan, weights_, w, m_.planes, i % pieces,
                     packed.data() + i / pieces * weights_.elements);
      }
    });
    for (size_t i = 0; i < phases_.size(); ++i) run_phase(i, packed.data());
  }

 private:
  // Smallest tile must fit; only fold plans can be cut, since their slots all have the same channels.
  std::vector<Chunk> cut_channels() const {
    const int64_t channels = m_.contraction;
    const int64_t bytes = 28 * static_cast<int64_t>(m_.plan.slots.size() * sizeof(T)) * channels;
    int64_t n = m_.plan.fold ? std::max<int64_t>(1, (bytes + kMaxPanelBytes - 1) / kMaxPanelBytes) : 1;
    const int64_t width = (channels + n - 1) / n;
    std::vector<Chunk> chunks;
    for (int64_t c = 0; c < channels; c += width) chunks.push_back({c, std::min(channels, c + width)});
    return chunks;
  }

  int64_t panel_ld(const Phase& phase) const {
    int64_t rows = 0;
    for (const Slot& slot : m_.plan.slots) rows += chunks_[0].width(m_.plan, slot);
    if (!m_.planes) return rows % 256 < 16 ? rows + 16 : rows;  // rows a KiB apart collide in the L1
    const Triple& b = phase.tiling.block;
    return ((b[0] + phase.tiling.span) * b[1] * b[2] + 3 * lanes_) / lanes_ * lanes_;
  }

  int64_t panel_elements(const Phase& phase) const {
    const Triple& b = phase.tiling.block;
    const int64_t pixels = (b[0] + phase.tiling.span) * b[1] * b[2];
    int64_t rows = 0;
    for (const Slot& slot : m_.plan.slots) rows += chunks_[0].width(m_.plan, slot);
    return (m_.planes ? rows : pixels) * panel_ld(phase) + kMaxVectors * lanes_;
  }

  // Leading dimension of the tile of results and the size of one parity.
  int64_t result_ld(const Phase& phase) const {
    const int64_t across = m_.planes ? phase.tiling.block[0] * phase.tiling.block[1] * phase.tiling.block[2]
                                     : m_.columns;
    return (across + kMaxVectors * lanes_ - 1) / lanes_ * lanes_;
  }
  int64_t result_elements(const Phase& phase) const {
    const int64_t pixels = phase.tiling.block[0] * phase.tiling.block[1] * phase.tiling.block[2];
    return (m_.planes ? m_.columns : pixels) * result_ld(phase);
  }

  void run_phase(size_t index, const T* packed) {
    const Phase& phase = phases_[index];
    const int64_t tasks = m_.problem.groups * m_.problem.batch * phase.tiling.tiles();
    const int64_t slices = std::min(tasks, threads_);
    const Triple& b = phase.tiling.block;
    const int64_t pixels = b[0] * b[1] * b[2];
    const int64_t zeros = std::max(m_.contraction, std::max(m_.source_channels, pixels)) + lanes_;
    const int64_t panel = panel_elements(phase), result = result_elements(phase) * m_.plan.parities;
    const int64_t each = (panel + result + zeros + lanes_) / lanes_ * lanes_;
    Scratch<T> memory(each * slices);
    Scratch<int64_t> offsets(pixels * slices);
    parallel_slices(tasks, slices, [&](int64_t begin, int64_t end, int64_t slice) {
      Local local;
      local.result = memory.data() + slice * each;
      local.panel = local.result + result;
      local.zeros = local.panel + panel;
      local.offset = offsets.data() + slice * pixels;
      std::fill(local.zeros, local.zeros + zeros, T(0));
      const int64_t per_group = m_.problem.batch * phase.tiling.tiles();
      for (int64_t i = begin; i < end; ++i)
        run_tile(index, tile_at(phase.tiling, i % per_group), i / per_group,
                 packed + i / per_group * weights_.elements, local);
    });
  }

  struct Local {
    T *result, *panel, *zeros;
    int64_t* offset;
  };

  void run_tile(size_t index, const Tile& tile, int64_t group, const T* packed, const Local& local) const {
    const Phase& phase = phases_[index];
    destination_offsets(phase, tile, m_.out.batch_stride, m_.out.stride, local.offset);
    const int64_t ld = panel_ld(phase);
    for (size_t c = 0; c < chunks_.size(); ++c) {
      const PanelLayout& layout = layouts_[index][c];
      const int64_t first = group * m_.source_channels + (m_.plan.fold ? chunks_[c].begin : 0);
      pack_panel(kernels_, m_.plan, phase, tile, layout, m_.source, first, chunks_[c].end - chunks_[c].begin,
                 m_.planes, local.zeros, local.panel, ld);
      std::vector<Run> runs[8];
      for (int parity = 0; parity < m_.plan.parities; ++parity)
        runs[parity] = make_runs(phase, tile, layout, c, parity);
      const bool last = c + 1 == chunks_.size();
      if (m_.planes)
        multiply_planes(phase, tile, group, packed, local, runs, ld, c > 0, last);
      else
        multiply_pixels(phase, tile, group, packed, local, runs, ld, c > 0, last);
    }
  }

  std::vector<Run> make_runs(const Phase& phase, const Tile& tile, const PanelLayout& layout, size_t chunk,
                             int parity) const {
    std::vector<Run> runs;
    const WeightRows& rows = weights_.rows[chunk];
    for (int64_t tap = 0; tap < weights_.shifts; ++tap) {
      int64_t shift = 0, begin = 0, end = tile.pixels();
      if (m_.plan.offset_axis >= 0) {
        const AxisMap& map = *phase.axis[m_.plan.offset_axis];
        if (!map.present[tap]) continue;
        shift = map.b[tap] - phase.tiling.b_min;
        const int64_t low = -map.b[tap] - tile.begin[0], high = map.extent - map.b[tap] - tile.begin[0];
        begin = std::clamp<int64_t>(low, 0, tile.size[0]) * tile.line();
        end = std::clamp<int64_t>(high, 0, tile.size[0]) * tile.line();
      }
      for (size_t i = 0; i < m_.plan.slots.size(); ++i) {
        const Slot& slot = m_.plan.slots[i];
        if (slot.parity != parity || layout.offset[i] < 0) continue;
        const int64_t width = chunks_[chunk].width(m_.plan, slot);
        const int64_t row = rows.row[i] + tap * rows.shift_stride[parity];
        if (!runs.empty()) {
          Run& r = runs.back();
          if (r.shift == shift && r.panel_row + r.rows == layout.offset[i] && r.weight_row + r.rows == row) {
            r.rows += width;
            continue;
          }
        }
        runs.push_back({layout.offset[i], row, width, shift, begin, end});
      }
    }
    return runs;
  }

  // Segments of the matrix kernel for the pixels [p0, p1).
  struct Segments {
    std::vector<int64_t> a, b, k;
    explicit Segments(size_t n) { a.reserve(n), b.reserve(n), k.reserve(n); }
    void clear() { a.clear(), b.clear(), k.clear(); }
    void attach(GemmArgs<T>& g) const {
      g.a_offset = a.data(), g.b_offset = b.data(), g.k = k.data(), g.segments = static_cast<int64_t>(k.size());
    }
  };

  void multiply_pixels(const Phase& phase, const Tile& tile, int64_t group, const T* packed, const Local& local,
                       const std::vector<Run>* runs, int64_t ld, bool add, bool last) const {
    const int64_t pixels = tile.pixels(), result_stride = result_elements(phase);
    Segments segments(64);
    GemmArgs<T> g{};
    g.lda = ld, g.ldc = result_ld(phase), g.add = add, g.a = local.panel;
    for (const ColumnBlock& block : blocks_) {
      const int64_t width = block.vectors * lanes_, column = block.vector * lanes_;
      const int64_t pieces = (pixels + kernels_.max_rows[block.vectors] - 1) / kernels_.max_rows[block.vectors];
      for (int64_t piece = 0; piece < pieces; ++piece) {
        const int64_t p0 = pixels * piece / pieces, p1 = pixels * (piece + 1) / pieces;
        for (int parity = 0; parity < m_.plan.parities; ++parity) {
          segments.clear();
          for (const Run& r : runs[parity]) {
            if (p1 <= r.valid_begin || p0 >= r.valid_end) continue;
            segments.a.push_back((p0 + r.shift * tile.line()) * ld + r.panel_row);
            segments.b.push_back(r.weight_row * width);
            segments.k.push_back(r.rows);
          }
          segments.attach(g);
          g.ldb = width;
          g.b = packed + weights_.offset[parity] + column * weights_.total_rows[parity];
          g.c = local.result + parity * result_stride + p0 * g.ldc + column;
          kernels_.gemm(static_cast<int>(p1 - p0), block.vectors, g);
        }
        if (last) store_pixels(group, local, p0, p1, column, width, g.ldc, result_stride);
      }
    }
  }

  void store_pixels(int64_t group, const Local& local, int64_t p0, int64_t p1, int64_t column, int64_t width,
                    int64_t ld, int64_t parity_stride) const {
    StoreArgs<T> s{};
    s.tile = local.result + p0 * ld + column;
    s.parity_stride = parity_stride, s.ld = ld;
    s.rows = p1 - p0, s.cols = std::min(width, m_.columns - column);
    s.row_offset = local.offset + p0;
    s.col_offset = m_.out.channel_stride == 1 ? nullptr : channel_offset_.data();
    finish_store(s, group, column, 0);
  }

  void multiply_planes(const Phase& phase, const Tile& tile, int64_t group, const T* packed, const Local& local,
                       const std::vector<Run>* runs, int64_t ld, bool add, bool last) const {
    const int64_t pixels = tile.pixels(), result_stride = result_elements(phase);
    Segments segments(64);
    GemmArgs<T> g{};
    g.ldb = ld, g.ldc = result_ld(phase), g.add = add, g.b = local.panel;
    for (const ColumnBlock& block : column_blocks(pixels, lanes_)) {
      const int64_t p0 = block.vector * lanes_, p1 = std::min(pixels, p0 + block.vectors * lanes_);
      const int64_t rows = kernels_.max_rows[block.vectors], pieces = (m_.columns + rows - 1) / rows;
      for (int64_t piece = 0; piece < pieces; ++piece) {
        const int64_t u0 = m_.columns * piece / pieces, u1 = m_.columns * (piece + 1) / pieces;
        for (int parity = 0; parity < m_.plan.parities; ++parity) {
          segments.clear();
          for (const Run& r : runs[parity]) {
            if (p1 <= r.valid_begin || p0 >= r.valid_end) continue;
            segments.a.push_back(r.weight_row);
            segments.b.push_back(r.panel_row * ld + r.shift * tile.line() + p0);
            segments.k.push_back(r.rows);
          }
          segments.attach(g);
          g.lda = weights_.ld[parity];
          g.a = packed + weights_.offset[parity] + u0 * g.lda;
          g.c = local.result + parity * result_stride + u0 * g.ldc + p0;
          kernels_.gemm(static_cast<int>(u1 - u0), block.vectors, g);
        }
        if (last) store_planes(group, local, u0, u1, p0, p1, g.ldc, result_stride);
      }
    }
  }

  void store_planes(int64_t group, const Local& local, int64_t u0, int64_t u1, int64_t p0, int64_t p1, int64_t ld,
                    int64_t parity_stride) const {
    StoreArgs<T> s{};
    s.tile = local.result + u0 * ld + p0;
    s.parity_stride = parity_stride, s.ld = ld;
    s.rows = u1 - u0, s.cols = p1 - p0;
    s.row_offset = channel_offset_.data();
    s.bias_of_row = true;
    const int64_t* at = local.offset + p0;
    const bool contiguous = at[s.cols - 1] - at[0] == s.cols - 1 && is_run(at, s.cols);
    s.col_offset = contiguous ? nullptr : at;
    finish_store(s, group, u0, contiguous ? at[0] : 0);
  }

  static bool is_run(const int64_t* at, int64_t n) {
    for (int64_t i = 1; i < n; ++i)
      if (at[i] != at[i - 1] + 1) return false;
    return true;
  }

  void finish_store(StoreArgs<T>& s, int64_t group, int64_t column, int64_t base) const {
    int members = static_cast<int>(m_.member_channel.size()), log = 0;
    while (1 << log < members) ++log;
    for (int i = 0; i < members; ++i) {
      const int64_t channel = group * m_.out_channels + m_.member_channel[i] + column;
      s.out[i] = m_.out.data + base + channel * m_.out.channel_stride;
      s.bias[i] = m_.bias ? m_.bias + channel : nullptr;
    }
    kernels_.store[log](s);
  }

  const Multiply<T>& m_;
  const Kernels<T>& kernels_;
  int64_t threads_;
  int lanes_;
  std::vector<Chunk> chunks_;
  std::vector<Phase> phases_;
  std::vector<std::vector<PanelLayout>> layouts_;
  WeightLayout weights_;
  std::vector<ColumnBlock> blocks_;
  std::vector<int64_t> channel_offset_;
};

}  // namespace

template <class T>
void multiply(const Multiply<T>& m) {
  Multiplier<T> run(m);
  run();
}

template void multiply<float>(const Multiply<float>&);
template void multiply<double>(const Multiply<double>&);

}  // namespace symconv
