// Gradients of stems, each filter by itself.
#include "few_channels/direct.h"

#include <algorithm>
#include <vector>

#include "expand.h"
#include "few_channels/direct_filters.h"
#include "few_channels/direct_lines.h"
#include "packed/segments.h"

namespace symconv {

namespace {

constexpr int64_t kTransposedBytes = 128 << 10;  // of upstream gradients

template <class T>
class DirectDgrad : DirectLines<T> {
 public:
  using DirectLines<T>::DirectLines;

  // Products of every upstream gradient with [filter][tap and channel], added to the lines that the taps
  // read.
  void operator()(const MultiplyTensors<T>& m) const {
    const int64_t ld = (this->taps_ + 2 * this->lanes_ - 1) / this->lanes_ * this->lanes_;
    const int64_t size = p_.filters * ld + kMaxVectors * this->lanes_;
    Scratch<S> weights(size * p_.groups);
    std::fill(weights.data(), weights.data() + size * p_.groups, S(0));
    const int64_t c = p_.channels;
    const Triple strides{p_.kernel[1] * p_.kernel[2] * c, p_.kernel[2] * c, c};
    const WideWeight<T> reduced(p_, m.weight, m.weight_group_stride);
    expand<S>(p_, reduced.of_group(0), reduced.group_stride(), {weights.data(), ld, 1, strides}, size);
    const int64_t tasks = this->chunks(p_.in[0], p_.in[1]), slices = std::min(tasks, this->threads_);
    const int64_t sums = this->chunk_ * this->line_, products = p_.out[2] * ld;
    const int64_t each = sums + products + this->gradient_elements(m.source);
    Scratch<S> memory(each * slices);
    parallel_slices(tasks, slices, [&](int64_t begin, int64_t end, int64_t slice) {
      S* lines = memory.data() + slice * each;
      for (int64_t i = begin; i < end; ++i) {
        const Chunk chunk = this->chunk(i, p_.in[0], p_.in[1]);
        std::fill(lines, lines + sums, S(0));
        for (int64_t d = 0; d < p_.kernel[0]; ++d)
          add_plane(m, chunk, d, weights.data() + chunk.group * size, ld, lines, lines + sums);
        store(m, chunk, lines);
      }
    });
  }

 private:
  using typename DirectLines<T>::Chunk, typename DirectLines<T>::E, typename DirectLines<T>::S;
  using DirectLines<T>::p_;

  // Here a chunk's lines and planes are those of the input. From the result planes that tap plane `d` joins.
  void add_plane(const MultiplyTensors<T>& m, const Chunk& c, int64_t d, const S* weights, int64_t ld,
                 S* lines, S* products) const {
    const int64_t deep = c.plane + p_.padding[0] - p_.dilation[0] * d;
    if (deep < 0 || deep % p_.stride[0] || deep / p_.stride[0] >= p_.out[0]) return;
    const int64_t block = p_.kernel[1] * p_.kernel[2] * p_.channels, zero = 0;
    GemmArgs<S> g{};
    g.a_offset = g.b_offset = &zero, g.k = &p_.filters, g.segments = 1;
    g.b = weights + d * block, g.ldb = ld, g.c = products, g.ldc = ld;
    S* const room = products + p_.out[2] * ld;
    for (int64_t o = 0; o < p_.out[1]; ++o) {
      const int64_t first = this->source(1, o, 0), last = this->source(1, o, p_.kernel[1] - 1);
      if (last < c.begin || first >= c.end) continue;
      const auto line = this->gradients(m.source, c.image, c.group, deep / p_.stride[0], o, room);
      g.a = line.data, g.lda = line.step;
      this->gemm(g, p_.out[2], block);
      for (int64_t h = 0; h < p_.kernel[1]; ++h) {
        const int64_t line = this->source(1, o, h);
        if (line >= c.begin && line < c.end)
          add_line(products, ld, h, lines + (line - c.begin) * this->line_);
      }
    }
  }

  void add_line(const S* products, int64_t ld, int64_t h, S* line) const {
    this->for_runs(0, h, [&](int64_t tap, int64_t at) {
      const int64_t step = p_.stride[2] * p_.channels, run = this->run_;
      // Runs of neighbouring positions overlap: a whole one at a time would wait for the one before it.
      for (int64_t i = 0; i < run; ++i)
        for (int64_t x = 0; x < p_.out[2]; ++x) line[at + x * step + i] += products[x * ld + tap + i];
    });
  }

  void store(const MultiplyTensors<T>& m, const Chunk& c, const S* lines) const {
    for (int64_t line = c.begin; line < c.end; ++line) {
      const S* from = lines + (line - c.begin) * this->line_ + p_.padding[2] * p_.channels;
      E* to = m.out.data + c.image * m.out.batch_stride + c.group * p_.channels * m.out.channel_stride +
              c.plane * m.out.stride[0] + line * m.out.stride[1];
      for (int64_t x = 0; x < p_.in[2]; ++x)
        for (int64_t k = 0; k < p_.channels; ++k)
          assign(to[x * m.out.stride[2] + k * m.out.channel_stride], from[x * p_.channels + k]);
    }
  }
};

template <class T>
class DirectWgrad : DirectLines<T> {
 public:
  using DirectLines<T>::DirectLines;

