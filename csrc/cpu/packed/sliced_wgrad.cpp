// Sums of a slice over the positions of some lines, in turns with packing it.
//
// The left side of a multiplication are the channels of the input, folded once for some lines; its columns
// are orbits of the few taps of a slice. Sums of a slice lie together: parity, channel, tap, orbit.
#include "packed/sliced_wgrad.h"

#include <algorithm>
#include <vector>

#include "packed/slices.h"
#include "packed/wgrad_sums.h"
#include "workspace.h"

namespace symconv {

namespace {

constexpr int64_t kPixelsPerSplit = 1024;  // below it a private accumulator costs more than it gives
constexpr int64_t kPanelBytes = 32 << 10;  // of a slice
constexpr int64_t kLeastPixels = 32, kMostPixels = 64;  // of a slice: chains as short as those of small maps

template <class T>
class SlicedAccumulator {
 public:
  explicit SlicedAccumulator(const Wgrad<T>& w)
      : w_(w),
        p_(w.problem),
        kernels_(select_kernels<T>()),
        lanes_(kernels_.lanes),
        segment_(p_.segments[w.segment]),
        blocks_(segment_.inputs[w.part]),
        orbits_(segment_.rows),
        channels_(blocks_.size),
        threads_(thread_count(p_.macs())),
        plan_(gradient_plan(p_, w.segment, w.part, -1, kPlain)),
        phases_(make_phases(plan_, p_, p_.filters * kBytes, kSlicedTile, threads_, false)),
        slicer_(kernels_, plan_, phases_[0], nullptr, p_.filters) {
    add_slices();
    const Triple block = slice_block(tiling(), pixels_);
    const int64_t pixels = block[0] * block[1] * block[2];
    block_ = block;
    panel_ld_ = odd_lines<T>(kMaxSources * slices_[0].width);
    row_ld_ = odd_lines<T>(channels_);
    block_stride_ = pixels * row_ld_;
    panel_ = pixels * panel_ld_;
    const int64_t want = std::max<int64_t>(1, threads_ / p_.groups);
    const int64_t positions = p_.batch * p_.in[0] * p_.in[1] * p_.in[2];
    splits_ = std::clamp<int64_t>(positions / kPixelsPerSplit, 1, want);
    parts_ = std::min(ceil_div(want, splits_), static_cast<int64_t>(slices_.size()));
  }

  void operator()() {
    const int64_t tasks = p_.groups * splits_ * parts_, threads = std::min(tasks, threads_);
    const int64_t each = round_up(panel_ + kMaxSources * block_stride_ + slicer_.elements(), lanes_);
    const int64_t room = WeightSums<T>::elements(kernel_taps(p_));
    Scratch<T> acc(elements_ * splits_ * p_.groups);
    Scratch<T> memory(each * threads);
    Scratch<T> rooms(room * threads_);
    const auto sum = [&](bool add) {
      parallel_slices(tasks, threads, [&](int64_t begin, int64_t end, int64_t thread) {
        for (int64_t task = begin; task < end; ++task)
          run(task, add, acc.data(), memory.data() + thread * each);
      });
    };
    sum(false);
    while (w_.next && w_.next()) sum(true);
    const auto slices = static_cast<int64_t>(slices_.size());
    parallel_slices(p_.groups * splits_ * slices, threads_, [&](int64_t begin, int64_t end, int64_t) {
      for (int64_t i = begin; i < end; ++i) unfold(slices_[i % slices], acc.data() + i / slices * elements_);
    });
    parallel_slices(p_.groups * kMaxSources, threads_, [&](int64_t begin, int64_t end, int64_t thread) {
      for (int64_t i = begin; i < end; ++i)
        store(i % kMaxSources, i / kMaxSources, acc.data() + i / kMaxSources * splits_ * elements_,
              rooms.data() + thread * room);
    });
  }

 private:
  static constexpr int64_t kBytes = sizeof(T);

  // Some groups of the plan, with the place of their sums.
  struct Slice {
    Chunk chunk;
    int64_t width;  // columns of a parity, in whole vectors
    int64_t at;
  };

  const Phase& phase() const { return phases_[0]; }
  const Tiling& tiling() const { return phase().tiling; }

  // Two vectors of columns, or as many as the orbits of a tap are.
  void add_slices() {
    const int64_t groups = std::max<int64_t>(1, 2 * lanes_ / orbits_);
    for_pieces(static_cast<int64_t>(plan_.groups.size()), groups, [&](int64_t first, int64_t count) {
      const int64_t width = round_up(count * orbits_, lanes_);
      slices_.push_back({{0, orbits_, first, count}, width, elements_});
      elements_ += kMaxSources * channels_ * width;
    });
    pixels_ = std::clamp(kPanelBytes / (kMaxSources * slices_[0].width * kBytes), kLeastPixels, kMostPixels);
  }

