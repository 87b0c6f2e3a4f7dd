// Host stand-in of a cluster of CTAs: the kernels' own sources run here, a fibre a thread.
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

// ---- fibres

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

// ---- shared memory and cp.async

inline uint8_t* shared_memory() { return cta().memory.data() + kBase; }
inline uint32_t shared_address(const uint8_t* memory) { return uint32_t(memory - cta().memory.data()); }

inline void copy16(uint32_t target, const void* source, int bytes) {
  Cta& c = cta();
  check_place(c, target, 16, "cp.async");
  Copy16 copy{target, {}};
  if (bytes) std::memcpy(copy.data, check_source(source, 16), bytes);
  begin_write(c, target);
  self().groups.back().push_back(copy);
}
inline void commit() { self().groups.emplace_back(); }
template <int N>
void wait() {
  auto& groups = self().groups;
  while (int(groups.size()) - 1 > N) {
    for (const Copy16& copy : groups.front())
      end_write(cta(), copy.target, copy.data, self().warp, clock_of(self().warp)[self().warp]);
    groups.erase(groups.begin());
  }
}

// ---- mbarrier

inline void complete(Barrier& b) {
  if (b.pending || b.bytes) return;
  b.done = b.arrived;
  b.pending = b.count;
  ++b.phase;
  for (Thread& t : run->threads)
    if (t.barrier == &b && (b.phase & 1) != t.parity) t.blocked = nullptr, t.barrier = nullptr;
}
inline Barrier& barrier_at(Cta& c, uint32_t address) {
  if (c.ended == c.threads) fail_here("barrier: its CTA has ended");
  const auto found = c.barriers.find(address);
  if (found == c.barriers.end()) fail_here("barrier: none was started at " + std::to_string(address));
  return found->second;
}
inline void start_barrier(uint32_t barrier, int arrivals) {
  if (barrier % 8 || barrier < kBase || barrier + 8 > cta().memory.size()) fail_here("barrier: address");
  const Clock none(clock_of(0).size());
  const int copies = int(run->warps.size()) + run->barriers++;
  if (run->barriers > kMostBarriers) fail_here("barrier: too many for the stand-in");
  if (!cta().barriers.emplace(barrier, Barrier{arrivals, arrivals, copies, 0, 0, false, none, none}).second)
    fail_here("barrier: started twice");
}
inline void arrive_there(Cta& c, uint32_t barrier, int64_t bytes) {
  Barrier& b = barrier_at(c, barrier);
  join(b.arrived, clock_of(self().warp));
  tick(self().warp);
  b.bytes += bytes;
  if (--b.pending < 0) fail_here("barrier: more arrivals than it counts");
  complete(b);
}
inline void arrive(uint32_t barrier) { arrive_there(cta(), barrier, 0); }
inline void arrive_at(uint32_t barrier, int rank) { arrive_there(run->ctas.at(rank), barrier, 0); }
inline void expect(uint32_t barrier, int bytes) { arrive_there(cta(), barrier, bytes); }
inline void await(uint32_t barrier, uint32_t phase) {
  Barrier& b = barrier_at(cta(), barrier);
  if ((b.phase & 1) == phase) {
    self().barrier = &b;
    self().parity = phase;
    suspend("an mbarrier");
  }
  join(clock_of(self().warp), b.done);
}
inline void publish_barriers() {
  for (auto& [address, barrier] : cta().barriers) barrier.published = true;
}
template <int N>
void give_registers() {}
template <int N>
void take_registers() {}

// ---- the copy engine

