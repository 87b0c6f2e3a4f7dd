// Products of warp groups on the stand-in. They are separable by warp: each warp brings 16 rows of A and
// keeps their sums, and all multiply by the same weights in shared memory.
#include "hopper.h"
#include "machine.h"

namespace symconv::host {

namespace {

// The word of B in shared memory that has an address of the matrix without its swizzle.
uint32_t read_word(const Product& p, uint32_t address, Site at) {
  Cta& cta = *self().cta;
  const uint32_t from = engine_swizzle(address, p.span) & ~3u;
  check_shared(cta, from, 4, 4, "product", at);
  note_read(cta, from, 4, kWarpWide, at);
  uint32_t v;
  std::memcpy(&v, &cta.memory[from], 4);
  return v;
}

// A register of mma.sync's fragment: two elements of a column of B.
uint32_t fragment(const Product& p, int lane, int block, int e, Site at) {
  const int column = block * 8 + lane / 4;
  if (!p.apart) return read_word(p, p.weights + column * p.span + lane % 4 * 4 + e * 16, at);
  const uint32_t row = p.weights + e * p.apart + lane % 4 * 2 * p.span + column * 2;
  const int shift = column % 2 * 16;
  return (read_word(p, row, at) >> shift & 0xffff) | read_word(p, row + p.span, at) >> shift << 16;
}

// Of 8 columns at a time: what mma.sync would get of B, read through the swizzle.
void execute(const Product& p, std::vector<float>& sums, Site at) {
  for (int block = 0; block < p.columns / 8; ++block) {
    uint32_t b[32][2];
    for (int l = 0; l < 32; ++l)
      for (int e = 0; e < 2; ++e) b[l][e] = fragment(p, l, block, e, at);
    multiply_warp(p.kind, p.a, b, &sums[block * 128], at);
  }
}

void retire(Warp& w, const Product& p, Site at) {
  for (size_t i = 0; i < w.flying.size(); ++i) {
    Flying& f = w.flying[i];
    if (f.d[0] != p.d[0]) continue;
    execute(p, f.sums, at);
    if (--f.products) return;
    for (int l = 0; l < 32; ++l)
      for (int e = 0; e < p.columns / 2; ++e) f.d[l][e] = f.sums[(e / 4 * 32 + l) * 4 + e % 4];
    w.flying.erase(w.flying.begin() + i);
    return;
  }
}

// The sums are taken away until the last product on them was waited for.
void take_sums(Warp& w, const Product& p) {
  for (Flying& f : w.flying)
    if (f.d[0] == p.d[0]) {
      ++f.products;
      return;
    }
  Flying f;
  f.products = 1;
  f.sums.resize(p.columns * 16);
  for (int l = 0; l < 32; ++l) {
    f.d[l] = p.d[l];
    for (int e = 0; e < p.columns / 2; ++e) {
      f.sums[(e / 4 * 32 + l) * 4 + e % 4] = p.d[l][e];
      p.d[l][e] = NAN;
    }
  }
  w.flying.push_back(std::move(f));
}

}  // namespace

void product_fence(Site at) {
  if (last_to_arrive("product_fence", at)) my_warp().fenced = true;
}

void product_commit(Site at) {
  if (!last_to_arrive("product_commit", at)) return;
  Warp& w = my_warp();
  w.committed.push_back(int(w.products.size()));
}

void product_wait(int left, Site at) {
  if (!last_to_arrive("product_wait", at)) return;
  Warp& w = my_warp();
  const int groups = int(w.committed.size()) - left;
  if (groups <= 0) return;
  const int ended = w.committed[groups - 1];
  for (int i = 0; i < ended; ++i) retire(w, w.products[i], at);
  w.products.erase(w.products.begin(), w.products.begin() + ended);
  w.committed.erase(w.committed.begin(), w.committed.begin() + groups);
  for (int& c : w.committed) c -= ended;
}

void product(Kind kind, float* d, int columns, const uint32_t* a, uint32_t weights, int span, int apart,
             Site at) {
  Warp& w = my_warp();
  const int lane = self().lane;
  w.sums[lane] = d, w.a[lane] = a, w.address[lane] = weights;
  if (!last_to_arrive("product", at)) return;
  if (!w.fenced) fail("product: no fence after ldmatrix", at);
  if (apart && (weights | apart) % 1024) fail("product: 1024 does not divide the rows of an MN-major B", at);
  Product p;
  p.kind = kind, p.columns = columns, p.weights = w.address[0], p.span = span, p.apart = apart;
  for (int l = 0; l < 32; ++l) {
    if (w.address[l] != p.weights) fail("product: lanes with different addresses of weights", at, l);
    p.d[l] = w.sums[l];
    for (int e = 0; e < 4; ++e) p.a[l][e] = w.a[l][e];
  }
  take_sums(w, p);
  w.products.push_back(p);
  ++machine.counts.wgmma;
  machine.counts.wgmma_columns += columns;
}

}  // namespace symconv::host
