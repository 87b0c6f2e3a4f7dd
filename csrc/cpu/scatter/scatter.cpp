// Forward as a scatter.
#include "scatter/scatter.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "convert.h"
#include "microkernels/tiles.h"
#include "scatter/prepared.h"
#include "scatter/relaid.h"
#include "scatter/weights.h"
#include "streamed.h"
#include "workspace.h"

namespace symconv {

namespace {

template <class T>
class Scatterer : public ScatterRelaid<T> {
 public:
  Scatterer(const PreparedScatter<T>& prepared, const MultiplyTensors<T>& tensors)
      : ScatterRelaid<T>(prepared, tensors, tensors), packer_(prepared, tensors) {}
  // Of one thread, where lines are relaid: `near` takes the place of the tensors.
  Scatterer(const Scatterer& whole, const MultiplyTensors<T>& near)
      : ScatterRelaid<T>(whole.p_, near, whole.m_), packer_(whole.packer_) {}

  void operator()() const {
    const int64_t blocks = q_.groups * p_.blocks, pieces = ceil_div(q_.channels, packer_.kChannels);
    Scratch<Word<T>> weights(p_.packs_blocks() ? 0 : p_.weight_words * blocks);
    if (!p_.packs_blocks())
      parallel_slices(blocks * pieces, p_.threads, [&](int64_t begin, int64_t end, int64_t) {
        for (int64_t i = begin; i < end; ++i)
          packer_.pack(i / pieces, i % pieces * packer_.kChannels,
                       weights.data() + i / pieces * p_.weight_words);
      });
    const int64_t filters = q_.groups * q_.filters;
    Scratch<Sum<T>> bias(m_.bias ? filters + p_.lanes : 0);
    if (m_.bias)
      for (int64_t i = 0; i < filters; ++i) bias.data()[i] = widened(m_.bias[i]);
    run_tasks(weights.data(), m_.bias ? bias.data() : nullptr);
  }

 private:
  using Base = ScatterRelaid<T>;
  using Base::kDepth;
  using Base::p_, Base::m_, Base::q_, Base::plan_, Base::map_;
  using typename Base::Lines, typename Base::Local, typename Base::Task;
  static_assert(sizeof(Word<T>) == sizeof(Sum<T>) && sizeof(Element<T>) <= sizeof(Sum<T>), "share a buffer");

  void run_tasks(const Word<T>* weights, const Sum<T>* bias) const {
    const int64_t base = p_.tasks(), splits = p_.splits();
    const int64_t tasks = base * splits, slices = std::min(tasks, p_.threads);
    const int64_t lines = p_.planes ? p_.source_lines(p_.chunk) : 1;
    const int64_t along = p_.most_line();
    const int64_t longest = std::max({q_.channels, lines * along, p_.sums_ld}) + p_.lanes;
    const int64_t zipped = kDepth > 1 && p_.planes ? p_.panel_words : 0;
    const int64_t products = p_.product_stride * p_.kept();
    const int64_t ring = p_.ring_lines * p_.sums_member * plan_.line_members() * plan_.parities() + p_.lanes;
    const int64_t block = p_.packs_blocks() ? round_up(p_.weight_words, p_.lanes) : 0;
    const int64_t each = round_up(block + p_.panel_words + zipped + products + ring + 2 * longest +
                                      p_.stage_words + p_.turned_words + p_.lanes,
                                  p_.lanes);
    Scratch<Sum<T>> memory(each * slices);
    parallel_slices(tasks, slices, [&](int64_t begin, int64_t end, int64_t slice) {
      const TileScope tiles;
      Local local;
      auto* const packed = reinterpret_cast<Word<T>*>(memory.data() + slice * each);
      int64_t packed_block = -1;
      local.products = memory.data() + slice * each + block;
      local.ring = local.products + products;
      local.zero_sums = local.ring + ring;
      local.zeros = reinterpret_cast<Element<T>*>(local.zero_sums + longest);
      local.panel = reinterpret_cast<Word<T>*>(local.zero_sums + 2 * longest);
      local.zipped = local.panel + p_.panel_words;
      local.turned = reinterpret_cast<Element<T>*>(local.zipped + zipped);
      local.stage = local.turned + p_.turned_words;
      local.bias = bias;
      std::fill(local.zero_sums, local.zero_sums + 2 * longest, Sum<T>(0));
      if (p_.relaid) local.near = this->nearby();
      const std::optional<Scatterer> own =
          p_.relaid ? std::optional<Scatterer>(std::in_place, *this, local.near) : std::nullopt;
      const Scatterer& scatterer = own ? *own : *this;
      Task before{};
      for (int64_t i = begin; i < end; ++i) {
        // Parts of the lines come last, so that threads have the same blocks.
        int64_t rest = i % base, part = i / base;
        Task t;
        t.begin = p_.outer_count * part / splits, t.end = p_.outer_count * (part + 1) / splits;
        t.deep = rest % q_.out[plan_.deep], rest /= q_.out[plan_.deep];
        const int64_t tile = rest % p_.tiles;
        t.first = tile * p_.tile, t.last = std::min(q_.out[plan_.inner], t.first + p_.tile);
        rest /= p_.tiles;
        t.image = rest % q_.batch, rest /= q_.batch;
        t.block = rest % p_.blocks, t.group = rest / p_.blocks;
        const int64_t which = t.group * p_.blocks + t.block;
        if (p_.packs_blocks() && which != packed_block)
          for (int64_t c = 0; c < q_.channels; c += packer_.kChannels) packer_.pack(which, c, packed);
        packed_block = which;
        local.weights = p_.packs_blocks() ? packed : weights + which * p_.weight_words;
        this->set_spans(t, local);
        if (p_.turned) this->begin_stage(t, i > begin ? before : Task{-1}, local);
        before = t;
        plan_.ring ? scatterer.run_ring(t, local) : scatterer.run_lines(t, local);
        this->emit(t, 0, local);
      }
      if (streams_) publish_streamed();
    });
  }