// A tensor map, and the rules that the driver has for it.
struct CUtensorMap {
  const uint8_t* start;
  int64_t sizes[4], strides[4];
  int box[4], span;
};
using cuuint64_t = uint64_t;
using cuuint32_t = uint32_t;
enum {
  CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
  CU_TENSOR_MAP_INTERLEAVE_NONE,
  CU_TENSOR_MAP_SWIZZLE_64B,
  CU_TENSOR_MAP_SWIZZLE_128B,
  CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE
};
inline int encode_on_host(CUtensorMap* map, int, uint32_t rank, void* start, const uint64_t* sizes,
                          const uint64_t* strides, const uint32_t* box, const uint32_t* every, int,
                          int swizzle, int, int) {
  map->start = static_cast<const uint8_t*>(start);
  map->span = swizzle == CU_TENSOR_MAP_SWIZZLE_64B ? 64 : 128;
  bool right = rank == 4 && box[0] * 2 <= uint32_t(map->span);
  for (uint32_t i = 0; i < rank; ++i) {
    map->sizes[i] = sizes[i];
    map->strides[i] = i ? strides[i - 1] : 2;
    map->box[i] = box[i];
    right = right && sizes[i] && box[i] >= 1 && box[i] <= 256 && every[i] == 1;
    right = right && (i == 0 || map->strides[i] % 16 == 0);
  }
  return right && box[0] * 2 % 16 == 0 ? 0 : 1;
}

inline void send(Bulk bulk) {
  if (bulk.bytes % 16) fail_here("bulk copy: its bytes are not a multiple of 16");
  bulk.clock = clock_of(self().warp);
  if (!barrier_at(*bulk.cta, bulk.barrier).published) fail_here("bulk copy: its barrier is not published");
  for (const auto& [at, data] : bulk.pieces) {
    check_place(*bulk.cta, at, uint32_t(data.size()), "bulk copy");
    for (size_t i = 0; i < data.size(); i += 16) begin_write(*bulk.cta, at + uint32_t(i));
  }
  run->bulks.push_back(std::move(bulk));
}

inline void copy_box(uint32_t to, const CUtensorMap* map, uint32_t barrier, int channel, int column, int row,
                     int image) {
  const int from[] = {channel, column, row, image};
  const int pixel_bytes = map->box[0] * 2;
  if (to % 128) fail_here("bulk tensor copy: 128 does not divide the address");
  Bulk bulk{&cta(), {}, barrier, int64_t(pixel_bytes) * map->box[1] * map->box[2] * map->box[3], {}};
  for (int pixel = 0; pixel < map->box[1] * map->box[2]; ++pixel) {
    const int x = from[1] + pixel % map->box[1], y = from[2] + pixel / map->box[1];
    const bool inside =
        x >= 0 && x < map->sizes[1] && y >= 0 && y < map->sizes[2] && image >= 0 && image < map->sizes[3];
    for (int i = 0; i < pixel_bytes; i += 16) {
      std::vector<uint8_t> data(16, 0);
      if (inside && from[0] + i / 2 < map->sizes[0])
        std::memcpy(data.data(),
                    check_source(map->start + image * map->strides[3] + y * map->strides[2] +
                                     x * map->strides[1] + from[0] * 2 + i,
                                 16),
                    16);
      bulk.pieces.emplace_back(engine_swizzle(to + pixel * pixel_bytes + i, map->span), data);
    }
  }
  send(std::move(bulk));
}
inline void copy_bytes_to(Cta& c, uint32_t to, const void* from, int bytes, uint32_t barrier) {
  const uint8_t* data = check_source(from, bytes);
  send({&c, {{to, std::vector<uint8_t>(data, data + bytes)}}, barrier, bytes, {}});
}
inline void copy_bytes(uint32_t to, const void* from, int bytes, uint32_t barrier) {
  copy_bytes_to(cta(), to, from, bytes, barrier);
}
inline void copy_multicast(uint32_t to, const void* from, int bytes, uint32_t barrier, uint16_t ctas) {
  for (size_t rank = 0; rank < run->ctas.size(); ++rank)
    if (ctas >> rank & 1) copy_bytes_to(run->ctas[rank], to, from, bytes, barrier);
}

inline void land(size_t index) {
  const Bulk bulk = std::move(run->bulks[index]);
  run->bulks.erase(run->bulks.begin() + index);
  if (bulk.cta->ended == bulk.cta->threads) fail("bulk copy: its CTA has ended");
  Barrier& b = bulk.cta->barriers.at(bulk.barrier);
  const uint32_t when = ++b.arrived[b.copies];
  for (const auto& [at, data] : bulk.pieces)
    for (size_t i = 0; i < data.size(); i += 16)
      end_write(*bulk.cta, at + uint32_t(i), &data[i], b.copies, when);
  join(b.arrived, bulk.clock);
  b.bytes -= bulk.bytes;
  complete(b);
}

