// Weight gradient of octuples whose mirrors exchange input channels, in slices of their panel.
#pragma once

#include "packed/wgrad.h"

namespace symconv {

// `w.sliced`: channels of gradient and input lie together, and one part is all of the input.
template <class T>
void sliced_wgrad(const Wgrad<T>& w);

}  // namespace symconv
