// A warp of the gradient of the input: sums of the members' windows in registers, then products with the
// weights.
//
// The gradient at a pixel is the sum over rows u and taps (kh, kw) of w[u, kh, kw] times the sum of the
// members of u, each at the pixel from which the tap of its mirrored filter reaches here. Windows of the halo
// are named by their first row and column: that of a member is (2 - kh, 2 - kw), with kh in place of 2 - kh
// where the member is mirrored along rows, and kw in place of 2 - kw where it is along columns. So members
// are added before anything is multiplied, and there is one product a tap.
#pragma once
#include "hopper/group.h"

namespace symconv {

// The stage: a box for each patch of each member, then the weights, 32 bytes (16 rows u) a pixel and a
// channel. MEMBERS: of a row; Base: a tile whose orbits are channels of x, and whose channels are rows u.
template <int MEMBERS, class Base>
struct Gather : Base {
  static constexpr int kMembers = 1;  // parities of the sums: there is nothing to unfold
  static constexpr int kSlices = MEMBERS;
  static constexpr int kPixelBytes = Base::kChannels * 2;  // also the span of the swizzle
  static constexpr int kPatchBytes = (Base::kPatchPixels * kPixelBytes + 255) / 256 * 256;
  static constexpr int kSliceBytes = Base::kPatches * kPatchBytes;
  static constexpr int kHaloBytes = kSlices * kSliceBytes;
  static constexpr int kStageBytes = kHaloBytes + Base::kWeightBytes;
  static constexpr int kCopiedBytes =
      kSlices * Base::kPatches * Base::kPatchPixels * kPixelBytes + Base::kWeightBytes;
  static constexpr int kSharedBytes = Base::kStages * kStageBytes + 1024 + 16 * Base::kStages;
  static constexpr int kThreads = 128 + Base::kPixelWarps * 32;
  static_assert(MEMBERS == 2 || MEMBERS == 4, "ties along one or two axes");
  static_assert(Base::kGroups == 1 && Base::kPixelWarps % 4 == 0,
                "a warp group computes all channels of its pixels");
  static_assert(kPixelBytes == 32 && Base::kWeightBytes % 256 == 0, "alignment of the swizzle");
  static_assert(Base::kWindows <= 4 && Base::kPatches * kSlices <= 32,
                "addresses of the windows; a lane copies a patch of a member");
};

namespace {

template <class T, class E>
struct GatherWarp : GroupWarp<T, E> {
  using Window = uint32_t[4];
  static constexpr float kScale = T::kSlices == 4 ? kFold<E> * kFold<E> : kFold<E>;  // of halved sums

  // All rows u of a stage, a group of products for each tap column. None is in flight when it returns.
  __device__ __forceinline__ void multiply(uint32_t stage) {
#pragma unroll
    for (int kw = 0; kw < 3; ++kw) {
      if constexpr (T::kSlices == 2)
        multiply_pairs(stage, kw);
      else
        multiply_quadruples(stage, kw);
      product_commit();
      if (kw > 0) product_wait<1>();
    }
    product_wait<0>();
  }

  // Of a member and the one that is mirrored along columns, in the slices from `slice` on.
  __device__ __forceinline__ void load_sum(Window (&sum)[T::kWindows], uint32_t stage, int kw, int slice) {
#pragma unroll
    for (int t = 0; t < T::kWindows; ++t) {
      Window plain, mirrored;
      this->load_window(plain, stage + slice * T::kSliceBytes, 0, 2 - kw, t);
      this->load_window(mirrored, stage + (slice + 1) * T::kSliceBytes, 0, kw, t);
#pragma unroll
      for (int e = 0; e < 4; ++e) sum[t][e] = fold_add<E>(plain[e], mirrored[e]);
    }
  }

  __device__ __forceinline__ void multiply_pairs(uint32_t stage, int kw) {
    Window sum[T::kWindows];
    load_sum(sum, stage, kw, 0);
    product_fence();
#pragma unroll
    for (int kh = 0; kh < 3; ++kh) {
#pragma unroll
      for (int q = 0; q < T::kFragments; ++q)
        this->product(0, q, sum[q + 2 - kh], stage + T::kHaloBytes, kh * 3 + kw);
    }
  }

  __device__ __forceinline__ void multiply_quadruples(uint32_t stage, int kw) {
    Window upright[T::kWindows], turned[T::kWindows], sum[3][T::kFragments];
    load_sum(upright, stage, kw, 0);
    load_sum(turned, stage, kw, 2);  // mirrored along rows
#pragma unroll
    for (int kh = 0; kh < 3; ++kh) {
#pragma unroll
      for (int q = 0; q < T::kFragments; ++q) {
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[kh][q][e] = fold_add<E>(upright[q + 2 - kh][e], turned[q + kh][e]);
      }
    }
    product_fence();
#pragma unroll
    for (int kh = 0; kh < 3; ++kh) {
#pragma unroll
      for (int q = 0; q < T::kFragments; ++q)
        this->product(0, q, sum[kh][q], stage + T::kHaloBytes, kh * 3 + kw);
    }
  }

  __device__ __forceinline__ void store(const Layer& p, int tile, int warp, const void* bias, void* x) {
    if constexpr (kScale != 1) {
#pragma unroll
      for (int q = 0; q < T::kFragments; ++q) {
#pragma unroll
        for (int e = 0; e < T::kBlocks8 * 4; ++e) this->sums[0][q][e] *= kScale;
      }
    }
    GroupWarp<T, E>::store(p, tile, warp, bias, x);
  }
};

}  // namespace
}  // namespace symconv