// ---- a lane's registers and instructions

struct Lane {
  using U = uint32_t;
  using F = float;

  U lane() const { return threadIdx.x % 32; }
  void load(U (&r)[4], U address) const {
    WarpState& w = warp();
    w.address.v[lane()] = address;
    w.loaded[lane()] = r;
    together("ldmatrix", [](WarpState& w) {
      LanesU made[4];
      host().load(made, w.address);
      w.fenced = false;
      for (int i = 0; i < 32; ++i)
        for (int m = 0; m < 4; ++m) w.loaded[i][m] = made[m].v[i];
    });
  }
  void deposit(F* d, const U (&a)[4]) const {
    WarpState& w = warp();
    w.d[lane()] = d;
    for (int e = 0; e < 4; ++e) w.a[e].v[lane()] = a[e];
  }
  void multiply(F* d, const U (&a)[4], U b0, U b1) const {
    deposit(d, a);
    warp().b[0].v[lane()] = b0;
    warp().b[1].v[lane()] = b1;
    together("mma", [](WarpState& w) {
      LanesF sums[4];
      for (int i = 0; i < 32; ++i)
        for (int e = 0; e < 4; ++e) sums[e].v[i] = w.d[i][e];
      host().multiply(sums, w.a, w.b[0], w.b[1]);
      for (int i = 0; i < 32; ++i)
        for (int e = 0; e < 4; ++e) w.d[i][e] = sums[e].v[i];
    });
  }
  U add(U a, U b) const {
    return packed_bf16(a, b, [](float x, float y) { return x + y; });
  }
  U subtract(U a, U b) const {
    return packed_bf16(a, b, [](float x, float y) { return x - y; });
  }
  template <int N>
  void bias(F (&added)[N], const float* values, int first, U orbit, bool inside) const {
    for (int n = 0; n < N; ++n) added[n] = 0;
    if (values && inside) std::memcpy(added, check_source(values + first + orbit, N * 4), N * 4);
  }
  U pack(F low, F high) const { return to_bf16(low) | uint32_t{to_bf16(high)} << 16; }
  int64_t place(U column, int channels, U orbit, int64_t row) const {
    return row + int64_t(column) * channels + orbit;
  }
  template <int N>
  void store(const U (&packed)[N], void*, int64_t place, int more, bool inside) const {
    if (inside) store_at(*run->out, place + more, packed, N);
  }
};

struct GroupLane : Lane {
  void fence() const {
    together("wgmma.fence", [](WarpState& w) { w.fenced = true; });
  }
  void commit() const {
    together("wgmma.commit", [](WarpState& w) { w.groups.emplace_back(); });
  }
  template <int N>
  void wait() const {
    together("wgmma.wait", [](WarpState& w) {
      while (int(w.groups.size()) - 1 > N) {
        for (const Product& p : w.groups.front()) retire(w, p);
        w.groups.erase(w.groups.begin());
      }
    });
  }
  static void retire(WarpState& w, const Product& p) {
    auto& [count, sums] = w.in_flight.at(p.d[0]);
    p.execute(host(), sums.data(), p.a, p.weights);
    if (--count) return;
    for (int i = 0; i < 32; ++i)
      for (int e = 0; e < p.sums; ++e) p.d[i][e] = sums[e].v[i];
    w.in_flight.erase(p.d[0]);
  }
  template <class Tile>
  void product(float (&d)[Tile::kOrbits / 2], const U (&a)[4], uint32_t weights) const {
    deposit(d, a);
    warp().address.v[lane()] = weights;
    together("wgmma", [](WarpState& w) {
      if (!w.fenced) fail_here("wgmma: no fence after ldmatrix");
      constexpr int n = Tile::kOrbits / 2;
      Product p{};
      p.sums = n;
      p.weights = w.address.v[0];
      std::memcpy(p.d, w.d, sizeof p.d);
      for (int e = 0; e < 4; ++e) p.a[e] = w.a[e];
      p.execute = [](const Host& machine, LanesF* sums, const LanesU(&a)[4], uint32_t weights) {
        machine.product<Tile>(sums, a, weights);
      };
      auto& [count, sums] = w.in_flight[p.d[0]];
      if (!count++) {
        sums.resize(n);
        for (int i = 0; i < 32; ++i)
          for (int e = 0; e < n; ++e) {
            sums[e].v[i] = p.d[i][e];
            p.d[i][e] = NAN;
          }
      }
      w.groups.back().push_back(p);
    });
  }
};

