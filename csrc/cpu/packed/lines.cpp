// Lines folded along every axis but the width, and their products.
#include "packed/lines.h"

#include <algorithm>

#include "blocking.h"

namespace symconv {

namespace {

constexpr int64_t kFoldedBytes = 256 << 10;  // of lines that are folded together, beside stage and weights
constexpr int64_t kMostLines = 8;

}  // namespace

template <class T>
LineFold<T>::LineFold(const Kernels<T>& kernels, const Plan& plan, const Phase& phase, const Stage& stage,
                      const WeightLayout& weights)
    : kernels_(kernels),
      phase_(phase),
      axes_(plan.groups[0].log_sources - 1),
      channels_(plan.groups[0].channels),
      pitch_(stage.channel_stride()) {
  const int members = 1 << axes_;
  for (const Group& g : plan.groups) {
    if (g.tap[0][2] != 0) continue;
    Outer& outer = outer_.emplace_back();
    std::copy_n(g.tap, 2 * members, outer.tap);
    std::copy_n(g.channel, 2 * members, outer.channel);
  }
  choose_lines(phase.tiling.block);
  const AxisMap& width = *phase.axis[2];
  const int64_t low = width.reach().first;
  int64_t at = -1;  // taps of the width are innermost
  for (const Group& g : plan.groups) {
    if (g.tap[0][2] == 0) ++at;
    first_.push_back(2 * at * member_step_ + stage.offset(2, width.b[g.tap[0][2]], low));
    second_.push_back((2 * at + 1) * member_step_ + stage.offset(2, width.b[g.tap[1][2]], low));
    for (int s = 0; s < 2 * members; ++s) weights_[s].push_back(weights.rows[0].row[g.slot[s]]);
  }
}

// Lines of their own begin at vectors. Where that leaves many lanes empty, they follow each other with the
// elements that lie between them, of which there are results that nobody wants.
template <class T>
void LineFold<T>::choose_lines(const Triple& block) {
  const int64_t lanes = kernels_.lanes, own = round_up(block[2], lanes);
  const int64_t line = (2 << axes_) * static_cast<int64_t>(outer_.size()) * channels_ * pitch_;
  const int64_t most = std::clamp<int64_t>(kFoldedBytes / (line * static_cast<int64_t>(sizeof(T))), 1,
                                           std::min(block[1], kMostLines));
  double least = 0;
  for (int64_t lines = 1; lines <= most; ++lines)
    for (const int64_t place : {own, pitch_}) {
      const double each =
          static_cast<double>(round_up(vectors_of(lines, place), kVectors)) / static_cast<double>(lines);
      if (least > 0 && each > 0.97 * least) continue;
      least = each, lines_ = lines, place_ = place;
    }
  const bool own_lines = place_ == own;
  row_step_ = own_lines ? pitch_ : lines_ * pitch_;
  line_step_ = own_lines ? channels_ * pitch_ : pitch_;
  member_step_ = lines_ * channels_ * pitch_;
  // Whole vectors are written past the end of a parity, and read.
  const auto outer = static_cast<int64_t>(outer_.size());
  parity_step_ = apart<T>(round_up(2 * outer * member_step_, lanes) + lanes);
  elements_ = (1 << axes_) * parity_step_ + kVectors * lanes;
}

template <class T>
void LineFold<T>::fold(const StagePlaces& places, const Element<T>* stage, const Tile& lines,
                       Stored<T>* out) const {
  RunArgs<T> run;
  run.product_stride = 0;
  run.ld = row_step_;
  const bool runs = row_step_ == pitch_;  // all channels of a line follow each other
  run.loose = runs;
  run.positions = runs ? channels_ * pitch_ : pitch_, run.channels = runs ? 1 : channels_;
  const int members = 1 << axes_;
  for (int s = 0; s < members; ++s) run.position_step[0][s] = 1, run.channel_step[0][s] = pitch_;
  const auto offset = [&](int axis, int64_t anchor, const Taps& tap) {
    return places.offset(axis, phase_.axis[axis]->a * anchor + phase_.axis[axis]->b[tap[axis]]);
  };
  const auto pack = kernels_.fold_planes[kPlain][axes_];
  for (const Outer& outer : outer_)
    for (int mirror = 0; mirror < 2; ++mirror, out += member_step_)
      for (int64_t line = 0; line < lines.size[1]; ++line) {
        for (int s = 0; s < members; ++s) {
          const int member = s << 1 | mirror;  // that of the width is the first of the axes
          const Taps& tap = outer.tap[member];
          run.source[0][s] = stage + offset(0, lines.begin[0], tap) + offset(1, lines.begin[1] + line, tap) +
                             outer.channel[member] * pitch_;
          run.out[s] = out + s * parity_step_ + line * line_step_;
        }
        pack(run);
      }
}

template <class T>
void LineFold<T>::multiply(int parity, int64_t rows, const T* weights, const Stored<T>* folded, int64_t at,
                           int vectors, T* to, int64_t ld, const WeightLayout& layout) const {
  if constexpr (!kNarrow<T>) {
    MirroredArgs<T> g;
    g.a = weights, g.lda = layout.ld[parity], g.a_step = 1, g.a_offset = weights_[parity].data();
    g.b = folded + (parity >> 1) * parity_step_ + start(at);
    g.odd = parity & 1;
    g.apart = start(at + 1) - start(at);
    g.first = first_.data(), g.second = second_.data();
    g.segments = static_cast<int64_t>(first_.size()), g.k = channels_, g.ldb = row_step_;
    g.c = to, g.ldc = ld, g.add = false;
    kernels_.gemm_mirrored(static_cast<int>(rows), vectors, g);
  }
}

template class LineFold<float>;
template class LineFold<double>;

}  // namespace symconv
