// Sums over the positions of some lines, in turns with folding these.
//
// The left side of a multiplication are the channels of the input, folded once for some lines; its columns
// are the orbits of all taps that differ in no more than the width. Sums lie by parity, tap of the width,
// channel, other taps, orbit.
#include "packed/wgrad_lines.h"

#include <algorithm>
#include <vector>

#include "packed/pixel_lines.h"
#include "packed/wgrad_sums.h"
#include "workspace.h"

namespace symconv {

namespace {

constexpr int64_t kPixelsPerSplit = 1024;  // below it a private accumulator costs more than it gives
constexpr int64_t kFoldedBytes = 256 << 10;
constexpr int64_t kMostPixels = 64;  // of a chain: as short as those of small maps

template <class T>
class LineAccumulator {
 public:
  explicit LineAccumulator(const Wgrad<T>& w)
      : w_(w),
        p_(w.problem),
        kernels_(select_kernels<T>()),
        lanes_(kernels_.lanes),
        segment_(p_.segments[w.segment]),
        blocks_(segment_.inputs[w.part]),
        parities_(blocks_.count()),
        orbits_(segment_.rows),
        channels_(blocks_.size),
        threads_(thread_count(p_.macs())),
        plan_(gradient_plan(p_, w.segment, w.part, -1, kPlain)),
        phases_(make_phases(plan_, p_, p_.filters * kBytes, kCopiedTile, threads_, false)),
        lines_(kernels_, plan_, phases_[0], p_.filters) {
    const Triple& block = tiling().block;
    together_ =
        std::clamp<int64_t>(kMostPixels / block[2], 1,
                            std::clamp<int64_t>(kFoldedBytes / (lines_.elements(1) * kBytes), 1, block[1]));
    row_ld_ = odd_lines<T>(channels_);
    block_stride_ = together_ * block[2] * row_ld_;
    sums_ld_ = round_up(lines_.width(), lanes_);
    tap_ = channels_ * sums_ld_;
    elements_ = parities_ * p_.kernel[2] * tap_;
    const int64_t want = std::max<int64_t>(1, threads_ / p_.groups);
    const int64_t positions = p_.batch * p_.in[0] * p_.in[1] * p_.in[2];
    splits_ = std::clamp<int64_t>(positions / kPixelsPerSplit, 1, want);
    parts_ = std::min<int64_t>(ceil_div(want, splits_), parities_);
  }

  void operator()() {
    const int64_t tasks = p_.groups * splits_ * parts_, threads = std::min(tasks, threads_);
    const int64_t each = round_up(folded() + parities_ * block_stride_ + lines_.copied(), lanes_);
    const int64_t room = WeightSums<T>::elements(kernel_taps(p_));
    Scratch<T> acc(elements_ * splits_ * p_.groups);
    Scratch<T> memory(each * threads);
    Scratch<T> rooms(room * threads_);
    const auto sum = [&](bool add) {
      parallel_slices(tasks, threads, [&](int64_t begin, int64_t end, int64_t thread) {
        T* const own = memory.data() + thread * each;
        std::fill_n(own, folded(), T(0));  // the end of a row is multiplied too
        for (int64_t task = begin; task < end; ++task) run(task, add, acc.data(), own);
      });
    };
    sum(false);
    while (w_.next && w_.next()) sum(true);
    const int64_t taps = p_.kernel[2];
    parallel_slices(p_.groups * splits_ * taps, threads_, [&](int64_t begin, int64_t end, int64_t) {
      for (int64_t i = begin; i < end; ++i) unfold(acc.data() + i / taps * elements_ + i % taps * tap_);
    });
    parallel_slices(p_.groups * parities_, threads_, [&](int64_t begin, int64_t end, int64_t thread) {
      for (int64_t i = begin; i < end; ++i)
        store(i % parities_, i / parities_, acc.data() + i / parities_ * splits_ * elements_,
              rooms.data() + thread * room);
    });
  }

 private:
  static constexpr int64_t kBytes = sizeof(T);

  const Phase& phase() const { return phases_[0]; }
  const Tiling& tiling() const { return phase().tiling; }
  int64_t folded() const { return lines_.elements(together_); }

  void run(int64_t task, bool add, T* acc, T* memory) const {
    const int64_t part = task % parts_, split = task / parts_ % splits_, group = task / parts_ / splits_;
    const int64_t first = parities_ * part / parts_, last = parities_ * (part + 1) / parts_;
    acc += (group * splits_ + split) * elements_;
    T *const rows = memory + folded(), *const copy = rows + parities_ * block_stride_;
    const int64_t tiles = p_.batch * tiling().tiles();
    const int64_t begin = tiles * split / splits_, end = tiles * (split + 1) / splits_;
    const int64_t sums = p_.kernel[2] * tap_;  // of a parity
    if (begin == end && !add) std::fill_n(acc + first * sums, (last - first) * sums, T(0));
    for (int64_t i = begin; i < end; ++i) {
      const Tile tile = tile_at(tiling(), i);
      lines_.copy(tile, w_.grad, group * p_.filters, copy);
      for_lines(tile, [&](const Tile& lines) {
        fold_input(lines, group, rows);
        lines_.fold(tile, lines, copy, together_, memory);
        for (int64_t parity = first; parity < last; ++parity)
          multiply(parity, lines, rows + parity * block_stride_, memory, add, acc + parity * sums);
        add = true;
      });
    }
  }