  // Rows are taps and channels, columns filters, positions the contraction; sums of each thread by
  // themselves, added in fixed order.
  void operator()(const View<const Element<T>>& grad, const View<const Element<T>>& input,
                  const WeightView<Element<T>>& out, int64_t out_group_stride) const {
    const int64_t tasks = this->chunks(p_.out[0], p_.out[1]), slices = std::min(tasks, this->threads_);
    const int64_t size = this->taps_ * p_.filters, sums = size * p_.groups;
    const int64_t room = this->gradient_elements(grad) * together(grad);
    const int64_t each = sums + this->copy_elements() + room;
    Scratch<S> memory(each * slices);
    parallel_slices(tasks, slices, [&](int64_t begin, int64_t end, int64_t slice) {
      S* own = memory.data() + slice * each;
      Local local{own + sums, own + sums + this->copy_elements(), {}, {}};
      std::fill(own, own + sums, S(0));
      for (int64_t i = begin; i < end; ++i) {
        const Chunk c = this->chunk(i, p_.out[0], p_.out[1]);
        this->copy_lines(c, input, local.lines);
        for (int64_t o = c.begin; o < c.end; o += together(grad))
          add(grad, c, o, std::min(c.end, o + together(grad)), local, own + c.group * size);
      }
    });
    for (int64_t slice = 1; slice < slices; ++slice)
      for (int64_t i = 0; i < sums; ++i) memory.data()[i] += memory.data()[slice * each + i];
    const int64_t last = p_.channels * p_.filters;
    const WeightView<const S> all{
        memory.data(), 1, p_.filters, {last * p_.kernel[1] * p_.kernel[2], last * p_.kernel[2], last}};
    if constexpr (DirectLines<T>::kWidens)
      narrow(all, size, out, out_group_stride);
    else
      reduce<S>(p_, all, size, out, out_group_stride);
  }

 private:
  using typename DirectLines<T>::Chunk, typename DirectLines<T>::E, typename DirectLines<T>::S;
  using typename DirectLines<T>::Gradients;
  using DirectLines<T>::p_;

  // Rounded once, when the members of an orbit are summed.
  void narrow(const WeightView<const S>& all, int64_t size, const WeightView<E>& out,
              int64_t out_group_stride) const {
    const int64_t taps = p_.kernel[0] * p_.kernel[1] * p_.kernel[2], of_orbit = p_.channels * taps;
    const int64_t of_group = p_.orbits * of_orbit;
    Scratch<S> orbits(of_group * p_.groups);
    const S* from = orbits.data();
    const Triple strides{p_.kernel[1] * p_.kernel[2], p_.kernel[2], 1};
    reduce<S>(p_, all, size, {orbits.data(), of_orbit, taps, strides}, of_group);
    for (int64_t g = 0; g < p_.groups; ++g)
      for (int64_t u = 0; u < p_.orbits; ++u)
        for (int64_t c = 0; c < p_.channels; ++c)
          for_taps(p_.kernel, [&](const Triple& tap) {
            E* to = out.data + g * out_group_stride + u * out.orbit_stride + c * out.channel_stride;
            for (int axis = 0; axis < kAxes; ++axis) to += tap[axis] * out.tap_stride[axis];
            assign(*to, *from++);
          });
  }

  struct Local {
    S *lines, *room;
    std::vector<Gradients> gradients;
    GemmSegments segments;
  };

  // Lines of upstream gradients that are multiplied together: as many as stay in a cache once transposed.
  int64_t together(const View<const E>& grad) const {
    const int64_t bytes = this->gradient_elements(grad) * static_cast<int64_t>(sizeof(S));
    return bytes == 0 ? kMostLines : std::max<int64_t>(1, kTransposedBytes / bytes);
  }

  // Result lines [first, last).
  void add(const View<const E>& grad, const Chunk& c, int64_t first, int64_t last, Local& local,
           S* sums) const {
    local.gradients.clear();
    for (int64_t o = first; o < last; ++o)
      local.gradients.push_back(this->gradients(grad, c.image, c.group, c.plane, o,
                                                local.room + (o - first) * this->gradient_elements(grad)));
    for (int64_t d = 0; d < p_.kernel[0]; ++d)
      for (int64_t h = 0; h < p_.kernel[1] && this->inside(0, this->source(0, c.plane, d)); ++h)
        this->for_runs(d, h, [&](int64_t tap, int64_t at) {
          local.segments.clear();
          for (int64_t o = first; o < last; ++o) {
            const int64_t line = this->source(1, o, h);
            if (this->inside(1, line))
              local.segments.add(this->copied(c, d, line) + at,
                                 local.gradients[o - first].data - local.gradients[0].data, p_.out[2]);
          }
          GemmArgs<S> g{};
          local.segments.attach(g);
          g.a = local.lines, g.lda = 1, g.a_step = p_.stride[2] * p_.channels;
          g.b = local.gradients[0].data, g.ldb = local.gradients[0].step;
          g.c = sums + tap * p_.filters, g.ldc = p_.filters, g.add = true;
          if (g.segments) this->gemm(g, this->run_, p_.filters);
        });
  }
};

}  // namespace

template <class T>
void direct_dgrad(const Problem& p, const MultiplyTensors<T>& tensors) {
  DirectDgrad<T>{p}(tensors);
}

template <class T>
void direct_wgrad(const Problem& p, const View<const Element<T>>& grad, const View<const Element<T>>& input,
                  const WeightView<Element<T>>& out, int64_t out_group_stride) {
  DirectWgrad<T>{p}(grad, input, out, out_group_stride);
}

#define SYMCONV_INSTANTIATE(T)                                                 \
  template void direct_dgrad<T>(const Problem&, const MultiplyTensors<T>&);    \
  template void direct_wgrad<T>(const Problem&, const View<const Element<T>>&, \
                                const View<const Element<T>>&, const WeightView<Element<T>>&, int64_t);
SYMCONV_INSTANTIATE(float)
SYMCONV_INSTANTIATE(double)
SYMCONV_INSTANTIATE(Half)
SYMCONV_INSTANTIATE(BFloat16)

}  // namespace symconv
