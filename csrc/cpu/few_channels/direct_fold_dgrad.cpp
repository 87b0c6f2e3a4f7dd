// The gradient of the input of stems: the adjoint of lines that are folded.
//
// Products of folded upstream gradients with folded filters are made once for all images of a tap. A
// butterfly takes those of all parities to the taps themselves, in registers, and each of these is added to
// the line that it reads forward. Positions are the lanes in every layout: lines of a stride are apart by
// residue, so that every tap is a shift of whole lines. A filter that is its own image has one parity:
// nothing is folded, and the products of a kept tap are added to the lines of all its images, with their
// signs.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "blocking.h"
#include "convert.h"
#include "few_channels/direct_filters.h"
#include "few_channels/direct_fold.h"
#include "few_channels/direct_lines.h"
#include "few_channels/tap_products.h"
#include "workspace.h"

namespace symconv {

namespace {

constexpr int64_t kProductBytes = 96 << 10;  // of all taps, for the positions of a piece
constexpr int64_t kMostOrbits = 384;         // of one product of a fold: a chain of sums
constexpr int64_t kMostRows = 32;            // of a tile

template <class T>
class DirectFoldDgrad : DirectLines<T> {
  using typename DirectLines<T>::E, typename DirectLines<T>::S;
  using DirectLines<T>::p_;

 public:
  DirectFoldDgrad(const Problem& p, const MultiplyTensors<T>& tensors)
      : DirectLines<T>(p, true),
        m_(tensors),
        outer_(p.in[0] > 1 ? 0 : 1),
        inner_(1 - outer_),
        rows_(p.channels * tap_count(kept_kernel(p))) {
    set_shifts();
    const int64_t bytes = static_cast<int64_t>(sizeof(S)) * rows_;
    const int64_t most = std::max(kProductBytes / bytes, 2 * int64_t{this->lanes_});
    piece_ = ceil_div(p.out[2], ceil_div(p.out[2], most));
    product_ld_ = round_up(piece_ + span_, this->lanes_);
    grad_ld_ = round_up(piece_, this->lanes_);
    vectors_ = piece_ > this->lanes_ ? 2 : 1;
    for (const Segment& s : p.segments) {
      const int64_t most_orbits = s.tie.axes() ? kMostOrbits : s.rows;
      for_pieces(s.rows, most_orbits, [&](int64_t first, int64_t count) { add_orbits(s, first, count); });
    }
    reach_ = p.dilation[outer_] * (p.kernel[outer_] - 1) + 1;
    const int64_t images = p.batch * p.groups;
    const bool even = images % this->threads_ == 0 || images >= 4 * this->threads_;
    parts_ = even ? 1 : std::min(this->threads_, p.in[outer_]);
  }

  // `weight`: of the first group.
  void operator()(const WeightView<const S>& weight, int64_t weight_group_stride) const {
    Scratch<S> filters(filter_elements_ * p_.groups);
    fold_filters(weight, weight_group_stride, filters.data());
    const int64_t tasks = p_.groups * p_.batch * parts_, slices = std::min(tasks, this->threads_);
    const int64_t each = round_up(local_elements(), this->lanes_);
    Scratch<S> memory(each * slices);
    parallel_slices(tasks, slices, [&](int64_t begin, int64_t end, int64_t slice) {
      Local local = local_in(memory.data() + slice * each);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t part = i % parts_, image = i / parts_ % p_.batch, group = i / parts_ / p_.batch;
        const int64_t lines = p_.in[outer_];
        run({group, image, lines * part / parts_, lines * (part + 1) / parts_,
             filters.data() + group * filter_elements_},
            local);
      }
    });
  }

 private:
  // Input lines, or planes, [begin, end) of an image.
  struct Task {
    int64_t group, image, begin, end;
    const S* filters;
  };
  struct Local {
    S *ring, *grads, *room, *products;
    const S* zeros;
    std::vector<S*> target;  // by line of the kernel
    int64_t count;           // positions of the last piece
  };

  // Taps of the width whose lines are of the same residue and so near to each other that zeros between two
  // rows of products are enough around both.
  struct Shifted {
    int64_t at;  // of the first position, from a line's start
    std::vector<int64_t> taps, shift;
  };