// ---- the scheduler

inline std::function<void()> kernel;

inline void enter() {
  try {
    kernel();
  } catch (const Fault& fault) {
    run->fault = fault.what();
  }
  self().ended = true;
  ++cta().ended;
  _longjmp(run->back, 1);
}

inline void resume(Thread& t) {
  run->current = &t;
  if (_setjmp(run->back)) return;
  if (t.entered) _longjmp(t.point, 1);
  t.entered = true;
  t.stack.reset(new char[kStackBytes]);
  getcontext(&t.start);
  t.start.uc_stack.ss_sp = t.stack.get();
  t.start.uc_stack.ss_size = kStackBytes;
  makecontext(&t.start, enter, 0);
  setcontext(&t.start);
}

[[noreturn]] inline void report_deadlock() {
  std::map<std::string, int> waiting;
  for (const Thread& t : run->threads)
    if (!t.ended) ++waiting[t.blocked];
  std::string text = "deadlock:";
  for (const auto& [what, threads] : waiting)
    text += " " + std::to_string(threads) + " threads at " + what + ";";
  fail(text);
}

// Until every thread has ended; with an even seed the CTAs run one as far ahead of the other as they may.
inline void schedule(unsigned seed) {
  for (;;) {
    std::vector<int> ready;
    bool left = false;
    const int warps = int(run->warps.size());
    for (int w = 0; w < warps; ++w)
      for (int i = 0; i < 32; ++i) {
        const Thread& t = run->threads[w * 32 + i];
        left = left || !t.ended;
        if (!t.ended && !t.blocked) {
          ready.push_back(w);
          break;
        }
      }
    if (!left) return;
    if (!run->bulks.empty() && (ready.empty() || run->random() % 16 == 0)) {
      land(run->random() % run->bulks.size());
      continue;
    }
    if (ready.empty()) report_deadlock();
    size_t chosen = run->random() % ready.size();
    if (seed % 2 == 0) chosen = seed % 4 ? ready.size() - 1 : 0;
    const int w = ready[chosen];
    for (int i = 0; i < 32; ++i) {
      Thread& t = run->threads[w * 32 + i];
      if (t.ended || t.blocked) continue;
      resume(t);
      if (!run->fault.empty()) fail(run->fault);
    }
  }
}

// Runs one cluster of a grid; `body` is the kernel with its arguments.
inline void run_cluster(int first_block, int ctas, int grid, int threads, int shared_bytes, unsigned seed,
                        const std::vector<Buffer>& buffers, std::vector<uint16_t>* out,
                        const std::function<void()>& body) {
  Run state;
  run = &state;
  kernel = body;
  state.random.seed(seed);
  state.grid.x = grid;
  state.buffers = buffers;
  state.out = out;
  const int warps = ctas * threads / 32;
  state.warps.resize(warps);
  state.clocks.assign(warps, Clock(warps + kMostBarriers, 0));
  for (int w = 0; w < warps; ++w) tick(w);
  state.ctas.resize(ctas);
  for (Cta& c : state.ctas) {
    c.memory.assign(kBase + shared_bytes, 0xff);
    c.threads = threads;
    c.read.assign(c.memory.size() / 16 + 1, Clock(warps, 0));
    c.written.assign(c.memory.size() / 16 + 1, {-1, 0});
    c.in_flight.assign(c.memory.size() / 16 + 1, 0);
  }
  state.threads = std::vector<Thread>(ctas * threads);
  for (int i = 0; i < ctas * threads; ++i) {
    state.threads[i].index.x = i % threads;
    state.threads[i].cta = i / threads;
    state.threads[i].block.x = first_block + i / threads;
    state.threads[i].warp = i / 32;
  }
  schedule(seed);
}

}  // namespace halo
