// Instructions of a whole warp on the stand-in: what the last lane to arrive does for all 32.
//
// Fragments are as the PTX manual defines them. Of a lane l: of an 8 x 8 matrix that ldmatrix loads, row l /
// 4 and two elements of it. Of a product, A's registers are (row l / 4, 4 bytes l % 4), the same 8 rows
// below, and both again 16 bytes on; B's are (4 bytes l % 4, column l / 4) and that 16 bytes on; the sums are
// (row l / 4, columns 2 (l % 4) and the next) and the same 8 rows below.
#include "machine.h"

namespace symconv::host {

namespace {

constexpr int kMostDepth = 16;

struct Operands {  // float32 of what a product multiplies
  float a[16][kMostDepth], b[kMostDepth][8];
};

float tf32(uint32_t bits, Site at, int lane) {
  if (bits & 0x1fff) fail("multiply: an operand is not rounded to TF32", at, lane);
  return as_float(bits);
}

// Elements of a register of 4 bytes at place k of 4 of a window of 32 bytes.
template <class Store>
void unpack(Kind kind, uint32_t bits, int place, Site at, int lane, Store store) {
  if (kind == Kind::kTf32) return store(place, tf32(bits, at, lane));
  for (int half = 0; half < 2; ++half) {
    const uint32_t element = bits >> (16 * half) & 0xffff;
    store(place * 2 + half, kind == Kind::kBfloat16 ? from_bfloat16(element) : from_float16(element));
  }
}

void gather(Kind kind, const uint32_t (*a)[4], const uint32_t (*b)[2], Operands& o, Site at) {
  for (int l = 0; l < 32; ++l) {
    for (int e = 0; e < 4; ++e)
      unpack(kind, a[l][e], l % 4 + e / 2 * 4, at, l, [&](int k, float v) { o.a[l / 4 + e % 2 * 8][k] = v; });
    for (int e = 0; e < 2; ++e)
      unpack(kind, b[l][e], l % 4 + e * 4, at, l, [&](int k, float v) { o.b[k][l / 4] = v; });
  }
}

using Four = float __attribute__((vector_size(16)));

// Of a row of A and four columns of B.
inline Four dot(const float* a, const float* b, int depth) {
  Four sum = {};
  for (int k = 0; k < depth; ++k) {
    Four columns;
    std::memcpy(&columns, b + k * 8, sizeof columns);
    sum += a[k] * columns;
  }
  return sum;
}

// Distinct 16-byte rows that want the same banks take one access after the other.
int wavefronts(const uint32_t* rows) {
  int most = 1;
  for (int i = 0; i < 8; ++i) {
    int same_banks = 0;
    for (int j = 0; j < 8; ++j) {
      bool first = rows[j] / 16 % 8 == rows[i] / 16 % 8;
      for (int k = 0; k < j; ++k) first = first && rows[k] != rows[j];
      same_banks += first;
    }
    most = max(most, same_banks);
  }
  return most;
}

void load_matrix(Warp& w, int m, bool transposed, Site at) {
  Cta& cta = *self().cta;
  const uint32_t* rows = w.address + m * 8;
  for (int i = 0; i < 8; ++i) {
    check_shared(cta, rows[i], 16, 16, "ldmatrix", at, m * 8 + i);
    note_read(cta, rows[i], 16, kWarpWide, at);
  }
  const int taken = wavefronts(rows);
  machine.counts.ldmatrix_wavefronts += taken;
  if (taken > 1 && !machine.conflicts_allowed)
    fail("ldmatrix: bank conflict, " + std::to_string(taken) + " accesses for matrix " + std::to_string(m),
         at);
  for (int l = 0; l < 32; ++l) {
    uint32_t v = 0;
    if (transposed)
      for (int half = 0; half < 2; ++half) {
        uint16_t element;
        std::memcpy(&element, &cta.memory[rows[l % 4 * 2 + half] + l / 4 * 2], 2);
        v |= uint32_t{element} << (16 * half);
      }
    else
      std::memcpy(&v, &cta.memory[rows[l / 4] + l % 4 * 4], 4);
    w.registers[l][m] = v;
  }
}

}  // namespace

void load_matrices(uint32_t* r, int count, uint32_t address, bool transposed, Site at) {
  Warp& w = my_warp();
  w.address[self().lane] = address;
  w.registers[self().lane] = r;
  const char* name = transposed ? "ldmatrix (transposed)" : count == 2 ? "ldmatrix (two)" : "ldmatrix";
  if (!last_to_arrive(name, at)) return;
  for (int m = 0; m < count; ++m) load_matrix(w, m, transposed, at);
  w.fenced = false;
  ++machine.counts.ldmatrix;
}

void multiply_warp(Kind kind, const uint32_t (*a)[4], const uint32_t (*b)[2], float* sums, Site at) {
  Operands o;
  gather(kind, a, b, o, at);
  const int depth = kind == Kind::kTf32 ? 8 : 16;
  for (int row = 0; row < 16; ++row)
    for (int side = 0; side < 2; ++side) {
      const Four sum = dot(o.a[row], o.b[0] + side * 4, depth);
      for (int column = 0; column < 4; ++column)
        sums[(row % 8 * 4 + side * 2 + column / 2) * 4 + row / 8 * 2 + column % 2] += sum[column];
    }
}

void multiply(Kind kind, float* d, const uint32_t* a, uint32_t b0, uint32_t b1, Site at) {
  Warp& w = my_warp();
  const int lane = self().lane;
  w.sums[lane] = d, w.a[lane] = a, w.b[lane][0] = b0, w.b[lane][1] = b1;
  if (!last_to_arrive("multiply", at)) return;
  uint32_t left[32][4];
  float sums[32 * 4];
  for (int l = 0; l < 32; ++l)
    for (int e = 0; e < 4; ++e) left[l][e] = w.a[l][e], sums[l * 4 + e] = w.sums[l][e];
  multiply_warp(kind, left, w.b, sums, at);
  for (int l = 0; l < 32; ++l)
    for (int e = 0; e < 4; ++e) w.sums[l][e] = sums[l * 4 + e];
  Counts& counts = machine.counts;
  ++(kind == Kind::kTf32      ? counts.mma_tf32
     : kind == Kind::kFloat16 ? counts.mma_float16
                              : counts.mma_bfloat16);
}

uint32_t shuffle_xor(uint32_t v, int mask, Site at) {
  Warp& w = my_warp();
  const int lane = self().lane;
  if (mask < 0 || mask > 31) fail("shuffle_xor: mask " + std::to_string(mask), at);
  uint32_t received = 0;
  w.address[lane] = v;
  w.b[lane][0] = mask;
  w.registers[lane] = &received;
  if (!last_to_arrive("shuffle_xor", at)) return received;
  for (int l = 0; l < 32; ++l) *w.registers[l] = w.address[l ^ w.b[l][0]];
  ++machine.counts.shuffles;
  return received;
}

}  // namespace symconv::host