  void set_shifts() {
    for (int64_t residue = 0; residue < p_.stride[2]; ++residue)
      for (int64_t w = 0; w < p_.kernel[2]; ++w) {
        if (w * p_.dilation[2] % p_.stride[2] != residue) continue;
        const int64_t at = this->tap_at(w);
        const bool near = !shifted_.empty() && shifted_.back().at / this->residue_ == at / this->residue_ &&
                          at - shifted_.back().at < this->lanes_;
        if (!near) shifted_.push_back({at, {}, {}});
        Shifted& last = shifted_.back();
        last.taps.push_back(w), last.shift.push_back(at - last.at);
        span_ = std::max(span_, at - last.at);
      }
  }

  void add_orbits(const Segment& s, int64_t first, int64_t count) {
    FoldedOrbits fold{&s, first, count, paired_taps(p_, s), {}};
    std::vector<int64_t> row_of(this->taps_, -1), sign_of(this->taps_, 0);
    int64_t row = 0;
    for (PairedTaps& taps : fold.taps) {
      const int images = taps.paired.members();
      const int64_t rows = taps.rows();
      taps.row = row, taps.filters = filter_elements_;
      row += rows * images, filter_elements_ += rows * images * count;
      for (int i = 0; i < images; ++i) {
        for (int64_t u = 0; u < count; ++u)
          taps.read.push_back((s.tie.member_of(taps.paired, i) * count + u) * grad_ld_);
        int64_t at = taps.row + i * rows;
        for (const auto& tap : taps.first) row_of[place_index(p_, taps.image(p_, s, tap, i))] = at++;
      }
    }
    if (s.own_image) share_rows(p_, s, row_of, sign_of);
    for (int64_t line = 0; line < p_.kernel[0] * p_.kernel[1]; ++line)
      for (const Shifted& shifted : shifted_)
        for (int64_t c = 0; c < p_.channels; ++c) {
          AddedRows rows{line, shifted.at + c * this->channel_step(), shifted.shift.back(), {}, {}};
          for (size_t i = 0; i < shifted.taps.size(); ++i) {
            const int64_t place = (line * p_.kernel[2] + shifted.taps[i]) * p_.channels + c;
            if (row_of[place] < 0) continue;
            rows.offset.push_back(row_of[place] * product_ld_ - shifted.shift[i]);
            rows.sign.push_back(sign_of[place]);
          }
          if (!rows.offset.empty()) fold.added.push_back(std::move(rows));
        }
    grad_rows_ = std::max(grad_rows_, s.members() * count);
    folds_.push_back(std::move(fold));
  }

  // --- memory of a thread ---

  int64_t outer_line() const { return p_.in[inner_] * this->line_; }
  int64_t ring_elements() const { return reach_ * outer_line() + 2 * this->lanes_; }
  int64_t grad_elements() const { return grad_rows_ * grad_ld_ + this->lanes_; }
  int64_t room_elements() const { return m_.source.stride[2] == 1 ? 0 : p_.filters * grad_ld_; }
  int64_t product_elements() const { return span_ + rows_ * product_ld_ + 2 * this->lanes_; }
  int64_t local_elements() const {
    return ring_elements() + grad_elements() + room_elements() + product_elements() + kMostRows;
  }
  Local local_in(S* memory) const {
    Local local{};
    local.ring = memory, local.grads = local.ring + ring_elements();
    local.room = local.grads + grad_elements();
    S* const products = local.room + room_elements();
    std::fill(memory, memory + local_elements(), S(0));
    local.products = products + span_, local.zeros = products + product_elements();
    local.target.resize(p_.kernel[0] * p_.kernel[1]);
    local.count = piece_;
    return local;
  }

  // --- filters ---

  int64_t tile_rows(const PairedTaps& taps) const {
    return taps.paired.axes() ? this->kernels_.folded_rows[vectors_] : this->kernels_.max_rows[vectors_];
  }

  // [tile][parity and orbit][row]: with the fewest rows that a tile has of it in between.
  void fold_filters(const WeightView<const S>& weight, int64_t group_stride, S* out) const {
    for (int64_t g = 0; g < p_.groups; ++g, out += filter_elements_)
      for (const FoldedOrbits& fold : folds_) {
        const S* const from =
            weight.data + g * group_stride + (fold.segment->first + fold.first) * weight.orbit_stride;
        const int64_t work = fold.count * rows_, slices = work < (1 << 14) ? 1 : this->threads_;
        parallel_slices(fold.count, slices, [&](int64_t begin, int64_t end, int64_t) {
          for (const PairedTaps& taps : fold.taps) {
            S* const to = out + taps.filters;
            switch (taps.paired.axes()) {
              case 0:
                fold_rows<1>(weight, from, *fold.segment, fold.count, taps, begin, end, to);
                break;
              case 1:
                fold_rows<2>(weight, from, *fold.segment, fold.count, taps, begin, end, to);
                break;
              case 2:
                fold_rows<4>(weight, from, *fold.segment, fold.count, taps, begin, end, to);
                break;
              default:
                fold_rows<8>(weight, from, *fold.segment, fold.count, taps, begin, end, to);
            }
          }
        });
      }
  }