  // Calls f(lines) for lines of a tile that are folded together.
  template <class F>
  void for_lines(const Tile& tile, const F& f) const {
    Tile lines = tile;
    lines.size[0] = 1;
    for (int64_t d = 0; d < tile.size[0]; ++d)
      for (int64_t h = 0; h < tile.size[1]; h += together_) {
        lines.begin[0] = tile.begin[0] + d, lines.begin[1] = tile.begin[1] + h;
        lines.size[1] = std::min(together_, tile.size[1] - h);
        f(lines);
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
    BlocksArgs<T> r;
    r.step = step[2], r.rows = lines.size[2], r.length = channels_;
    r.apart = block_stride_, r.ld = row_ld_;
    const T* from = x.data + x.batch_stride * lines.image + group * p_.channels + dot(begin, x.stride);
    r.out = rows;
    for (int64_t h = 0; h < lines.size[1]; ++h, from += step[1], r.out += lines.size[2] * row_ld_) {
      for (int s = 0; s < parities_; ++s) r.source[s] = from + blocks_.at[s];
      kernels_.fold_blocks[blocks_.tie.axes()](r);
    }
  }

  // Positions of a line, or a part of them, are a segment.
  void multiply(int64_t parity, const Tile& lines, const T* rows, const T* folded, bool add, T* acc) const {
    std::vector<int64_t> left, first, second;
    const int64_t taps = p_.kernel[2];
    folded += (parity >> 1) * lines_.parity(together_);
    MirroredArgs<T> g;
    g.lda = 1, g.a_step = row_ld_, g.ldb = lines_.step(), g.ldc = sums_ld_;
    g.apart = lanes_, g.odd = parity & 1;  // the width is the first of the axes
    const int64_t vectors = sums_ld_ / lanes_;
    for_pieces(lines.size[2], kMostPixels, [&](int64_t begin, int64_t count) {
      g.k = count, g.add = add || begin > 0;
      for (int64_t tap = 0; tap < taps; ++tap) {
        left.clear(), first.clear(), second.clear();
        for (int64_t h = 0; h < lines.size[1]; ++h) {
          const int64_t at = h * lines_.line() + begin * g.ldb;
          left.push_back((h * lines.size[2] + begin) * row_ld_);
          first.push_back(at + lines_.shift(tap));
          second.push_back(at + lines_.shift(taps - 1 - tap) + lines_.member(together_));
        }
        g.a_offset = left.data(), g.first = first.data(), g.second = second.data();
        g.segments = lines.size[1];
        for (ColumnBlock block{}; block.vector < vectors; block.vector += block.vectors) {
          block = block_of(block.vector, vectors);
          g.b = folded + block.vector * lanes_;
          for_pieces(channels_, kernels_.mirrored_rows[block.vectors], [&](int64_t c, int64_t some) {
            g.a = rows + c;
            g.c = acc + tap * tap_ + c * sums_ld_ + block.vector * lanes_;
            kernels_.gemm_mirrored(static_cast<int>(some), block.vectors, g);
          });
        }
      }
    });
  }

  // Sums of parities become those of the blocks of input channels, where they are.
  void unfold(T* acc) const {
    BlocksArgs<T> r;
    r.step = r.ld = 0, r.rows = 1, r.length = tap_, r.apart = p_.kernel[2] * tap_;
    r.out = acc;
    for (int s = 0; s < parities_; ++s) r.source[s] = acc + s * r.apart;
    kernels_.fold_blocks[blocks_.tie.axes()](r);
  }

  // Of a block, with the taps of the first member.
  void store(int64_t member, int64_t group, const T* acc, T* room) const {
    std::vector<WeightTap<T>> taps;
    for (const Group& g : plan_.groups) {
      WeightTap<T>& tap = taps.emplace_back();
      const Taps& at = g.weight[0].tap;
      tap.offset = dot(at, w_.out.tap_stride);
      const T* const from = acc + (member * p_.kernel[2] + at[2]) * tap_ + lines_.column(at);
      for (int64_t split = 0; split < splits_; ++split)
        tap.terms.push_back({from + split * elements_, sums_ld_, T(1) / static_cast<T>(parities_)});
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
  const int64_t parities_;
  const int64_t orbits_, channels_;  // of the filters, and of a block
  const int64_t threads_;
  const Plan plan_;
  const std::vector<Phase> phases_;
  const PixelLines<T> lines_;
  int64_t together_;               // lines
  int64_t row_ld_, block_stride_;  // of the input
  int64_t sums_ld_, tap_;          // of a channel's sums, and of those for a tap of the width
  int64_t elements_;               // of all sums
  int64_t splits_, parts_;
};

}  // namespace

template <class T>
void wgrad_by_lines(const Wgrad<T>& w) {
  LineAccumulator<T>{w}();
}

template void wgrad_by_lines<float>(const Wgrad<float>&);
template void wgrad_by_lines<double>(const Wgrad<double>&);

}  // namespace symconv
