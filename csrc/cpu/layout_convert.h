// Contiguous tensors in channels_last for a pass: a few images at a time, or some lines of one image.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

#include "export.h"
#include "selection/parts.h"

namespace symconv {

// In c10's sense, whose answer for what is both is part of the contract with Python.
SYMCONV_API bool suggests_channels_last(const at::Tensor& t);

// Of one of the four types: the tensor, or a copy where it lies otherwise, as expanded ones do.
at::Tensor laid_out(const at::Tensor& t, bool channels_last);

class Relay {
 public:
  explicit Relay(const Parts& parts) : parts_(parts) {}

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
  Parts parts_;
};

}  // namespace symconv
