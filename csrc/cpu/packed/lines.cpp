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
      stage_(stage),
      axes_(plan.groups[0].log_sources - 1),
      channels_(plan.groups[0].channels),
      pitch_(stage.channel_stride()) {
  for (const Group& g : plan.groups) {
    if (g.tap[0][2] != 0) break;
    Outer& outer = outer_.emplace_back();
    for (int s = 0; s < 2 << axes_; ++s) {
      outer.at[s] = stage.offset(1, phase.axis[1]->b[g.tap[s][1]], 0) + g.channel[s] * pitch_;
      outer.depth[s] = g.tap[s][0];
    }
  }
  choose_lines(phase.tiling.block);
  const AxisMap& width = *phase.axis[2];
  const int64_t low = width.reach().first;
  for (size_t i = 0; i < plan.groups.size(); i += outer_.size()) {
    const Group& g = plan.groups[i];
    first_.push_back(stage.offset(2, width.b[g.tap[0][2]], low));
    second_.push_back(member_step_ + stage.offset(2, width.b[g.tap[1][2]], low));
    for (int s = 0; s < 2 << axes_; ++s) weights_[s].push_back(weights.rows[0].row[g.slot[s]]);
  }
}

// Lines of their own begin at vectors. Where that leaves many lanes empty, they follow each other with the
// elements that lie between them, of which there are results that nobody wants.
template <class T>
void LineFold<T>::choose_lines(const Triple& block) {
  const int64_t lanes = kernels_.lanes, own = round_up(block[2], lanes);
  const int64_t line = static_cast<int64_t>(outer_.size()) * channels_ * pitch_;  // of a parity and member
  const int64_t bytes = (line << (axes_ + 1)) * static_cast<int64_t>(sizeof(T));
  const int64_t most = std::clamp<int64_t>(kFoldedBytes / bytes, 1, std::min(block[1], kMostLines));
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
  line_step_ = own_lines ? line : pitch_;
  member_step_ = lines_ * line;
  // Whole vectors are written past the end of a parity, and read.
  parity_step_ = apart<T>(round_up(2 * member_step_, lanes) + lanes);
  elements_ = (1 << axes_) * parity_step_ + kVectors * lanes;
}

template <class T>
void LineFold<T>::fold(const StagePlaces& places, const Element<T>* stage, const Tile& lines,
                       Stored<T>* out) const {
  const AxisMap &depth = *phase_.axis[0], &height = *phase_.axis[1];
  std::vector<int64_t> plane;  // by tap of the depth
  for (const int64_t b : depth.b) plane.push_back(places.offset(0, depth.a * lines.begin[0] + b));
  RunArgs<T> run;
  run.product_stride = 0;
  run.ld = row_step_;
  const bool runs = row_step_ == pitch_;  // all channels of a line follow each other
  run.loose = runs;
  run.positions = runs ? channels_ * pitch_ : pitch_, run.channels = runs ? 1 : channels_;
  const int members = 1 << axes_;
  for (int s = 0; s < members; ++s) run.position_step[0][s] = 1, run.channel_step[0][s] = pitch_;
  const auto pack = kernels_.fold_planes[kPlain][axes_];
  stage += places.offset(1, height.a * lines.begin[1]);
  const int64_t step = stage_.offset(1, height.a, 0);
  for (int mirror = 0; mirror < 2; ++mirror, out += member_step_)
    for (int64_t line = 0; line < lines.size[1]; ++line) {
      Stored<T>* to = out + line * line_step_;
      for (const Outer& outer : outer_) {
        for (int s = 0; s < members; ++s) {
          const int member = s << 1 | mirror;  // that of the width is the first of the axes
          run.source[0][s] = stage + line * step + plane[outer.depth[member]] + outer.at[member];
          run.out[s] = to + s * parity_step_;
        }
        pack(run);
        to += channels_ * row_step_;
      }
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
    g.segments = static_cast<int64_t>(first_.size()), g.k = static_cast<int64_t>(outer_.size()) * channels_,
    g.ldb = row_step_;
    g.c = to, g.ldc = ld, g.add = false;
    kernels_.gemm_mirrored(static_cast<int>(rows), vectors, g);
  }
}

template class LineFold<float>;
template class LineFold<double>;

}  // namespace symconv
