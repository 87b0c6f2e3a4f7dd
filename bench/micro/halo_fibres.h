// Host stand-in of a cluster of CTAs: its state, what it checks, and a fibre for each thread.
//
// Warps and arrivals of copies come in an order that a seed shuffles. Warp-wide instructions wait for all 32
// lanes and are done by halo_host.h. A copy leaves NaN until it is waited for; wgmma reads its weights and
// gives its sums when it is waited for. Clocks of warps (vector clocks) find shared memory that is read or
// written without an order. What is not seen: races inside of a warp, and how many registers there are.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <csetjmp>
#include <functional>
#include <map>
#include <memory>
#include <random>

#include "halo_host.h"

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define threadIdx (halo::self().index)
#define blockIdx (halo::self().block)
#define gridDim (halo::run->grid)

namespace halo {

using std::max;
using std::min;

struct Index {
  int x;
};
struct int2 {
  int x, y;
};
inline int2 make_int2(int x, int y) { return {x, y}; }

constexpr uint32_t kBase = 384;  // of shared memory: what lies below is nobody's
constexpr size_t kStackBytes = 128 << 10;

using Clock = std::vector<uint32_t>;  // by warp of the cluster; then the copies that each barrier counts
constexpr int kMostBarriers = 64;     // of a cluster

inline void join(Clock& to, const Clock& from) {
  for (size_t i = 0; i < to.size(); ++i) to[i] = std::max(to[i], from[i]);
}

struct Barrier {                           // mbarrier
  int count = 0, pending = 0, copies = 0;  // the last: place of its copies in a clock
  int64_t bytes = 0;
  uint32_t phase = 0;
  bool published = false;
  Clock arrived, done;
};

struct Copy16 {  // cp.async
  uint32_t target;
  uint8_t data[16];
};

struct Product {  // a wgmma of a warp in flight
  LanesU a[4];
  uint32_t weights;
  float* d[32];
  void (*execute)(const Host&, LanesF*, const LanesU (&)[4], uint32_t);
  int sums;
};

struct Thread {
  Index index{0}, block{0};
  int cta = 0, warp = 0;  // warp of the cluster
  ucontext_t start;
  std::jmp_buf point;
  std::unique_ptr<char[]> stack;
  bool entered = false, ended = false;
  const char* blocked = nullptr;  // what it waits for
  Barrier* barrier = nullptr;     // with this parity
  uint32_t parity = 0;
  std::vector<std::vector<Copy16>> groups{1};  // of cp.async; the last is not committed
};

struct WarpState {
  int arrived = 0;
  bool fenced = false;  // wgmma may read what the last ldmatrix brought, and what was made of it
  const char* operation = nullptr;
  LanesU a[4], b[2], address;
  uint32_t* loaded[32];
  float* d[32];
  std::vector<std::vector<Product>> groups{1};                      // of wgmma; the last is not committed
  std::map<float*, std::pair<int, std::vector<LanesF>>> in_flight;  // sums by the first lane's address
};

struct Cta : Watch {
  std::vector<uint8_t> memory;
  std::vector<Clock> read;                        // of each 16 bytes, by warp
  std::vector<std::pair<int, uint32_t>> written;  // by whom, and when
  std::vector<uint8_t> in_flight;                 // copies
  std::map<uint32_t, Barrier> barriers;
  int threads = 0, ended = 0, arrived = 0;
  void touch(uint32_t address) override;
};

// The copy engine's: to shared memory of one CTA, counted by its barrier.
struct Bulk {
  Cta* cta;
  std::vector<std::pair<uint32_t, std::vector<uint8_t>>> pieces;
  uint32_t barrier;
  int64_t bytes;
  Clock clock;
};

struct Buffer {
  const uint8_t* start;
  size_t bytes;
};

struct Run {
  std::vector<Cta> ctas;
  std::vector<Thread> threads;
  std::vector<WarpState> warps;
  std::vector<Clock> clocks;
  std::vector<Bulk> bulks;
  std::vector<Buffer> buffers;
  std::vector<uint16_t>* out = nullptr;
  Index grid{0};
  std::mt19937 random;
  Thread* current = nullptr;
  ucontext_t scheduler;
  std::jmp_buf back;
  int cluster_arrived = 0, barriers = 0;
  std::string fault;
};
inline Run* run = nullptr;

inline Thread& self() { return *run->current; }
inline Cta& cta() { return run->ctas[self().cta]; }
inline WarpState& warp() { return run->warps[self().warp]; }
inline Clock& clock_of(int warp) { return run->clocks[warp]; }

[[noreturn]] inline void fail_here(const std::string& what) {
  fail(what + " (CTA " + std::to_string(self().block.x) + ", thread " + std::to_string(self().index.x) + ")");
}

inline void check_place(const Cta& c, uint32_t address, uint32_t bytes, const char* who) {
  if (address % 16 || address < kBase || address + bytes > c.memory.size() || address + bytes < address)
    fail_here(std::string(who) + ": address " + std::to_string(address));
  if (c.ended == c.threads) fail_here(std::string(who) + ": the other CTA has ended");
}

inline void Cta::touch(uint32_t address) {
  const uint32_t chunk = address / 16;
  check_place(*this, chunk * 16, 16, "read of shared memory");
  if (in_flight[chunk]) fail_here("read before the copy has arrived, at " + std::to_string(address));
  const auto [who, when] = written[chunk];
  if (who < 0) fail_here("read of what nobody wrote, at " + std::to_string(address));
  if (clock_of(self().warp)[who] < when)
    fail_here("read without a barrier after the write, at " + std::to_string(address));
  read[chunk][self().warp] = clock_of(self().warp)[self().warp];
}

// A copy by this thread's order may land from now on.
inline void begin_write(Cta& c, uint32_t address) {
  const uint32_t chunk = address / 16;
  if (c.in_flight[chunk]) fail_here("copy over a copy that has not arrived, at " + std::to_string(address));
  const Clock& mine = clock_of(self().warp);
  for (size_t w = 0; w < run->warps.size(); ++w)
    if (c.read[chunk][w] > mine[w]) fail_here("copy over what is still read, at " + std::to_string(address));
  if (c.written[chunk].first >= 0 && mine[c.written[chunk].first] < c.written[chunk].second)
    fail_here("copy over a copy without a barrier, at " + std::to_string(address));
  c.in_flight[chunk] = 1;
  std::memset(&c.memory[address], 0xff, 16);
}

inline void end_write(Cta& c, uint32_t address, const uint8_t* data, int who, uint32_t when) {
  std::memcpy(&c.memory[address], data, 16);
  c.in_flight[address / 16] = 0;
  c.written[address / 16] = {who, when};
}

inline const uint8_t* check_source(const void* source, size_t bytes) {
  const auto* from = static_cast<const uint8_t*>(source);
  for (const Buffer& b : run->buffers)
    if (from >= b.start && from + bytes <= b.start + b.bytes) {
      if ((from - b.start) % 16) fail_here("copy from an address that 16 does not divide");
      return from;
    }
  fail_here("copy from outside of the tensors");
}

inline void suspend(const char* why) {
  Thread& t = self();
  t.blocked = why;
  if (!_setjmp(t.point)) _longjmp(run->back, 1);
}

// An instruction of the whole warp: the last lane does it for all.
template <class Body>
void together(const char* operation, Body body) {
  WarpState& w = warp();
  if (w.arrived && std::strcmp(w.operation, operation))
    fail_here(std::string("lanes of a warp at ") + w.operation + " and at " + operation);
  w.operation = operation;
  if (++w.arrived < 32) return suspend(operation);
  body(w);
  w.arrived = 0;
  const int first = self().warp * 32;
  for (int i = 0; i < 32; ++i) run->threads[first + i].blocked = nullptr;
}

inline Host host() { return {&cta().memory, run->out, &cta()}; }

inline void tick(int warp) { ++clock_of(warp)[warp]; }

// All threads of some warps: what was done before is known to all.
inline void meet(int first, int last) {
  Clock all = clock_of(first);
  for (int w = first; w < last; ++w) join(all, clock_of(w));
  for (int w = first; w < last; ++w) {
    clock_of(w) = all;
    tick(w);
  }
  for (int i = first * 32; i < last * 32; ++i) run->threads[i].blocked = nullptr;
}

inline void __syncthreads() {
  Cta& c = cta();
  if (++c.arrived < c.threads) return suspend("__syncthreads");
  c.arrived = 0;
  meet(self().cta * c.threads / 32, (self().cta + 1) * c.threads / 32);
}
inline void cluster_barrier() {
  if (++run->cluster_arrived < int(run->threads.size())) return suspend("the barrier of the cluster");
  run->cluster_arrived = 0;
  meet(0, int(run->warps.size()));
}
inline void __syncwarp() {
  together("__syncwarp", [](WarpState&) {});
}

}  // namespace halo
