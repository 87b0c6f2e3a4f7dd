// Minimal filtering along lines: y[i] = sum over k < 3 of g[k] * d[i + k], with fewer products.
//
// F(2,3): points 0, 1, -1, infinity. F(4,3): points 0, +-1/sqrt(2), +-sqrt(2), infinity, whose error in
// float32 is below that of the textbook's 0, +-1, +-2, infinity at the same cost. With m(x) the product
// of (x - p) over the finite points: data rows are m(x)/(x - p), filter rows [1, p, p^2] / m'(p).
// Each struct has the three transforms and the adjoint of `result`, for the weight gradient;
// the adjoint of `filter` is its matrix kFilter.
//
// F4Parities filters along a tied axis, for members w and its mirror image at once. Their sum and difference,
// halved, are the even part (a, b, a) and the odd one (c, 0, -c), whose value c (1 - p^2) at a point p is
// zero at +-1: with the textbook's points the odd part takes 4 products. The members are sum and difference
// of the parts' results. For the gradient of the input those of the members are added and subtracted first,
// and the parts, with filters of their own, share a result. Included by microkernels/kernels_impl.h for each
// instruction set.

// A product that is rounded before it is added. Of two products in a sum the compiler fuses the one that
// comes first in its block, which follows from what is inlined around it: bits would change with that.
template <class X>
[[gnu::always_inline]] inline X rounded(X product) {
#if defined(__x86_64__)
  asm("" : "+v"(product));
#elif defined(__aarch64__)
  asm("" : "+w"(product));
#endif
  return product;
}

struct Plain {
  static constexpr int in = 1, out = 1, products = 1;
  template <class X>
  static void data(X (&)[1]) {}
  template <class X>
  static void filter(const X (&g)[3], X (&w)[1]) {
    w[0] = g[0];
  }
  template <class X>
  static void result(const X (&m)[1], X (&y)[1]) {
    y[0] = m[0];
  }
  template <class X>
  static void spread(const X (&y)[1], X (&m)[1]) {
    m[0] = y[0];
  }
};

struct F2 {
  static constexpr int in = 4, out = 2, products = 4;
  template <class X>
  static void data(X (&d)[4]) {
    const X d1 = d[1];
    d[0] = d[0] - d[2];
    d[1] = d1 + d[2];
    d[2] = d[2] - d1;
    d[3] = d1 - d[3];
  }
  template <class X>
  static void filter(const X (&g)[3], X (&w)[4]) {
    const X even = (g[0] + g[2]) / 2, odd = g[1] / 2;
    w[0] = g[0];
    w[1] = even + odd;
    w[2] = even - odd;
    w[3] = g[2];
  }
  template <class X>
  static void result(const X (&m)[4], X (&y)[2]) {
    y[0] = m[0] + (m[1] + m[2]);
    y[1] = (m[1] - m[2]) - m[3];
  }
  template <class X>
  static void spread(const X (&y)[2], X (&m)[4]) {
    m[0] = y[0];
    m[1] = y[0] + y[1];
    m[2] = y[0] - y[1];
    m[3] = -y[1];
  }
};

