// Types of tensors, panels and sums. float and double are all three at once; 16-bit types are summed in
// float32, so that folding rounds once and results round once.
#pragma once

#include <cstdint>

namespace symconv {

// Elements of 16-bit tensors, as they lie in memory.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// Two rows of a contraction, side by side: what the matrix instruction of bfloat16 multiplies at a time.
struct Pair {
  BFloat16 of[2];
};

// T names a way to run: float, double; Half and BFloat16, which are widened to float32 while a panel is
// packed; and Pair, bfloat16 throughout.
//   Element  of activations, weights and bias
//   Stored   of panels and packed weights
//   Word     `depth` rows of Stored: the unit of the matrix kernel and of all its strides
//   Sum      of accumulators and of everything between a load and a store
template <class T>
struct Format {
  using Element = T;
  using Stored = T;
  using Word = T;
  using Sum = T;
  static constexpr int depth = 1;
};

template <class E>
struct WidenedFormat {
  using Element = E;
  using Stored = float;
  using Word = float;
  using Sum = float;
  static constexpr int depth = 1;
};
template <>
struct Format<Half> : WidenedFormat<Half> {};
template <>
struct Format<BFloat16> : WidenedFormat<BFloat16> {};

template <>
struct Format<Pair> {
  using Element = BFloat16;
  using Stored = BFloat16;
  using Word = Pair;
  using Sum = float;
  static constexpr int depth = 2;
};

template <class T>
using Element = typename Format<T>::Element;
template <class T>
using Stored = typename Format<T>::Stored;
template <class T>
using Word = typename Format<T>::Word;
template <class T>
using Sum = typename Format<T>::Sum;

// For explicit instantiations.
#define SYMCONV_FOR_ELEMENTS(instantiate) \
  instantiate(float) instantiate(double) instantiate(Half) instantiate(BFloat16)
#define SYMCONV_FOR_ALL_TYPES(instantiate) SYMCONV_FOR_ELEMENTS(instantiate) instantiate(Pair)

// Are elements narrower than their sums?
template <class T>
constexpr bool kNarrow = sizeof(Element<T>) < sizeof(Sum<T>);

// Words that hold that many rows.
template <class T>
constexpr int64_t words(int64_t rows) {
  return (rows + Format<T>::depth - 1) / Format<T>::depth;
}

}  // namespace symconv
