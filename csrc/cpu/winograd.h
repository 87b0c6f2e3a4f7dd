// Minimal filtering along lines: y[i] = sum over k < 3 of g[k] * d[i + k], with fewer products.
//
// F(2,3): points 0, 1, -1, infinity. F(4,3): points 0, +-1/sqrt(2), +-sqrt(2), infinity, whose error in
// float32 is below that of the textbook's 0, +-1, +-2, infinity at the same cost. With m(x) the product
// of (x - p) over the finite points: data rows are m(x)/(x - p), filter rows [1, p, p^2] / m'(p).
// Each struct has the three transforms and the adjoint of `result`, for the weight gradient;
// the adjoint of `filter` is its matrix kFilter. Included by kernels_impl.h for each instruction set.

struct Plain {
  static constexpr int in = 1, out = 1;
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
  static constexpr int in = 4, out = 2;
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
  static constexpr int in = 6, out = 4;
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
    y[1] = S(a) * da + S(b) * db;
    y[2] = S(0.5) * sa + S(2) * sb;
    y[3] = S(0.5 * a) * da + S(2 * b) * db + m[5];
  }
  template <class X>
  static void spread(const X (&y)[4], X (&m)[6]) {
    using S = decltype(scalar(y[0]));
    const X ea = y[0] + S(0.5) * y[2], oa = S(a) * (y[1] + S(0.5) * y[3]);
    const X eb = y[0] + S(2) * y[2], ob = S(b) * (y[1] + S(2) * y[3]);
    m[0] = y[0], m[1] = ea + oa, m[2] = ea - oa, m[3] = eb + ob, m[4] = eb - ob, m[5] = y[3];
  }
};