struct F4 {
  static constexpr int in = 6, out = 4, products = 6;
  static constexpr double a = 0.70710678118654752440, b = 1.41421356237309504880;  // a^2 = 1/2, b^2 = 2
  template <class X>
  static void data(X (&d)[6]) {
    using S = decltype(scalar(d[0]));
    const X u = d[4] - S(2) * d[2], v = S(a) * d[3] - S(2 * a) * d[1];
    const X s = d[4] - S(0.5) * d[2], t = S(b) * d[3] - S(0.5 * b) * d[1];
    const X first = d[0] - S(2.5) * d[2] + d[4], last = d[1] - S(2.5) * d[3] + d[5];
    d[0] = first, d[1] = u + v, d[2] = u - v, d[3] = s + t, d[4] = s - t, d[5] = last;
  }
  template <class X>
  static void filter(const X (&g)[3], X (&w)[6]) {
    using S = decltype(scalar(g[0]));
    const X e = (g[0] + S(0.5) * g[2]) * S(-1 / 1.5), o = g[1] * S(-a / 1.5);
    const X f = (g[0] + S(2) * g[2]) * S(1 / 6.0), p = g[1] * S(b / 6.0);
    w[0] = g[0], w[1] = e + o, w[2] = e - o, w[3] = f + p, w[4] = f - p, w[5] = g[2];
  }
  template <class X>
  static void result(const X (&m)[6], X (&y)[4]) {
    using S = decltype(scalar(m[0]));
    const X sa = m[1] + m[2], da = m[1] - m[2], sb = m[3] + m[4], db = m[3] - m[4];
    y[0] = m[0] + sa + sb;
    y[1] = S(a) * da + rounded(S(b) * db);
    y[2] = S(0.5) * sa + S(2) * sb;
    y[3] = S(0.5 * a) * da + rounded(S(2 * b) * db) + m[5];
  }
  template <class X>
  static void spread(const X (&y)[4], X (&m)[6]) {
    using S = decltype(scalar(y[0]));
    const X ea = y[0] + S(0.5) * y[2], oa = S(a) * (y[1] + S(0.5) * y[3]);
    const X eb = y[0] + S(2) * y[2], ob = S(b) * (y[1] + S(2) * y[3]);
    m[0] = y[0], m[1] = ea + oa, m[2] = ea - oa, m[3] = eb + ob, m[4] = eb - ob, m[5] = y[3];
  }
};

struct F4Textbook {
  static constexpr int in = 6, out = 4, products = 6;
  template <class X>
  static void data(X (&d)[6]) {
    using S = decltype(scalar(d[0]));
    const X u = d[4] - S(4) * d[2], v = d[3] - S(4) * d[1];
    const X s = d[4] - d[2], t = S(2) * (d[3] - d[1]);
    const X first = S(4) * d[0] - S(5) * d[2] + d[4], last = S(4) * d[1] - S(5) * d[3] + d[5];
    d[0] = first, d[1] = u + v, d[2] = u - v, d[3] = s + t, d[4] = s - t, d[5] = last;
  }
  template <class X>
  static void filter(const X (&g)[3], X (&w)[6]) {
    using S = decltype(scalar(g[0]));
    const X e = (g[0] + g[2]) * S(-1 / 6.0), o = g[1] * S(-1 / 6.0);
    const X f = (g[0] + S(4) * g[2]) * S(1 / 24.0), p = g[1] * S(1 / 12.0);
    w[0] = g[0] * S(0.25), w[1] = e + o, w[2] = e - o, w[3] = f + p, w[4] = f - p, w[5] = g[2];
  }
  template <class X>
  static void result(const X (&m)[6], X (&y)[4]) {
    using S = decltype(scalar(m[0]));
    const X sa = m[1] + m[2], da = m[1] - m[2], sb = m[3] + m[4], db = m[3] - m[4];
    y[0] = m[0] + sa + sb;
    y[1] = da + S(2) * db;
    y[2] = sa + S(4) * sb;
    y[3] = da + S(8) * db + m[5];
  }
};

struct F4Parities : F4Textbook {
  static constexpr int products = 10, odd = 4;
  // The even part's products, then the odd one's.
  template <class X>
  static void filter(const X (&g)[3], X (&w)[10]) {
    using S = decltype(scalar(g[0]));
    const X a = (g[0] + g[2]) * S(0.5), c = (g[0] - g[2]) * S(0.5);
    const X even[3] = {a, g[1], a}, part[3] = {c, X{}, X{} - c};
    X first[6], second[6];
    F4Textbook::filter(even, first), F4Textbook::filter(part, second);
    for (int i = 0; i < 6; ++i) w[i] = first[i];
    for (int i = 0; i < odd; ++i) w[6 + i] = second[kOddLines[i]];
  }
  template <class X>
  static void odd_result(const X (&m)[4], X (&y)[4]) {
    using S = decltype(scalar(m[0]));
    const X sum = m[1] + m[2], difference = m[1] - m[2];
    y[0] = m[0] + sum;
    y[1] = S(2) * difference;
    y[2] = S(4) * sum;
    y[3] = S(8) * difference + m[3];
  }
};