  const ScatterWeights<T> packer_;

  // --- the outer axis is contracted: results of a line are complete at once ---

  void run_lines(const Task& t, Local& local) const {
    const AxisMap& outer = map_[plan_.outer];
    const int64_t results = kLinesOut[plan_.filtering], step = outer.a * results;
    for (int64_t o = t.begin; o < t.end; o += p_.chunk) {
      const int64_t count = std::min(p_.chunk, t.end - o), at = o * step + outer.b[0];
      this->fetch(t, at, plan_.filtering ? (count - 1) * step + plan_.lines_in() : p_.source_lines(count),
                  local);
      if (!p_.direct) {
        if (plan_.filtering)
          for (int64_t l = 0; l < count; ++l) this->pack_lines(t, l, at + l * step, 1, local);
        else
          this->pack_lines(t, 0, at, p_.source_lines(count), local);
        this->zip(t, local);
      }
      const Lines lines{0, count, at, plan_.filtering ? 1 : step};
      for (int w = 0; w < plan_.weights(); ++w) this->multiply(t, lines, w, local);
      for (int64_t l = 0; l < count; ++l) store_line(t, o + l, l, local);
    }
  }

  void store_line(const Task& t, int64_t o, int64_t line, Local& local) const {
    ScatterArgs<T> a{};
    this->set_sources(t, a, 0, 0, line, local);
    a.product_stride = p_.product_stride;
    const int64_t results = kLinesOut[plan_.filtering];
    a.lines = static_cast<int>(std::min(results, q_.out[plan_.outer] - o * results));
    this->aim(t, o * results, local);
    store(t, o * results, 0, a, local);
    if (p_.turned) turn(t, o * results, a.lines, local);
    this->emit(t, a.lines, local);
  }

  // --- the outer axis is scattered: what lines give waits in a ring ---

  void run_ring(const Task& t, Local& local) const {
    const AxisMap& outer = map_[plan_.outer];
    const int64_t from = std::max<int64_t>(0, outer.a * t.begin + outer.b.front());
    const int64_t to = std::min(q_.in[plan_.outer] - 1, outer.a * (t.end - 1) + outer.b.back());
    int64_t next = t.begin;
    for (int64_t i = from; i <= to; i += p_.chunk) {
      const int64_t count = std::min(p_.chunk, to + 1 - i);
      this->fetch(t, i, count, local);
      add_to_ring(t, i, count, local);
      while (next < t.end && outer.a * next + outer.b.back() < i + count) store_from_ring(t, next++, local);
    }
    while (next < t.end) store_from_ring(t, next++, local);
  }

  // Sums over the inner axis, or products where that is contracted, of `count` source lines from line `at`
  // on, all of one class.
  void add_to_ring(const Task& t, int64_t at, int64_t count, Local& local) const {
    size_t l = 0;
    while (l < p_.line_classes() && plan_.lines.classes[l].residue != at % q_.stride[plan_.outer]) ++l;
    if (l == p_.line_classes()) return;  // no tap reaches them
    if (!p_.direct) {
      this->pack_lines(t, 0, at, count, local);
      this->zip(t, local);
    }
    for (int parity = 0; parity < plan_.parities(); ++parity) {
      this->multiply(t, {l, count, at, 1}, parity, local);
      for (int64_t i = 0; plan_.summed && i < count; ++i) add_line(t, l, parity, at + i, i, local);
    }
  }

  void add_line(const Task& t, size_t line_class, int parity, int64_t at, int64_t line,
                const Local& local) const {
    ScatterArgs<T> a{};
    this->set_sources(t, a, parity, line_class, line, local);
    const int64_t across = p_.outer_taps(line_class) * p_.width, along = t.last - t.first;
    a.rows = p_.planes ? across : along, a.columns = p_.planes ? along : across;
    a.sums_step = p_.sums_ld;
    for (int m = 0; m < 2; ++m) a.sums[m] = this->ring_line(at, parity, m, local);
    p_.kernels.scatter_lines[a.taps == 3 ? 0 : 1](a);
  }

