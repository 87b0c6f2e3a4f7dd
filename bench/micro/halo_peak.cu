// Rate of mma.sync m16n8k16 (bfloat16, float32 sums) from registers: the ceiling of kernels that are made of
// it.
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>

namespace {

constexpr int kSums = 16;  // independent products of a warp

__global__ void rate(float* out, long long* cycles, int trips) {
  float d[kSums][4] = {};
  uint32_t a[4], b[2];
  for (int i = 0; i < 4; ++i) a[i] = 0x3f803f80u ^ (threadIdx.x * 0x00130017u + i * 0x00070005u);
  for (int i = 0; i < 2; ++i) b[i] = 0x3f003f80u ^ (threadIdx.x * 0x00110013u + i * 0x00030009u);
  const long long start = clock64();
#pragma unroll 1
  for (int trip = 0; trip < trips; ++trip) {
#pragma unroll
    for (int i = 0; i < kSums; ++i)
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
          "{%0, %1, %2, %3};"
          : "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
  const long long end = clock64();
  float sum = 0;
  for (int i = 0; i < kSums; ++i)
    for (int e = 0; e < 4; ++e) sum += d[i][e];
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
  if (threadIdx.x == 0) cycles[blockIdx.x] = end - start;
}

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
  std::exit(1);
}

}  // namespace

int main() {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, 0));
  const int blocks = properties.multiProcessorCount, trips = 1 << 14;
  float* out;
  long long *cycles, first;
  check(cudaMalloc(&out, blocks * 512 * sizeof(float)));
  check(cudaMalloc(&cycles, blocks * sizeof(long long)));
  cudaEvent_t start, end;
  check(cudaEventCreate(&start));
  check(cudaEventCreate(&end));
  for (int warps : {4, 8, 16}) {
    for (int turn = 0; turn < 2; ++turn) {
      check(cudaEventRecord(start));
      rate<<<blocks, warps * 32>>>(out, cycles, trips);
      check(cudaEventRecord(end));
      check(cudaEventSynchronize(end));
    }
    float ms = 0;
    check(cudaEventElapsedTime(&ms, start, end));
    check(cudaMemcpy(&first, cycles, sizeof first, cudaMemcpyDeviceToHost));
    const double macs = 16.0 * 8 * 16 * kSums * trips * warps;
    std::printf("{\"warps\": %d, \"macs_per_clock_sm\": %.0f, \"tflops\": %.0f, \"mhz\": %.0f}\n", warps,
                macs / first, 2e-9 * macs * blocks / ms, first / ms / 1e3);
  }
  return 0;
}