  // Of orbits [begin, end).
  template <int kImages>
  void fold_rows(const WeightView<const S>& weight, const S* from, const Segment& segment, int64_t orbits,
                 const PairedTaps& taps, int64_t begin, int64_t end, S* out) const {
    for_pieces(taps.rows(), tile_rows(taps), [&](int64_t first, int64_t rows) {
      S* const tile = out + first * kImages * orbits;
      for (int64_t r = 0; r < rows; ++r) {
        int64_t at[kImages];
        for (int i = 0; i < kImages; ++i) {
          const Place place = taps.image(p_, segment, taps.first[first + r], i);
          at[i] = dot(place.tap, weight.tap_stride) + place.channel * weight.channel_stride;
        }
        for (int64_t u = begin; u < end; ++u) {
          S v[kImages];
          for (int i = 0; i < kImages; ++i) v[i] = from[u * weight.orbit_stride + at[i]];
          for (int bit = 1; bit < kImages; bit *= 2)
            for (int i = 0; i < kImages; ++i)
              if (!(i & bit)) {
                const S sum = v[i] + v[i + bit], difference = v[i] - v[i + bit];
                v[i] = sum, v[i + bit] = difference;
              }
          for (int i = 0; i < kImages; ++i) tile[(i * orbits + u) * rows + r] = v[i] / kImages;
        }
      }
    });
  }

  // --- one part of an image ---

  int64_t first_result(int64_t line) const {
    const int64_t at = line + p_.padding[outer_] - reach_ + 1;
    return std::clamp<int64_t>(at <= 0 ? 0 : ceil_div(at, p_.stride[outer_]), 0, p_.out[outer_]);
  }
  int64_t end_result(int64_t line) const {
    return std::clamp<int64_t>(floor_div(line - 1 + p_.padding[outer_], p_.stride[outer_]) + 1, 0,
                               p_.out[outer_]);
  }

  // Lines are complete once the results that read them are through. A ring holds those that are not.
  void run(const Task& task, Local& local) const {
    int64_t next = task.begin;
    const int64_t end = end_result(task.end);
    for (int64_t o = first_result(task.begin); o < end; ++o) {
      for (const int64_t first = std::min(this->source(outer_, o, 0), task.end); next < first; ++next)
        store(task, next, local);
      for (int64_t i = 0; i < p_.out[inner_]; ++i)
        outer_ == 0 ? add_result(task, o, i, local) : add_result(task, i, o, local);
    }
    for (; next < task.end; ++next) store(task, next, local);
  }

  S* ring_line(const Task& task, int64_t outer, int64_t inner, const Local& local) const {
    return local.ring + (outer - task.begin) % reach_ * outer_line() + inner * this->line_;
  }

  // The line that each kernel line reads, or null. False if there is none at all.
  bool find_targets(const Task& task, int64_t plane, int64_t line, Local& local) const {
    const int64_t result[2] = {plane, line};
    int64_t found = 0;
    for (int64_t i = 0; i < p_.kernel[outer_]; ++i) {
      const int64_t outer = this->source(outer_, result[outer_], i);
      const bool there = outer >= task.begin && outer < task.end;
      S* const ring = there ? ring_line(task, outer, 0, local) : nullptr;
      for (int64_t j = 0; j < p_.kernel[inner_]; ++j) {
        const int64_t inner = this->source(inner_, result[inner_], j);
        const bool both = there && this->inside(inner_, inner);
        local.target[outer_ == 0 ? i * p_.kernel[1] + j : j * p_.kernel[1] + i] =
            both ? ring + inner * this->line_ : nullptr;
        found += both;
      }
    }
    return found > 0;
  }

