// Stand-in for what Hopper's kernels need besides device.h: barriers in shared memory, the copy engine,
// products of warp groups, and clusters of CTAs.
//
// Copies of the engine land whenever it pleases the stand-in, each in one go. A product of a warp group is
// done when it is waited for: until then its sums are NaN and its weights are read, so what is let go of too
// early is a fault. Proxy fences are not modelled but for that of new barriers.
#pragma once
#include "../launch.h"
#include "device.h"

// A tensor map, with the rules of the driver's encoder.
struct CUtensorMap {
  const uint8_t* start;
  int64_t sizes[4], strides[4];  // elements; bytes
  int box[4], span, element_bytes;
};
using cuuint64_t = uint64_t;
using cuuint32_t = uint32_t;
enum CUtensorMapDataType {
  CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
  CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
  CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
  CU_TENSOR_MAP_DATA_TYPE_TFLOAT32
};
enum CUtensorMapInterleave { CU_TENSOR_MAP_INTERLEAVE_NONE };
enum CUtensorMapSwizzle { CU_TENSOR_MAP_SWIZZLE_32B, CU_TENSOR_MAP_SWIZZLE_64B, CU_TENSOR_MAP_SWIZZLE_128B };
enum CUtensorMapL2promotion { CU_TENSOR_MAP_L2_PROMOTION_L2_256B };
enum CUtensorMapFloatOOBfill { CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE };
// Of four dimensions; not 0 if the driver would refuse it.
int cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, uint32_t rank, void* start,
                           const uint64_t* sizes, const uint64_t* strides, const uint32_t* box,
                           const uint32_t* every, CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                           CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

namespace symconv {

namespace host {

void start_barrier(uint32_t barrier, int arrivals, Site at);
void arrive(uint32_t barrier, int rank, int64_t bytes, Site at);  // rank -1: its own CTA's
void await(uint32_t barrier, uint32_t phase, Site at);
void publish_barriers();
void cluster_barrier(Site at);
void copy_box(uint32_t to, const CUtensorMap& map, uint32_t barrier, const int (&from)[4], Site at);
void copy_bytes(uint32_t to, const void* from, int bytes, uint32_t barrier, uint32_t ctas, Site at);
void product_fence(Site at);
void product_commit(Site at);
void product_wait(int left, Site at);
void product(Kind kind, float* d, int columns, const uint32_t* a, uint32_t weights, int span, Site at);
uint32_t engine_swizzle(uint32_t address, int span);

}  // namespace host

// ---- barriers in shared memory: 8 bytes; a phase ends when all have arrived and all bytes have come

inline void start_barrier(uint32_t barrier, int arrivals, host::Site at = host::Site::current()) {
  host::start_barrier(barrier, arrivals, at);
}
// Barriers that were started, to the copy engine and the cluster.
inline void publish_barriers() { host::publish_barriers(); }
inline void arrive(uint32_t barrier, host::Site at = host::Site::current()) {
  host::arrive(barrier, -1, 0, at);
}
// The same barrier of another CTA of the cluster.
inline void arrive_at(uint32_t barrier, int rank, host::Site at = host::Site::current()) {
  host::arrive(barrier, rank, 0, at);
}
// Arrives, and more bytes must come.
inline void expect(uint32_t barrier, int bytes, host::Site at = host::Site::current()) {
  host::arrive(barrier, -1, bytes, at);
}
// Until the phase of this parity has ended.
inline void await(uint32_t barrier, uint32_t phase, host::Site at = host::Site::current()) {
  host::await(barrier, phase, at);
}
inline void cluster_barrier(host::Site at = host::Site::current()) { host::cluster_barrier(at); }
template <int N>
void give_registers() {}
template <int N>
void take_registers() {}

// ---- the copy engine

inline void copy_box(uint32_t to, const CUtensorMap* map, uint32_t barrier, int channel, int column, int row,
                     int image, host::Site at = host::Site::current()) {
  host::copy_box(to, *map, barrier, {channel, column, row, image}, at);
}
inline void copy_bytes(uint32_t to, const void* from, int bytes, uint32_t barrier,
                       host::Site at = host::Site::current()) {
  host::copy_bytes(to, from, bytes, barrier, 0, at);
}
// To the same place in some CTAs of the cluster, by bits; their own barriers count the bytes.
inline void copy_multicast(uint32_t to, const void* from, int bytes, uint32_t barrier, uint16_t ctas,
                           host::Site at = host::Site::current()) {
  host::copy_bytes(to, from, bytes, barrier, ctas, at);
}

// ---- products of warp groups

// Between ldmatrix, or anything that was done to A's registers or the sums, and the next product.
inline void product_fence(host::Site at = host::Site::current()) { host::product_fence(at); }
inline void product_commit(host::Site at = host::Site::current()) { host::product_commit(at); }
template <int N>
void product_wait(host::Site at = host::Site::current()) {
  host::product_wait(N, at);
}
// d (64 x kColumns) += A (64 x 32 bytes, of registers) B (kColumns x 32 bytes, K-major, swizzled over kSpan
// bytes of a row, at a shared address).
template <class T, int kColumns, int kSpan>
void product(float (&d)[kColumns / 2], const uint32_t (&a)[4], uint32_t weights,
             host::Site at = host::Site::current()) {
  static_assert(kSpan == 32 || kSpan == 64 || kSpan == 128);
  host::product(host::kKind<T>, d, kColumns, a, weights, kSpan, at);
}

// ---- launching a grid of clusters

template <class... Parameters, class... Arguments>
std::string launch_clusters(void (*kernel)(Parameters...), int64_t grid, int cluster, int64_t threads,
                            int64_t shared_bytes, const Queue&, Arguments... arguments) {
  static_assert((sizeof(Parameters) + ... + 0) <= 4000, "a kernel's parameters are at most 4 KB");
  auto call = [&] { kernel(arguments...); };
  return host::run_grid(
      {grid, threads, shared_bytes, cluster}, [](void* c) { (*static_cast<decltype(call)*>(c))(); }, &call);
}

}  // namespace symconv