  void run(int64_t task, bool add, T* acc, T* memory) const {
    const int64_t part = task % parts_, split = task / parts_ % splits_, group = task / parts_ / splits_;
    const auto slices = static_cast<int64_t>(slices_.size());
    const int64_t first = slices * part / parts_, last = slices * (part + 1) / parts_;
    acc += (group * splits_ + split) * elements_;
    T *const panel = memory, *const rows = panel + panel_, *const copy = rows + kMaxSources * block_stride_;
    Held<T> held;
    held.data = copy;
    const int64_t tiles = p_.batch * tiling().tiles();
    const int64_t begin = tiles * split / splits_, end = tiles * (split + 1) / splits_;
    for (int64_t s = first; begin == end && !add && s < last; ++s)
      std::fill_n(acc + slices_[s].at, kMaxSources * channels_ * slices_[s].width, T(0));
    for (int64_t i = begin; i < end; ++i) {
      const Tile tile = tile_at(tiling(), i);
      slicer_.fill(tile, w_.grad, group * p_.filters, held);
      for_parts(tile, block_, [&](const Tile& lines) {
        fold_input(lines, group, rows);
        for (int64_t s = first; s < last; ++s) {
          slicer_.pack(tile, lines, slices_[s].chunk, copy, slices_[s].width, panel, panel_ld_);
          multiply(slices_[s], lines.pixels(), rows, panel, add, acc);
        }
        add = true;
      });
    }
  }

  // Blocks of the input become its parities: [parity][position][channel].
  void fold_input(const Tile& lines, int64_t group, T* rows) const {
    const View<const T>& x = w_.input;
    Triple begin, step;
    for (int axis = 0; axis < kAxes; ++axis) {
      const AxisMap& map = *phase().axis[axis];
      begin[axis] = map.first + map.step * lines.begin[axis], step[axis] = map.step * x.stride[axis];
    }
    EightArgs<T> r;
    r.step = step[2], r.rows = lines.size[2], r.length = channels_;
    r.apart = block_stride_, r.ld = row_ld_, r.loose = false;
    const T* const from = x.data + x.batch_stride * lines.image + group * p_.channels + dot(begin, x.stride);
    for (int64_t d = 0; d < lines.size[0]; ++d)
      for (int64_t h = 0; h < lines.size[1]; ++h) {
        for (int s = 0; s < kMaxSources; ++s) r.source[s] = from + d * step[0] + h * step[1] + blocks_.at[s];
        r.out = rows + (d * lines.size[1] + h) * lines.size[2] * row_ld_;
        kernels_.fold_eight(r);
      }
  }

  void multiply(const Slice& slice, int64_t pixels, const T* rows, const T* panel, bool add, T* acc) const {
    const int64_t zero = 0, vectors = slice.width / lanes_;
    GemmArgs<T> g{};
    g.a_offset = g.b_offset = &zero;
    g.k = &pixels, g.segments = 1;
    g.lda = 1, g.a_step = row_ld_, g.ldb = panel_ld_, g.ldc = slice.width;
    g.add = add;
    for (int64_t parity = 0; parity < kMaxSources; ++parity)
      for (ColumnBlock block{}; block.vector < vectors; block.vector += block.vectors) {
        block = block_of(block.vector, vectors);
        const int64_t column = block.vector * lanes_;
        g.b = panel + parity * slice.width + column;
        for_pieces(channels_, kernels_.max_rows[block.vectors], [&](int64_t c, int64_t count) {
          g.a = rows + parity * block_stride_ + c;
          g.c = acc + slice.at + (parity * channels_ + c) * slice.width + column;
          kernels_.gemm(static_cast<int>(count), block.vectors, g);
        });
      }
  }

  // Sums of parities become those of the blocks of input channels, where they are.
  void unfold(const Slice& slice, T* acc) const {
    const int64_t apart = channels_ * slice.width;
    EightArgs<T> r;
    r.step = r.ld = 0, r.rows = 1, r.length = r.apart = apart;
    r.out = acc + slice.at, r.loose = false;
    for (int s = 0; s < kMaxSources; ++s) r.source[s] = r.out + s * apart;
    kernels_.fold_eight(r);
  }

  // Of a block, with the taps of the first member.
  void store(int64_t member, int64_t group, const T* acc, T* room) const {
    std::vector<WeightTap<T>> taps;
    for (const Slice& slice : slices_)
      for (int64_t i = 0; i < slice.chunk.groups; ++i) {
        WeightTap<T>& tap = taps.emplace_back();
        tap.offset = dot(plan_.groups[slice.chunk.first_group + i].weight[0].tap, w_.out.tap_stride);
        const T* const from = acc + slice.at + member * channels_ * slice.width + i * orbits_;
        for (int64_t split = 0; split < splits_; ++split)
          tap.terms.push_back({from + split * elements_, slice.width, T(1) / kMaxSources});
      }
    std::sort(taps.begin(), taps.end(), [](const auto& a, const auto& b) { return a.offset < b.offset; });
    T* const out = w_.out.data + group * w_.out_group_stride + segment_.first * w_.out.orbit_stride +
                   blocks_.at[member] * w_.out.channel_stride;
    WeightSums<T>(w_.out, true, kernel_taps(p_), channels_).store(taps, orbits_, out, room);
  }

  const Wgrad<T>& w_;
  const Problem& p_;
  const Kernels<T>& kernels_;
  const int64_t lanes_;
  const Segment& segment_;
  const Blocks& blocks_;
  const int64_t orbits_, channels_;  // of the filters, and of a block
  const int64_t threads_;
  const Plan plan_;
  const std::vector<Phase> phases_;
  const Slicer<T> slicer_;
  std::vector<Slice> slices_;
  int64_t elements_ = 0;  // of the sums
  int64_t pixels_ = 0;
  Triple block_;
  int64_t panel_ld_, row_ld_, block_stride_, panel_;
  int64_t splits_, parts_;
};

}  // namespace

template <class T>
void sliced_wgrad(const Wgrad<T>& w) {
  SlicedAccumulator<T>{w}();
}

template void sliced_wgrad<float>(const Wgrad<float>&);
template void sliced_wgrad<double>(const Wgrad<double>&);

}  // namespace symconv