  void store_from_ring(const Task& t, int64_t o, Local& local) const {
    const AxisMap& outer = map_[plan_.outer];
    this->aim(t, o, local);
    ScatterArgs<T> a{};
    const int taps = static_cast<int>(q_.kernel[plan_.outer]);
    a.taps = taps;
    for (int member = 0; member < plan_.line_members(); ++member) {
      for (int k = 0; k < taps; ++k) {
        const int64_t line = outer.a * o + outer.b[k];
        const bool there = this->inside(plan_.outer, line);
        a.step[k] = there ? p_.sums_ld : 0;
        for (int s = 0; s < 2 * plan_.parities(); ++s) {
          const int64_t row = plan_.lines.index[s & 1 ? mirrored(taps, k) : k] * p_.width;
          a.source[s][k] =
              there ? this->ring_line(line, s / 2, member, local) + row * (p_.planes ? p_.sums_ld : 1)
                    : local.zero_sums;
        }
      }
      a.lines = 1;
      store(t, o, member, a, local);
    }
    if (p_.turned) turn(t, o, 1, local);
    this->emit(t, 1, local);
  }

  // --- results ---

  Element<T>* result(const Task& t, int64_t o, int64_t channel) const {
    const View<Element<T>>& y = m_.out;
    return y.at(t.image * y.batch_stride + t.deep * y.stride[plan_.deep] + o * y.stride[plan_.outer] +
                t.first * y.stride[plan_.inner] + channel * y.channel_stride);
  }

  // Line `o` of the members that differ in the axis which the sums are over (and in the folded one); `member`
  // is which of the inner axis it is where that is tied and not the one.
  void store(const Task& t, int64_t o, int member, ScatterArgs<T>& a, const Local& local) const {
    const Segment& s = q_.segments[p_.segment];
    const int64_t first = t.block * p_.width, orbits = std::min(p_.width, p_.orbits - first);
    const int64_t along = t.last - t.first;
    a.rows = p_.planes ? orbits : along, a.columns = p_.planes ? along : orbits;
    a.out_step = p_.turned ? p_.turned_ld : p_.planes ? m_.out.channel_stride : m_.out.stride[plan_.inner];
    a.line_stride = p_.turned ? plan_.members() * p_.orbits * p_.turned_ld : m_.out.stride[plan_.outer];
    a.bias_of_row = p_.planes;
    for (int i = 0; i < plan_.stored(); ++i) {
      const int whole = plan_.member(member, i);
      const int64_t channel = t.group * q_.filters + member_channel(s, whole) + first;
      a.out[i] = p_.turned ? local.turned + row_of_member(whole) * p_.turned_ld : result(t, o, channel);
      a.bias[i] = local.bias ? local.bias + channel : nullptr;
    }
    p_.kernels.scatter_store[a.taps == 3 ? 0 : 1][plan_.stored() / 4][plan_.filtering](a);
  }

  // Turned results: copies come after the rows themselves, in the order of their channels.
  int64_t row_of_member(int member) const {
    const Segment& s = q_.segments[p_.segment];
    return member ? p_.orbits + member_channel(s, member) - s.copies : 0;
  }

  // Transposes what `store` left to `lines` lines of the result.
  void turn(const Task& t, int64_t o, int lines, const Local& local) const {
    const Segment& s = q_.segments[p_.segment];
    const int64_t rows = plan_.members() * p_.orbits, along = t.last - t.first;
    const bool together = s.copies == s.first + p_.orbits;
    for (int line = 0; line < lines; ++line)
      for (int64_t row = 0, to; row < rows; row = to) {
        to = together || row > 0 ? rows : p_.orbits;
        const int64_t channel = t.group * q_.filters + (row > 0 ? s.copies : s.first);
        const Element<T>* from = local.turned + (line * rows + row) * p_.turned_ld;
        Element<T>* const at = result(t, o + line, channel);
        const int64_t step = m_.out.stride[plan_.inner];
        if (streams_)
          p_.kernels.stream_rows(from, p_.turned_ld, to - row, along, at, step);
        else
          p_.kernels.stage_line(from, 1, p_.turned_ld, along, to - row, at, step);
      }
  }

  // Do turned results go past the caches? Rows of all members are then one run of whole cache lines.
  bool streams() const {
    const Segment& s = q_.segments[p_.segment];
    const auto whole = are_whole_lines<Element<T>>;
    return p_.turned && p_.kernels.stream_rows && s.copies == s.first + p_.orbits && whole(s.first) &&
           whole(plan_.members() * p_.orbits) && may_stream(q_, m_.out, false);
  }
  const bool streams_ = streams();
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
