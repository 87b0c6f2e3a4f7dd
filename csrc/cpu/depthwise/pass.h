// What every depthwise pass knows of a problem: its kernels, who the lanes are, and its ties and axes.
#pragma once

#include <vector>

#include "depthwise/depthwise.h"

namespace symconv {

template <class T>
class DepthwisePass {
 protected:
  // `fold` as in Depthwise, false for the weight gradient; `forward` as axis_maps (packed/plan.h) has it.
  DepthwisePass(const Problem& p, bool fold, bool forward)
      : p_(p),
        table_(select_kernels<T>()),
        k_(table_.depthwise),
        lanes_(table_.lanes),
        of_(p, fold, lanes_),
        blocks_(of_.blocks()),
        window_(window_index(p)) {
    for (const Segment& s : p.segments)
      ties_.push_back(tie_plan(p, s, fold && window_ >= 0 && s.tie.without(2).axes() < 2));
    for (int axis = 0; axis < kAxes; ++axis) axes_[axis] = axis_maps(p, forward, axis);
  }
  DepthwisePass(const DepthwisePass&) = delete;  // phases point to the axes

  bool windowed(const TiePlan& tie) const { return window_ >= 0 && tie.vertical < 2; }

  const Problem& p_;
  const Kernels<T>& table_;
  const DepthwiseKernels<T>& k_;
  const int lanes_;  // of a vector
  const Lanes of_;
  const int64_t blocks_;
  const int window_;
  std::vector<TiePlan> ties_;  // by segment
  std::vector<AxisMap> axes_[kAxes];
};

}  // namespace symconv
