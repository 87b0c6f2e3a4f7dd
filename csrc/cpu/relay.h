// Contiguous tensors in channels_last for a pass: a few images at a time, or some lines of one image.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>

#include "geometry.h"

namespace symconv {

// What is copied together. `images` 0: nothing is. `lines` of results along the outermost dimension, a
// multiple of its stride where these are of the input; 0: all of them. In the weight gradient there
// are images alone.
struct Parts {
  int64_t images = 0, lines = 0;
  bool of_input = false;  // the result is the gradient of the input
};

class Relay {
 public:
  // `problem` becomes that of one part. Along the outermost dimension its lines outside of the map are zeros
  // that the source has, and padding no more.
  Relay(Parts parts, size_t dims, Problem& problem);

  // Calls run(source, out) for every part, between its copies to channels_last and back.
  void operator()(const at::Tensor& source, const at::Tensor& out,
                  const std::function<void(const at::Tensor& source, const at::Tensor& out)>& run) const;

  // Of a weight gradient, which is a sum over all images: calls run(gy, x, next) once, with the copies of the
  // first part. `next` brings the following one into the same two tensors; false: there is none, null: nor
  // was there one to begin with.
  void sum(const at::Tensor& gy, const at::Tensor& x,
           const std::function<void(const at::Tensor& gy, const at::Tensor& x,
                                    const std::function<bool()>& next)>& run) const;

 private:
  // Source line that comes first for a part whose results begin at line `result`.
  int64_t first_source(int64_t result) const { return result * step_ / per_ + offset_; }

  Parts parts_;
  int64_t source_lines_ = 0;                 // of a part; 0: all
  int64_t step_ = 1, per_ = 1, offset_ = 0;  // source lines for as many results, and where they begin
};

}  // namespace symconv
