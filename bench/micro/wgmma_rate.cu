// Rate of Hopper's wgmma with A from registers, alone and with the loads and packed adds of a fold beside it.
//
// Throw-away: it answers one question before anybody writes a kernel on the answer. bench/micro/wgmma_rate.py
// compiles and runs it; wgmma_ops.inc, with one instruction for each N, is generated there.
//
// Each block is two warpgroups of 128 threads. A trip of the loop multiplies a 64 x 64 tile of A (bfloat16,
// four steps of k16) by a 64 x N tile of B in shared memory (128-byte swizzle), accumulating 64 x N in
// float32. With `fold` the fragments of A come from two tiles by ldmatrix, and their sum and their difference
// are what is multiplied, in turns.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "wgmma_ops.inc"

namespace {

constexpr int kGroups = 2;             // warpgroups of a block
constexpr int kRows = 64, kK = 64;     // tile of A: rows of a warpgroup, contraction of a trip
constexpr int kTile = kRows * kK * 2;  // bytes

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
    std::exit(1);
  }
}

__host__ __device__ constexpr int b_bytes(int n) { return n * kK * 2; }

// Byte offset of element (row, column) of a tile with rows of 64 two-byte elements and the 128-byte swizzle.
__host__ __device__ inline int swizzled(int row, int column) {
  return row * 128 + (((column >> 3) ^ (row & 7)) << 4) + (column & 7) * 2;
}

__device__ inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Matrix descriptor: K-major, 128-byte swizzle, 1,024 bytes from one group of eight rows to the next.
__device__ inline uint64_t descriptor(uint32_t address) {
  return (uint64_t{1} << 62) | (uint64_t{1024 >> 4} << 32) | (uint64_t{1} << 16) | ((address & 0x3FFFF) >> 4);
}

__device__ inline void load_fragment(uint32_t (&a)[4], uint32_t tile, int step) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  const int row = warp * 16 + lane % 16, chunk = step * 2 + lane / 16;
  const uint32_t address = tile + row * 128 + ((chunk ^ (row & 7)) << 4);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(address));
}

__device__ inline uint32_t add_packed(uint32_t a, uint32_t b, bool minus) {
  const auto x = *reinterpret_cast<__nv_bfloat162*>(&a), y = *reinterpret_cast<__nv_bfloat162*>(&b);
  const __nv_bfloat162 sum = minus ? __hsub2(x, y) : __hadd2(x, y);
  return *reinterpret_cast<const uint32_t*>(&sum);
}

__device__ inline void fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
__device__ inline void wait_all() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }

// a: two tiles of A (left and right) for each warpgroup; b: one tile of B; out: [blocks * kGroups][64][N].
template <int N, bool kFold>
__global__ void __launch_bounds__(kGroups * 128, 1)
    rate(const uint8_t* a, const uint8_t* b, float* out, long long* cycles, int trips) {
  extern __shared__ __align__(1024) uint8_t memory[];
  const int group = threadIdx.x / 128;
  for (int i = threadIdx.x * 16; i < kGroups * 2 * kTile; i += blockDim.x * 16)
    *reinterpret_cast<int4*>(memory + i) = *reinterpret_cast<const int4*>(a + i);
  uint8_t* b_tile = memory + kGroups * 2 * kTile;
  for (int i = threadIdx.x * 16; i < b_bytes(N); i += blockDim.x * 16)
    *reinterpret_cast<int4*>(b_tile + i) = *reinterpret_cast<const int4*>(b + i);
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();

  const uint32_t left = shared_address(memory) + group * 2 * kTile, right = left + kTile;
  const uint64_t columns = descriptor(shared_address(b_tile));
  float d[N / 2] = {};
  uint32_t fixed[4][4];
#pragma unroll
  for (int step = 0; step < 4; ++step) load_fragment(fixed[step], left, step);

  const long long start = clock64();
  for (int trip = 0; trip < trips; ++trip) {
    uint32_t operand[4][4];
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      if constexpr (kFold) {
        uint32_t l[4], r[4];
        load_fragment(l, left, step);
        load_fragment(r, right, step);
#pragma unroll
        for (int i = 0; i < 4; ++i) operand[step][i] = add_packed(l[i], r[i], step & 1);
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) operand[step][i] = fixed[step][i];
      }
    }
    fence();
#pragma unroll
    for (int step = 0; step < 4; ++step) wgmma<N>(d, operand[step], columns + 2 * step);
    commit();
    wait_all();
  }
  if (threadIdx.x == 0) cycles[blockIdx.x] = clock64() - start;

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  float* mine = out + (blockIdx.x * kGroups + group) * kRows * N;
#pragma unroll
  for (int i = 0; i < N / 2; ++i) {
    const int row = warp * 16 + lane / 4 + (i & 2) * 4, column = i / 4 * 8 + lane % 4 * 2 + (i & 1);
    mine[row * N + column] = d[i];
  }
}

