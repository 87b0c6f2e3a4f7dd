// Element types of the CUDA kernels, as tags: what a 32-bit register holds of each.
#pragma once
#include <cstdint>

namespace symconv {

// A window of 32 bytes of a pixel is one step of a matrix product, whatever the type: 16 channels of 2 bytes
// or 8 of 4. float32 is multiplied as TF32 where matrix units multiply it.
struct Bfloat16 {
  static constexpr int kBytes = 2;
};
struct Float16 {
  static constexpr int kBytes = 2;
};
struct Float32 {
  static constexpr int kBytes = 4;
};

template <class T>
inline constexpr int kStep = 32 / T::kBytes;  // channels of one step
template <class T>
inline constexpr int kPacked = 4 / T::kBytes;  // elements of a register
template <class T>
inline constexpr int kVector = 16 / T::kBytes;  // elements of the widest load

}  // namespace symconv
