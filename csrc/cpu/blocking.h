// Sizes: rounded, cut into equal parts, and apart in memory so that the first-level cache holds a strip.
#pragma once

#include <cstdint>

namespace symconv {

constexpr int64_t kCacheLine = 64;  // bytes

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t unit) { return ceil_div(a, unit) * unit; }

// Rounded down, of any sign of `a`.
inline int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -ceil_div(-a, b); }

// At least `count` elements of type T, in an odd number of cache lines. The right side of the matrix kernel
// is read in strips a line or two wide: rows an even number of lines apart share few sets of the cache, and
// push each other out before the strip is read again (256 rows 24 lines apart, 32 KiB: 0.85 of the speed; 128
// rows 8 lines apart: 0.73).
template <class T>
int64_t odd_lines(int64_t count) {
  constexpr int64_t line = kCacheLine / static_cast<int64_t>(sizeof(T));
  return (ceil_div(count, line) | 1) * line;
}

// The distance of rows that are read together: a line further where it is near a multiple of the period, at
// which they would share few sets of the first-level cache.
inline int64_t apart(int64_t distance, int64_t line, int64_t period) {
  return distance % period < line ? distance + line : distance;
}
template <class T>  // elements of type T, a KiB
int64_t apart(int64_t distance) {
  constexpr int64_t line = kCacheLine / static_cast<int64_t>(sizeof(T));
  return apart(distance, line, 16 * line);
}

// Calls f(begin, size) for as few parts of `count` as have at most `most` each, of nearly equal sizes.
template <class F>
void for_pieces(int64_t count, int64_t most, const F& f) {
  if (count <= 0) return;
  const int64_t pieces = ceil_div(count, most), size = count / pieces, larger = count % pieces;
  for (int64_t piece = 0, at = 0; piece < pieces; ++piece) {
    const int64_t now = size + (piece < larger ? 1 : 0);
    f(at, now);
    at += now;
  }
}

}  // namespace symconv
