// The machine that stands in for a GPU: a CTA's threads as fibres, its shared memory, and what is checked.
//
// Every 4 bytes of shared memory know who wrote them last and when, and until when each warp has read them,
// by vector clocks of warps that barriers join. So a read or a write that no barrier orders is a fault,
// whatever the order in which the fibres ran. Within a warp, warp_barrier() and barrier() order lanes; an
// instruction of the whole warp reads for all its lanes. Faults are also: what is out of bounds, not aligned,
// not initialised; copies that nobody waited for; instructions of a warp that not all of its lanes reach;
// barriers that not all threads reach; two threads that write the same place of global memory.
//
// Not seen: registers and their number, time, and global memory that one CTA reads before another writes it.
#pragma once
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>

#include "../launch.h"
#include "device.h"
#include "fibre.h"

namespace symconv::host {

constexpr uint32_t kBase = 9 * 128;     // of shared memory: what lies below is nobody's
constexpr int kMostShared = 227 << 10;  // bytes of a CTA
constexpr int kMostThreads = 1024;      // of a CTA
constexpr int kMostWarps = 64;          // of a cluster
constexpr int kMostBarriers = 60;       // mbarriers of a cluster: each has a clock of its own
constexpr int kWidth = kMostWarps + kMostBarriers;
constexpr uint32_t kForever = 1u << 26;       // clocks stay below
constexpr int kWarpWide = 32, kSeveral = 33;  // in place of a lane

struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Word {         // of shared memory
  uint32_t when = 0;  // by the writer's clock
  uint8_t who = 0;    // warp, or place of an mbarrier's copies in a clock
  uint8_t lane = 0;
  uint8_t pending = 0;  // a copy is under way
};

struct PendingCopy {
  uint32_t target;
  int size;
  uint8_t data[16];
};

struct Access {  // by a lane, noted while tracing
  uint32_t line, column;
  const char* file;
  uint64_t address;
  int bytes;
  int kind;  // of Traced
};
enum Traced { kSharedLoad, kSharedStore, kCopy, kCopySource, kGlobalLoad, kGlobalStore };

struct Barrier {  // in shared memory
  uint32_t address;
  int count, pending, copies;  // the last: place of its copies in a clock
  int64_t bytes;
  uint32_t phase;
  bool published;
  uint32_t arrived[kWidth], done[kWidth];
};

struct Cta;
struct BulkCopy {  // of the copy engine, under way: 16 bytes to each place
  Cta* cta;
  uint32_t barrier;
  std::vector<uint32_t> to;
  std::vector<uint8_t> data;
  uint32_t clock[kWidth];
};

struct Product {  // a warp's part of one of a warp group
  Kind kind;
  int columns, span, apart;  // apart: of the blocks of 8 rows of an MN-major B, or 0
  uint32_t weights, a[32][4];
  float* d[32];
};
struct Flying {  // sums that products under way will change
  int products;
  float* d[32];
  std::vector<float> sums;  // [columns / 8][lane][4]
};

struct Cta {
  int index = 0, ended = 0, arrived = 0;
  std::vector<Barrier> barriers;
  std::unique_ptr<uint8_t[]> memory;
  std::vector<Word> words;
  std::vector<uint32_t> read;  // of each word, by warp of the cluster: clock * 64 + lane
};

struct Thread {
  Fibre fibre;
  Place place{};
  int warp = 0, lane = 0;
  Cta* cta = nullptr;
  bool ended = false;
  const char* waits_for = nullptr;
  Site site;
  std::vector<PendingCopy> copies;   // those of groups[0], then those of the next; the last is not committed
  std::vector<int> groups{0};        // how many
  const Barrier* barrier = nullptr;  // that it waits for, with this parity
  uint32_t parity = 0;
};

struct Warp {
  uint32_t clock[kWidth];  // what it knows of the others; its own entry is its time
  uint32_t ready = 0;      // lanes that can run
  int arrived = 0;
  const char* operation = nullptr;  // that lanes have arrived at
  Site site;
  // What they brought.
  uint32_t address[32];
  uint32_t* registers[32];
  const uint32_t* a[32];
  uint32_t b[32][2];
  float* sums[32];
  std::vector<Access> log[32];
  // Of warp groups.
  bool fenced = false;  // products may use what the last ldmatrix brought, and what was made of it
  std::vector<Product> products;
  std::vector<int> committed;  // products up to each commit
  std::vector<Flying> flying;
};

struct Buffer {
  const uint8_t* start;
  int64_t bytes;
  uint32_t* written;  // of each 2 bytes of a writable one: by which thread of all launches, or 0
};

struct Machine {
  // Settings.
  int multiprocessors = 4, sample = 0;
  uint64_t random = 1;
  bool conflicts_allowed = false, tracing = false, reversed = false;
  Counts counts;
  std::vector<Launched> launches;
  std::vector<Buffer> buffers;
  size_t last_buffer = 0;
  // Of the launch.
  int threads = 0, warps = 0, width = 0, ctas = 0;
  uint32_t stride = 0;  // of Cta::read
  int64_t shared_bytes = 0;
  uint32_t first_writer = 1;  // names the launch's first thread
  void (*kernel)(void*) = nullptr;
  void* call = nullptr;
  std::string fault;
  // Of the CTAs that run.
  uint32_t start = 1;  // all clocks begin with it
  uint64_t ready_warps = 0;
  int left = 0;  // threads that have not ended
  Thread* current = nullptr;
  Fibre scheduler;
  std::vector<Cta> cta;
  std::unique_ptr<Thread[]> thread;
  std::unique_ptr<Warp[]> warp;
  int cluster_arrived = 0;
  std::vector<BulkCopy> bulks;
};
extern Machine machine;

inline Thread& self() { return *machine.current; }
inline Warp& my_warp() { return machine.warp[self().warp]; }

[[noreturn]] void fail(const std::string& what, Site at, int lane = -1);

uint64_t random_below(uint64_t limit);
void tick(int warp);
// The running thread waits, and others run, until its bit of `ready` is set.
void suspend(const char* why, Site at);
void resume_warp(int warp);
// True of the last lane of the warp to arrive, which then does the operation for all; the others wait. Names
// of operations are compared by address.
bool last_to_arrive(const char* operation, Site at);

// All threads of warps first to last - 1 have come: what each did before is known to all.
void meet(int first, int last);
// The sums of 32 lanes, four each, plus the product of their fragments.
void multiply_warp(Kind kind, const uint32_t (*a)[4], const uint32_t (*b)[2], float* sums, Site at);
// Lets one of the copy engine's copies land.
void land();

// What an instruction does to words of shared memory: checked, and noted. `lane` may be kWarpWide.
void check_shared(const Cta& cta, uint32_t address, int bytes, int alignment, const char* what, Site at,
                  int lane = -1);
void note_read(Cta& cta, uint32_t address, int bytes, int lane, Site at);
void begin_write(Cta& cta, uint32_t address, int bytes, int lane, Site at);
void end_write(Cta& cta, uint32_t address, const void* data, int bytes, int who, int lane, uint32_t when);

const uint8_t* check_source(const void* from, int64_t bytes, int alignment, const char* what, Site at);
void trace(Traced kind, uint64_t address, int bytes, Site at);
void flush_trace(Warp& warp);

}  // namespace symconv::host
