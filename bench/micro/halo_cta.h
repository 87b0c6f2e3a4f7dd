// Host stand-in of a cluster of CTAs: a lane's instructions, and the scheduler, which runs a kernel.
#pragma once
#include "halo_copies.h"

namespace halo {

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