  // Result line `line` of `plane`.
  void add_result(const Task& task, int64_t plane, int64_t line, Local& local) const {
    if (!find_targets(task, plane, line, local)) return;
    const View<const E>& g = m_.source;
    const E* const from = g.data + task.image * g.batch_stride + task.group * p_.filters * g.channel_stride +
                          plane * g.stride[0] + line * g.stride[1];
    for_pieces(p_.out[2], piece_, [&](int64_t first, int64_t count) {
      if (count < local.count) clear_tails(count, 0, rows_, local);
      local.count = count;
      const Planes own = planes(from + first * g.stride[2], count, local);
      for (const FoldedOrbits& fold : folds_) {
        fold_gradients(fold, own, count, local);
        for (const PairedTaps& taps : fold.taps) multiply(fold, taps, task, count, local);
        add_lines(fold, first, local);
      }
    });
  }

  // Zeros after the last position of some rows of products.
  void clear_tails(int64_t count, int64_t first, int64_t rows, const Local& local) const {
    for (int64_t r = first; r < first + rows; ++r) {
      S* const row = local.products + r * product_ld_;
      std::fill(row + count, row + grad_ld_, S(0));
    }
  }

  // Upstream gradients with contiguous positions: where they lie, or copied.
  struct Planes {
    const E* data;
    int64_t step;  // from one filter to the next
  };
  Planes planes(const E* from, int64_t positions, const Local& local) const {
    const View<const E>& g = m_.source;
    if (g.stride[2] == 1) return {from, g.channel_stride};
    E* const room = reinterpret_cast<E*>(local.room);
    this->own_.stage_line(from, g.channel_stride, g.stride[2], p_.filters, positions, room, grad_ld_);
    return {room, grad_ld_};
  }

  // As [parity][orbit][position].
  void fold_gradients(const FoldedOrbits& fold, const Planes& planes, int64_t positions,
                      const Local& local) const {
    const Tie tie = fold.segment->own_image ? Tie() : fold.segment->tie;
    RunArgs<T> run{};
    run.ld = grad_ld_, run.positions = positions, run.channels = fold.count;
    for (int i = 0; i < tie.members(); ++i) {
      run.source[0][i] = planes.data + (member_channel(*fold.segment, i) + fold.first) * planes.step;
      run.position_step[0][i] = 1, run.channel_step[0][i] = planes.step;
      run.out[i] = local.grads + i * fold.count * grad_ld_;
    }
    this->own_.fold_planes[kPlain][tie.axes()](run);
  }

  // Products of all images of some taps.
  void multiply(const FoldedOrbits& fold, const PairedTaps& taps, const Task& task, int64_t positions,
                const Local& local) const {
    const int images = taps.paired.members();
    const int64_t rows = taps.rows(), contracted = images * fold.count;
    const S* const filters = task.filters + taps.filters;
    S* const products = local.products + taps.row * product_ld_;
    for_pieces(rows, tile_rows(taps), [&](int64_t first, int64_t count) {
      const S* const tile = filters + first * contracted;
      for_columns(positions, [&](int64_t column, int64_t columns, int64_t vectors) {
        images == 1 ? multiply_plain(tile, contracted, column, count, vectors,
                                     products + first * product_ld_ + column, local)
                    : multiply_folded(fold, taps, tile, column, columns, vectors, first, count, local);
      });
    });
    if (images == 1) clear_tails(positions, taps.row, rows, local);
  }

  // Calls f(first position, positions, vectors).
  template <class F>
  void for_columns(int64_t positions, const F& f) const {
    for_pieces(ceil_div(positions, this->lanes_), vectors_, [&](int64_t vector, int64_t vectors) {
      const int64_t first = vector * this->lanes_;
      f(first, std::min(vectors * this->lanes_, positions - first), vectors);
    });
  }

  // In whole vectors, past the last position.
  void multiply_plain(const S* tile, int64_t contracted, int64_t column, int64_t rows, int64_t vectors,
                      S* out, const Local& local) const {
    GemmArgs<S> g{};
    const int64_t zero = 0;
    g.a = tile, g.a_step = rows, g.lda = 1, g.b = local.grads + column, g.ldb = grad_ld_;
    g.a_offset = g.b_offset = &zero, g.k = &contracted, g.segments = 1;
    g.c = out, g.ldc = product_ld_;
    this->kernels_.gemm(static_cast<int>(rows), static_cast<int>(vectors), g);
  }

