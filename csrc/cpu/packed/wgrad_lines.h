// Weight gradient of layers whose mirrors exchange input channels, by lines that the matrix kernel folds
// along the width.
#pragma once

#include "packed/wgrad.h"

namespace symconv {

// `w.by_lines`: channels of gradient and input lie together, and one part is all of the input.
template <class T>
void wgrad_by_lines(const Wgrad<T>& w);

}  // namespace symconv
