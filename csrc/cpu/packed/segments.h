// Segments of the matrix kernel, listed one by one.
#pragma once

#include <cstdint>
#include <vector>

#include "microkernels/kernels.h"

namespace symconv {

struct GemmSegments {
  std::vector<int64_t> a, b, k;  // as in GemmArgs

  void clear() { a.clear(), b.clear(), k.clear(); }
  void add(int64_t a_offset, int64_t b_offset, int64_t rows) {
    a.push_back(a_offset), b.push_back(b_offset), k.push_back(rows);
  }
  template <class W>
  void attach(GemmArgs<W>& g) const {
    g.a_offset = a.data(), g.b_offset = b.data(), g.k = k.data();
    g.segments = static_cast<int64_t>(k.size());
  }
};

}  // namespace symconv