// Small whole numbers, so that every sum is exact.
std::vector<uint8_t> tile(int rows, int seed) {
  std::vector<uint8_t> bytes(rows * 128);
  for (int row = 0; row < rows; ++row)
    for (int column = 0; column < kK; ++column) {
      const __nv_bfloat16 value = __float2bfloat16(float((row * 7 + column * 3 + seed) % 5 - 2));
      std::copy_n(reinterpret_cast<const uint8_t*>(&value), 2, &bytes[swizzled(row, column)]);
    }
  return bytes;
}

float at(const std::vector<uint8_t>& bytes, int offset, int row, int column) {
  __nv_bfloat16 value;
  std::copy_n(&bytes[offset + swizzled(row, column)], 2, reinterpret_cast<uint8_t*>(&value));
  return __bfloat162float(value);
}

// Largest difference between one trip and the same product on the host.
float difference(const std::vector<uint8_t>& a, const std::vector<uint8_t>& b, const std::vector<float>& got,
                 int n, bool fold) {
  float worst = 0;
  for (int group = 0; group < kGroups; ++group)
    for (int row = 0; row < kRows; ++row)
      for (int column = 0; column < n; ++column) {
        float sum = 0;
        for (int k = 0; k < kK; ++k) {
          const float l = at(a, group * 2 * kTile, row, k), r = at(a, (group * 2 + 1) * kTile, row, k);
          sum += (!fold ? l : (k / 16) & 1 ? l - r : l + r) * at(b, 0, column, k);
        }
        worst = std::max(worst, std::fabs(sum - got[(group * kRows + row) * n + column]));
      }
  return worst;
}

template <int N, bool kFold>
bool measure(int blocks) {
  std::vector<uint8_t> a;
  for (int i = 0; i < kGroups * 2; ++i) {
    const auto part = tile(kRows, i);
    a.insert(a.end(), part.begin(), part.end());
  }
  const auto b = tile(N, 11);
  uint8_t *da, *db;
  float* out;
  long long* cycles;
  check(cudaMalloc(&da, a.size()), "cudaMalloc");
  check(cudaMalloc(&db, b.size()), "cudaMalloc");
  check(cudaMalloc(&out, sizeof(float) * blocks * kGroups * kRows * N), "cudaMalloc");
  check(cudaMalloc(&cycles, sizeof(long long) * blocks), "cudaMalloc");
  check(cudaMemcpy(da, a.data(), a.size(), cudaMemcpyHostToDevice), "cudaMemcpy");
  check(cudaMemcpy(db, b.data(), b.size(), cudaMemcpyHostToDevice), "cudaMemcpy");
  const int shared = kGroups * 2 * kTile + b_bytes(N);
  const auto kernel = rate<N, kFold>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
        "cudaFuncSetAttribute");
  kernel<<<blocks, kGroups * 128, shared>>>(da, db, out, cycles, 1);
  std::vector<float> got(kGroups * kRows * N);
  check(cudaMemcpy(got.data(), out, got.size() * sizeof(float), cudaMemcpyDeviceToHost), "a run of one trip");
  const float wrong = difference(a, b, got, N, kFold);

  const int trips = 1 << 15;
  cudaEvent_t start, end;
  check(cudaEventCreate(&start), "cudaEventCreate");
  check(cudaEventCreate(&end), "cudaEventCreate");
  kernel<<<blocks, kGroups * 128, shared>>>(da, db, out, cycles, trips);
  check(cudaEventRecord(start), "cudaEventRecord");
  kernel<<<blocks, kGroups * 128, shared>>>(da, db, out, cycles, trips);
  check(cudaEventRecord(end), "cudaEventRecord");
  check(cudaEventSynchronize(end), "a run of many trips");
  float ms = 0;
  check(cudaEventElapsedTime(&ms, start, end), "cudaEventElapsedTime");
  std::vector<long long> clocks(blocks);
  check(cudaMemcpy(clocks.data(), cycles, sizeof(long long) * blocks, cudaMemcpyDeviceToHost), "cudaMemcpy");
  std::nth_element(clocks.begin(), clocks.begin() + blocks / 2, clocks.end());
  const double macs = double(kGroups) * kRows * N * kK * trips;
  std::printf("{\"n\": %d, \"fold\": %s, \"macs_per_clock_sm\": %.0f, \"tflops\": %.0f, \"wrong_by\": %g}\n",
              N, kFold ? "true" : "false", macs / clocks[blocks / 2], 2e-9 * macs * blocks / ms, wrong);
  for (void* p :
       {static_cast<void*>(da), static_cast<void*>(db), static_cast<void*>(out), static_cast<void*>(cycles)})
    check(cudaFree(p), "cudaFree");
  return wrong == 0;
}

template <int N>
bool measure_both(int blocks) {
  const bool alone = measure<N, false>(blocks);
  return measure<N, true>(blocks) && alone;
}

}  // namespace

int main() {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
  if (properties.major != 9) {
    std::fprintf(stderr, "wgmma is for compute capability 9.0; this is %d.%d\n", properties.major,
                 properties.minor);
    return 1;
  }
  const int blocks = properties.multiProcessorCount;
  const bool results[] = {measure_both<32>(blocks), measure_both<64>(blocks), measure_both<128>(blocks),
                          measure_both<256>(blocks)};
  return std::all_of(std::begin(results), std::end(results), [](bool right) { return right; }) ? 0 : 1;
}
