// Strided views of tensors, and of their types.
#pragma once

#include <ATen/core/Tensor.h>

#include "dtypes.h"
#include "packed/weights.h"
#include "problem.h"

namespace symconv {

// Axes are right-aligned: 1-D is width only, missing ones have extent 1 and stride 0.
inline Triple aligned(at::IntArrayRef v, int64_t fill) {
  Triple t;
  t.fill(fill);
  for (size_t i = 0; i < v.size(); ++i) t[kAxes - v.size() + i] = v[i];
  return t;
}

inline Triple spatial(at::IntArrayRef v, int64_t fill) { return aligned(v.slice(2), fill); }

template <class T>
View<T> view(const at::Tensor& t) {
  return {static_cast<T*>(t.data_ptr()), t.stride(0), t.stride(1), spatial(t.strides(), 0)};
}

template <class T>
View<const T> const_view(const at::Tensor& t) {
  return {static_cast<const T*>(t.const_data_ptr()), t.stride(0), t.stride(1), spatial(t.strides(), 0)};
}

template <class T>
WeightView<T> weight_view(T* data, const at::Tensor& w, bool transposed) {
  return {data, w.stride(transposed ? 1 : 0), w.stride(transposed ? 0 : 1), spatial(w.strides(), 0)};
}

// Rows of one group of the layer follow each other along dim 0 in both kinds of weight.
inline int64_t weight_group_stride(const at::Tensor& w, int64_t groups) {
  return w.size(0) / groups * w.stride(0);
}

template <class T>
WeightView<const Element<T>> const_weight(const at::Tensor& w, bool transposed) {
  return weight_view(static_cast<const Element<T>*>(w.const_data_ptr()), w, transposed);
}

inline c10::MemoryFormat memory_format(size_t dims, bool channels_last) {
  if (!channels_last || dims == 3) return c10::MemoryFormat::Contiguous;
  return dims == 4 ? c10::MemoryFormat::ChannelsLast : c10::MemoryFormat::ChannelsLast3d;
}

// Runs CALL with `scalar` as the name of a way to run the dtype of TENSOR (dtypes.h).
#define SYMCONV_DISPATCH(TENSOR, CALL)                                                                    \
  switch ((TENSOR).scalar_type()) {                                                                       \
    case at::kFloat: {                                                                                    \
      using scalar = float;                                                                               \
      CALL;                                                                                               \
      break;                                                                                              \
    }                                                                                                     \
    case at::kDouble: {                                                                                   \
      using scalar = double;                                                                              \
      CALL;                                                                                               \
      break;                                                                                              \
    }                                                                                                     \
    case at::kHalf: {                                                                                     \
      using scalar = symconv::Half;                                                                       \
      CALL;                                                                                               \
      break;                                                                                              \
    }                                                                                                     \
    case at::kBFloat16: {                                                                                 \
      using scalar = symconv::BFloat16;                                                                   \
      CALL;                                                                                               \
      break;                                                                                              \
    }                                                                                                     \
    default:                                                                                              \
      TORCH_CHECK(false, "float16, bfloat16, float32 or float64 expected, got ", (TENSOR).scalar_type()); \
  }

// The same for the matrix kernels, which have bfloat16 of their own where the CPU has instructions for it.
#define SYMCONV_DISPATCH_MATRIX(TENSOR, CALL)                   \
  if ((TENSOR).scalar_type() == at::kBFloat16 && has_pairs()) { \
    using scalar = Pair;                                        \
    CALL;                                                       \
  } else {                                                      \
    SYMCONV_DISPATCH(TENSOR, CALL)                              \
  }

}  // namespace symconv