  void multiply_folded(const FoldedOrbits& fold, const PairedTaps& taps, const S* tile, int64_t column,
                       int64_t columns, int64_t vectors, int64_t row, int64_t rows,
                       const Local& local) const {
    FoldedArgs<S> g{};
    g.line_offset = taps.read.data(), g.filter_step = rows, g.line_step = 1, g.out_row = product_ld_;
    for (int i = 0; i < taps.paired.members(); ++i) {
      g.taps[i] = fold.count, g.bias[i] = local.zeros;
      g.out[i] = local.products + (taps.row + i * taps.rows() + row) * product_ld_ + column;
    }
    FoldedTile<S> t{};
    t.filters = tile, t.lines = local.grads + column, t.columns = columns, t.ahead = rows * product_ld_;
    this->kernels_.folded[1][taps.paired.axes()](static_cast<int>(rows), static_cast<int>(vectors), g, t);
  }

  void add_lines(const FoldedOrbits& fold, int64_t first, const Local& local) const {
    for (const AddedRows& rows : fold.added) {
      S* const to = local.target[rows.line];
      if (to) add_rows(local, rows, to + rows.at + first);
    }
  }

  // The matrix kernel with factors of 1 and -1. In whole vectors.
  void add_rows(const Local& local, const AddedRows& rows, S* line) const {
    const S signs[] = {kSigns[0], kSigns[1]};
    TapsArgs<S> g{};
    g.a = signs, g.a_offset = rows.sign.data(), g.b_offset = rows.offset.data();
    g.taps = static_cast<int64_t>(rows.offset.size());
    const int64_t all = ceil_div(local.count + rows.span, this->lanes_);
    for_pieces(all, kMaxVectors, [&](int64_t vector, int64_t vectors) {
      const int64_t first = vector * this->lanes_;
      g.b = local.products + first, g.c = line + first, g.start = line + first;
      this->kernels_.taps(1, static_cast<int>(vectors), g);
    });
  }

  // A line that is complete, or a plane, which is zero afterwards.
  void store(const Task& task, int64_t outer, const Local& local) const {
    for (int64_t inner = 0; inner < p_.in[inner_]; ++inner) {
      S* const line = ring_line(task, outer, inner, local);
      E* const to = m_.out.data + task.image * m_.out.batch_stride +
                    task.group * p_.channels * m_.out.channel_stride + outer * m_.out.stride[outer_] +
                    inner * m_.out.stride[inner_];
      store_line(line, to);
      std::fill(line, line + this->line_, S(0));
    }
  }

  void store_line(const S* line, E* to) const {
    const int64_t stride = p_.stride[2], step = m_.out.stride[2];
    for (int64_t c = 0; c < p_.channels; ++c, line += this->channel_step()) {
      E* const channel = to + (p_.order.empty() ? c : p_.order[c]) * m_.out.channel_stride;
      for (int64_t residue = 0; residue < stride; ++residue) {
        const int64_t padding = p_.padding[2],
                      first = ceil_div(std::max<int64_t>(0, padding - residue), stride);
        const S* from = line + residue * this->residue_ + first;
        for (int64_t x = first * stride + residue - padding; x < p_.in[2]; x += stride)
          assign(channel[x * step], *from++);
      }
    }
  }

  const MultiplyTensors<T>& m_;
  int outer_, inner_;
  int64_t rows_;  // of the products of a fold
  std::vector<Shifted> shifted_;
  std::vector<FoldedOrbits> folds_;
  int64_t span_ = 0, piece_ = 0, vectors_ = 1;
  int64_t product_ld_ = 0, grad_ld_ = 0;
  int64_t grad_rows_ = 0, filter_elements_ = 0;
  int64_t reach_ = 1, parts_ = 1;
};

}  // namespace

template <class T>
void direct_fold_dgrad(const Problem& p, const MultiplyTensors<T>& tensors) {
  const WideWeight<T> weight(p, tensors.weight, tensors.weight_group_stride);
  DirectFoldDgrad<T>(p, tensors)(weight.of_group(0), weight.group_stride());
}

#define SYMCONV_INSTANTIATE(T) template void direct_fold_dgrad<T>(const Problem&, const MultiplyTensors<T>&);
SYMCONV_INSTANTIATE(float)
SYMCONV_INSTANTIATE(double)
SYMCONV_INSTANTIATE(Half)
SYMCONV_INSTANTIATE(BFloat16)

}  // namespace symconv
