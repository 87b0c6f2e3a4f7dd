// Runs a grid on the stand-in: the fibres of a CTA, who runs next, and barriers.
#include "machine.h"

#include <sys/mman.h>

#include <map>
#include <mutex>

namespace symconv::host {

Machine machine;

namespace {

std::mutex mutex;
constexpr size_t kStackBytes = 256 << 10, kGuardBytes = 4096, kMostLaunches = 1000;
uint8_t* stacks = nullptr;
int stack_count = 0;

uint64_t mixed(uint64_t x) {  // splitmix64
  x += 0x9e3779b97f4a7c15;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
  x = (x ^ x >> 27) * 0x94d049bb133111eb;
  return x ^ x >> 31;
}

// Below each stack lies a page that cannot be reached.
void make_stacks(int count) {
  if (count <= stack_count) return;
  if (stacks) munmap(stacks, stack_count * kStackBytes);
  void* p = mmap(nullptr, count * kStackBytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  stacks = nullptr, stack_count = 0;
  if (p == MAP_FAILED) throw Fault("no memory for the stacks of the threads");
  stacks = static_cast<uint8_t*>(p), stack_count = count;
  for (int i = 0; i < count; ++i) mprotect(stacks + i * kStackBytes, kGuardBytes, PROT_NONE);
}

std::string described(Site at) {
  const std::string file = at.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(at.line());
}

// Goes to another fibre: a lane of the same warp if one can run, else of any warp.
void leave(Fibre& from) {
  Machine& m = machine;
  while (!m.bulks.empty() && m.fault.empty() && (!m.ready_warps || random_below(64) == 0)) land();
  int w = m.current ? m.current->warp : -1;
  if (w < 0 || !m.warp[w].ready || random_below(64) == 0 || !m.fault.empty()) {
    if (!m.ready_warps || !m.fault.empty()) {
      m.current = nullptr;
      return switch_to(from, m.scheduler);
    }
    uint64_t warps = m.ready_warps;
    for (uint64_t skip = random_below(std::popcount(warps)); skip; --skip) warps &= warps - 1;
    w = std::countr_zero(warps);
  }
  m.current = &m.thread[w * 32 + std::countr_zero(m.warp[w].ready)];
  if (&m.current->fibre != &from) switch_to(from, m.current->fibre);
}

void take_away(Thread& t) {
  uint32_t& ready = machine.warp[t.warp].ready;
  ready &= ~(1u << t.lane);
  if (!ready) machine.ready_warps &= ~(uint64_t{1} << t.warp);
}

void enter() {
  Thread& t = self();
  try {
    machine.kernel(machine.call);
  } catch (const Fault& fault) {
    machine.fault = fault.what();
  } catch (const std::exception& e) {
    machine.fault = std::string("exception in a kernel: ") + e.what();
  }
  t.ended = true;
  ++t.cta->ended;
  --machine.left;
  take_away(t);
  if (!machine.fault.empty()) {
    machine.current = nullptr;
    switch_to(t.fibre, machine.scheduler);
  }
  leave(t.fibre);
}

void report_deadlock() {
  std::map<std::string, int> waiting;
  int ended = 0;
  for (int i = 0; i < machine.ctas * machine.threads; ++i) {
    const Thread& t = machine.thread[i];
    if (t.ended)
      ++ended;
    else
      ++waiting[std::string(t.waits_for) + " (" + described(t.site) + ")"];
  }
  std::string text = "deadlock in CTA " + std::to_string(machine.cta[0].index) + ":";
  for (const auto& [what, threads] : waiting)
    text += " " + std::to_string(threads) + " threads wait for " + what + ";";
  machine.fault = text + " " + std::to_string(ended) + " have ended";
}

// Clocks go on from CTA to CTA, so nothing must be cleared: what is older than `start` is of no CTA that
// runs.
void start_clocks() {
  Machine& m = machine;
  if (m.start > kForever / 2) {
    m.start = 1;
    for (Cta& c : m.cta) {
      std::fill(c.words.begin(), c.words.end(), Word{});
      std::fill(c.read.begin(), c.read.end(), 0);
    }
  }
  for (int w = 0; w < m.warps; ++w) std::fill_n(m.warp[w].clock, kWidth, m.start);
  for (int w = 0; w < m.warps; ++w) tick(w);
}

void end_clocks() {
  Machine& m = machine;
  uint32_t latest = m.start;
  const auto see = [&](const uint32_t* clock) {
    latest = max(latest, *std::max_element(clock, clock + kWidth));
  };
  for (int w = 0; w < m.warps; ++w) see(m.warp[w].clock);
  for (int c = 0; c < m.ctas; ++c)
    for (const Barrier& b : m.cta[c].barriers) see(b.arrived);
  m.start = latest + 1;
}

void run_cluster(int64_t first, int64_t grid) {
  Machine& m = machine;
  start_clocks();
  m.left = m.ctas * m.threads;
  m.ready_warps = m.warps == 64 ? ~uint64_t{0} : (uint64_t{1} << m.warps) - 1;
  for (int c = 0; c < m.ctas; ++c) {
    m.cta[c].index = int(first) + c;
    m.cta[c].ended = m.cta[c].arrived = 0;
    m.cta[c].barriers.clear();
  }
  for (int i = 0; i < m.left; ++i) {  // threads begin anew
    Thread& t = m.thread[i];
    const int c = i / m.threads;
    t.place = {i % m.threads, int(first) + c, int(grid), m.threads};
    t.warp = i / 32, t.lane = i % 32, t.cta = &m.cta[c];
    t.ended = false, t.waits_for = nullptr;
    t.copies.clear(), t.groups.assign(1, 0), t.barrier = nullptr;
    prepare(t.fibre, stacks + i * kStackBytes + kGuardBytes, kStackBytes - kGuardBytes, enter);
  }
  for (int w = 0; w < m.warps; ++w) {
    Warp& warp = m.warp[w];
    warp.ready = ~0u, warp.arrived = 0, warp.fenced = false;
    warp.products.clear(), warp.committed.clear(), warp.flying.clear();
    for (auto& log : warp.log) log.clear();
  }
  m.bulks.clear();
  m.cluster_arrived = 0;
  m.current = nullptr;
  leave(m.scheduler);
  if (m.fault.empty() && m.left) report_deadlock();
  if (m.fault.empty() && !m.bulks.empty()) m.fault = "a bulk copy that nobody waited for";
  if (m.fault.empty() && m.tracing)
    for (int w = 0; w < m.warps; ++w) flush_trace(m.warp[w]);
  m.counts.ctas += m.ctas;
  end_clocks();
}

std::string bad_shape(const Shape& s) {
  if (s.grid < 1 || s.grid > 0x7fffffff || s.grid % s.cluster) return "bad grid " + std::to_string(s.grid);
  if (s.threads < 32 || s.threads % 32 || s.threads > kMostThreads || s.threads * s.cluster > kMostWarps * 32)
    return "bad number of threads " + std::to_string(s.threads);
  if (s.shared_bytes < 0 || s.shared_bytes > kMostShared)
    return "bad size of shared memory " + std::to_string(s.shared_bytes);
  if (s.grid * s.threads > 0x7fffffff) return "a grid too large for the stand-in";
  return {};
}

void make_room(const Shape& s) {
  Machine& m = machine;
  m.ctas = s.cluster, m.threads = int(s.threads), m.shared_bytes = s.shared_bytes;
  m.warps = m.ctas * m.threads / 32, m.width = m.warps;
  make_stacks(m.ctas * m.threads);
  if (!m.thread) {
    m.thread.reset(new Thread[kMostWarps * 32]);
    m.warp.reset(new Warp[kMostWarps]);
    for (int w = 0; w < kMostWarps; ++w) std::fill_n(m.warp[w].clock, kWidth, 0);
  }
  while (int(m.cta.size()) < m.ctas) {
    m.cta.emplace_back();
    m.cta.back().memory.reset(new uint8_t[kBase + kMostShared]);
    m.cta.back().words.resize((kBase + kMostShared) / 4);
    m.cta.back().barriers.reserve(kMostBarriers);  // threads that wait point to them
  }
  const uint32_t stride = std::bit_ceil(uint32_t(m.warps));
  for (Cta& c : m.cta) {
    if (stride != m.stride) std::fill(c.read.begin(), c.read.end(), 0);
    c.read.resize(max(c.read.size(), size_t(kBase + s.shared_bytes) / 4 * stride + stride));
  }
  m.stride = stride;
}

Counts difference(const Counts& after, const Counts& before) {
  Counts all;
#define SYMCONV_COUNT(name) all.name = after.name - before.name;
  SYMCONV_COUNTS(SYMCONV_COUNT)
#undef SYMCONV_COUNT
  return all;
}

// Threads of all launches have names that rise; before they would not fit all places forget their writers.
void name_threads(int64_t count) {
  Machine& m = machine;
  if (uint64_t(m.first_writer) + count < 0xffffffff) return;
  for (Buffer& b : m.buffers)
    for (int64_t i = 0; b.written && i < b.bytes / 2; ++i) b.written[i] = b.written[i] ? 1 : 0;
  m.first_writer = 2;
}

}  // namespace

void fail(const std::string& what, Site at, int lane) {
  const Thread& t = self();
  throw Fault(what + " (" + described(at) + ", CTA " + std::to_string(t.place.block) + ", warp " +
              std::to_string(t.place.thread / 32) + ", lane " + std::to_string(lane < 0 ? t.lane : lane) +
              ")");
}

uint64_t random_below(uint64_t limit) {
  uint64_t& r = machine.random;  // xorshift64
  r ^= r << 13, r ^= r >> 7, r ^= r << 17;
  return limit ? (r >> 11) % limit : 0;
}

void tick(int warp) { ++machine.warp[warp].clock[warp]; }

void suspend(const char* why, Site at) {
  Thread& t = self();
  t.waits_for = why;
  t.site = at;
  take_away(t);
  leave(t.fibre);
}

void resume_warp(int warp) {
  machine.warp[warp].ready = ~0u;
  machine.ready_warps |= uint64_t{1} << warp;
}

bool last_to_arrive(const char* operation, Site at) {
  Warp& w = my_warp();
  if (w.arrived && (w.operation != operation || w.site.line() != at.line()))
    fail(
        std::string("lanes of a warp at ") + w.operation + " (" + described(w.site) + ") and at " + operation,
        at);
  w.operation = operation;
  w.site = at;
  if (++w.arrived < 32) {
    suspend(operation, at);
    return false;
  }
  w.arrived = 0;
  if (machine.tracing) flush_trace(w);
  resume_warp(self().warp);
  return true;
}

const Place& here() { return self().place; }

void meet(int first, int last) {
  uint32_t all[kWidth];
  std::memcpy(all, machine.warp[first].clock, sizeof all);
  for (int w = first + 1; w < last; ++w)
    for (int v = 0; v < machine.width; ++v) all[v] = max(all[v], machine.warp[w].clock[v]);
  for (int w = first; w < last; ++w) {
    if (machine.tracing) flush_trace(machine.warp[w]);
    std::memcpy(machine.warp[w].clock, all, sizeof all);
    tick(w);
    resume_warp(w);
  }
}

void barrier(Site at) {
  Cta& c = *self().cta;
  if (++c.arrived < machine.threads) return suspend("barrier()", at);
  c.arrived = 0;
  ++machine.counts.barriers;
  const int first = self().warp - self().place.thread / 32;
  meet(first, first + machine.threads / 32);
}

void warp_barrier(Site at) {
  if (!last_to_arrive("warp_barrier()", at)) return;
  ++machine.counts.warp_barriers;
  tick(self().warp);
}

std::string run_grid(const Shape& shape, void (*kernel)(void*), void* call) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (const std::string bad = bad_shape(shape); !bad.empty()) return bad;
  Machine& m = machine;
  try {
    make_room(shape);
  } catch (const std::exception& e) {
    return e.what();
  }
  m.kernel = kernel, m.call = call;
  m.fault.clear();
  const Counts before = m.counts;
  ++m.counts.launches;
  name_threads(shape.grid * shape.threads);
  const int64_t clusters = shape.grid / shape.cluster;
  const bool whole = !m.sample || !shape.shared_bytes;
  const int64_t runs = whole ? clusters : std::min<int64_t>(clusters, m.sample);
  for (int64_t i = 0; i < runs && m.fault.empty(); ++i) {
    const int64_t cluster = (m.reversed ? runs - 1 - i : i) * clusters / runs;
    run_cluster(cluster * shape.cluster, shape.grid);
  }
  m.first_writer += uint32_t(shape.grid * shape.threads);
  if (m.launches.size() < kMostLaunches) m.launches.push_back({shape, difference(m.counts, before)});
  return m.fault;
}

void set_multiprocessors(int count) { machine.multiprocessors = max(count, 1); }
void set_seed(uint64_t seed) {
  machine.random = mixed(seed) | 1;
  machine.reversed = seed % 2;
}
void set_conflicts_allowed(bool allowed) { machine.conflicts_allowed = allowed; }
void set_tracing(bool on) { machine.tracing = on; }
void set_sample(int ctas) { machine.sample = max(ctas, 0); }
Counts counts() { return machine.counts; }
void reset_counts() {
  machine.counts = Counts{};
  machine.launches.clear();
}
const std::vector<Launched>& launches() { return machine.launches; }
NamedCounts named(const Counts& counts) {
  NamedCounts all;
#define SYMCONV_COUNT(name) all.emplace_back(#name, counts.name);
  SYMCONV_COUNTS(SYMCONV_COUNT)
#undef SYMCONV_COUNT
  return all;
}

}  // namespace symconv::host

namespace symconv {
int multiprocessors(int) { return host::machine.multiprocessors; }
}  // namespace symconv
