// The ring of stages between the warp that copies and those that multiply.
#pragma once
#include "device.h"

namespace symconv {
namespace {

// Place in the ring of stages, and the parity of the round.
template <class T>
struct Turn {
  int stage = 0;
  uint32_t phase = 0;
  __device__ __forceinline__ void next() {
    if (++stage == T::kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

}  // namespace
}  // namespace symconv
