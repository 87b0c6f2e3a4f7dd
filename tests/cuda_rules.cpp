// Rules of the stand-in for a GPU, each broken by a kernel of two warps, and what goes by all of them.
//
// tests/test_cuda_machine.py has what the stand-in must say of each, by name.
#include <cstring>
#include <string>
#include <vector>

#include "host/hopper.h"
#include "host/machine.h"
#include "launch.h"

namespace symconv {
namespace {

struct Memory {
  const uint32_t* in;  // 256 words
  uint32_t* out;       // the same, to write
  float* work;         // the same
};
struct Rule {
  const char* name;
  void (*kernel)(Memory);
  int cluster = 1;
};

// The first half of a pipeline of two stages: copies of 16 bytes a thread, waited for two rounds later.
void pipelined(Memory m, bool waits, bool meets) {
  const uint32_t start = shared_memory(), mine = start + thread() * 16;
  for (int round = 0; round < 5; ++round) {
    if (round < 4) copy16(mine + round % 2 * 1024, m.in + thread() % 32 * 4, round == 3 ? 8 : 16);
    copy_commit();
    if (round == 0) continue;
    if (waits)
      copy_wait<1>();
    else
      copy_wait<2>();
    barrier();
    const uint32_t other = start + (thread() + 32) % 64 * 16 + (round - 1) % 2 * 1024;
    const uint32_t found = shared_load16(other).w;
    if (meets) barrier();
    if (thread() < 4) global_store4(m.out + block() * 16 + round * 4 + thread(), found);
  }
}

void matrix_rows(int apart) {
  const uint32_t start = shared_memory();
  for (int i = 0; i < 16; ++i) shared_store(start + (i * 64 + thread()) * 4, i);
  barrier();
  uint32_t r[4];
  load_matrices(r, start + lane() % 8 * apart);
  barrier();
}

// Two CTAs fetch halves of weights for both, by the copy engine, through two stages; in each a warp
// multiplies.
enum Broken {
  kNothing,
  kUnpublished,
  kUnstarted,
  kFew,
  kFull,
  kEmpty,
  kParity,
  kEarly,
  kFence,
  kOwn,
  kGone,
  kPlace
};
constexpr int kStage = 1024;

void produce(Memory m, Broken broken, uint32_t stages, uint32_t full, uint32_t empty) {
  const int rank = block() % 2;
  for (int round = 0; round < 5; ++round) {
    const uint32_t to = stages + round % 2 * kStage + rank * 512, barrier = full + round % 2 * 8;
    if (broken != kEmpty) await(empty + round % 2 * 8, round / 2 % 2 ^ (broken == kParity ? 0 : 1));
    if (lane()) continue;
    expect(barrier, broken == kFew ? 512 : 1024);
    copy_multicast(to + (broken == kPlace ? 8 : 0), m.in + rank * 128, 512, barrier, 3);
  }
}

void release(Broken broken, uint32_t empty) {
  warp_barrier();
  if (lane() < 2) arrive_at(empty, broken == kOwn ? block() % 2 : lane());
}

void consume(Memory m, Broken broken, uint32_t stages, uint32_t full, uint32_t empty) {
  float d[8] = {};
  const uint32_t a[4] = {};
  for (int round = 0; round < 5; ++round) {
    const uint32_t turn = round % 2 * 8;
    if (broken != kFull) await(full + turn, round / 2 % 2);
    if (broken != kFence) product_fence();
    product<Bfloat16, 16, 64>(d, a, stages + round % 2 * kStage);
    product_commit();
    if (broken == kEarly) release(broken, empty + turn);
    product_wait<0>();
    if (broken != kEarly) release(broken, empty + turn);
  }
  for (int e = 0; e < 8; ++e) work_store(m.work + block() * 32 + lane(), d[e]);
}

template <Broken kBroken>
void engine(Memory m) {
  const uint32_t stages = (shared_memory() + 1023) / 1024 * 1024, full = stages + 2 * kStage,
                 empty = full + 16;
  if (thread() == 0) {
    for (int stage = 0; stage < 2; ++stage) {
      start_barrier(full + stage * 8, 1);
      start_barrier(empty + stage * 8, 2);
    }
    if (kBroken != kUnpublished) publish_barriers();
  }
  if (kBroken != kUnstarted) cluster_barrier();
  if (thread() < 32)
    produce(m, kBroken, stages, full, empty);
  else
    consume(m, kBroken, stages, full, empty);
  if (kBroken != kGone) cluster_barrier();
}

const Rule kRules[] = {
    {"nothing of the engine", engine<kNothing>, 2},
    {"barriers not published", engine<kUnpublished>, 2},
    {"barriers not started", engine<kUnstarted>, 2},
    {"bytes that are not expected", engine<kFew>, 2},
    {"full not awaited", engine<kFull>, 2},
    {"empty not awaited", engine<kEmpty>, 2},
    {"wrong parity", engine<kParity>, 2},
    {"stage let go of too early", engine<kEarly>, 2},
    {"no fence", engine<kFence>, 2},
    {"released to its own CTA", engine<kOwn>, 2},
    {"a CTA is gone", engine<kGone>, 2},
    {"bulk alignment", engine<kPlace>, 2},
    {"nothing", [](Memory m) { pipelined(m, true, true); }},
    {"nothing of lanes",
     [](Memory m) {
       const uint32_t at = shared_memory() + thread() * 4;
       shared_store(at, thread());
       shared_store(at, shared_load(at) + 1);
       warp_barrier();
       const uint32_t other = shared_load(at ^ 4);
       warp_barrier();
       shared_store(at ^ 4, other);
       work_store(m.work + block() * 64 + thread(), float(shuffle_xor(other, 3)));
       barrier();
       work_store(m.work + block() * 64 + thread(), 1 + work_load(m.work + block() * 64 + thread()));
     }},
    {"nothing of matrices",
     [](Memory) {
       matrix_rows(16);
       matrix_rows(48);
     }},
    {"shared memory above",
     [](Memory) {
       if (thread() == 32) shared_store(shared_memory() + 4096, 0);
     }},
    {"shared memory below",
     [](Memory) {
       if (thread() == 5) shared_store(shared_memory() - 4, 0);
     }},
    {"shared alignment", [](Memory) { shared_store16(shared_memory() + thread() * 16 + 8, {}); }},
    {"not written",
     [](Memory) {
       if (thread() > 3) shared_store(shared_memory() + thread() * 4, 0);
       barrier();
       shared_load(shared_memory() + thread() * 4);
     }},
    {"read after write",
     [](Memory) {
       if (thread() == 0) shared_store(shared_memory(), 0);
       if (thread() == 32) shared_load(shared_memory());
     }},
    {"read after write of a lane",
     [](Memory) {
       shared_store(shared_memory() + thread() * 4, 0);
       shared_load(shared_memory() + (thread() ^ 1) * 4);
     }},
    {"matrix after write of a lane",
     [](Memory) {
       shared_store16(shared_memory() + thread() * 16, {});
       uint32_t r[4];
       load_matrices(r, shared_memory() + thread() * 16);
     }},
    {"write after read",
     [](Memory) {
       if (thread() < 4) shared_store(shared_memory() + thread() * 4, 0);
       barrier();
       if (thread() / 32)
         shared_load(shared_memory());
       else if (thread() == 0)
         shared_store(shared_memory(), 1);
     }},
    {"write after read of a lane",
     [](Memory) {
       if (thread() < 4) shared_store(shared_memory() + thread() * 4, 0);
       barrier();
       shared_load(shared_memory());
       if (thread() == 9) shared_store(shared_memory(), 1);
     }},
    {"write after write",
     [](Memory) {
       if (thread() % 32 == 0) shared_store(shared_memory(), 0);
     }},
    {"write after write of a lane",
     [](Memory) {
       if (thread() < 2) shared_store(shared_memory(), 0);
     }},
    {"copy not waited for", [](Memory m) { pipelined(m, false, true); }},
    {"copy over what is read", [](Memory m) { pipelined(m, true, false); }},
    {"copy waited for by another",
     [](Memory m) {
       if (thread() == 0) copy4(shared_memory(), m.in, 4);
       copy_commit();
       if (thread()) copy_wait<0>();
       barrier();
       shared_load(shared_memory());
     }},
    {"copy seen without a barrier",
     [](Memory m) {
       if (thread() == 0) copy4(shared_memory(), m.in, 4);
       copy_commit();
       copy_wait<0>();
       if (thread() == 1) shared_load(shared_memory());
     }},
    {"copy over a copy",
     [](Memory m) {
       if (thread() < 2) copy4(shared_memory(), m.in, 4);
     }},
    {"group not committed",
     [](Memory m) {
       copy4(shared_memory() + thread() * 4, m.in, 4);
       copy_wait<0>();
       shared_load(shared_memory() + thread() * 4);
     }},
    {"copy alignment", [](Memory m) { copy16(shared_memory() + thread() * 16, m.in + 1, 16); }},
    {"copy too long", [](Memory m) { copy4(shared_memory() + thread() * 4, m.in, 8); }},
    {"copy from outside",
     [](Memory m) { copy16(shared_memory() + thread() * 16, m.in + (3 + thread()) * 4, 16); }},
    {"bank conflict", [](Memory) { matrix_rows(32); }},
    {"lanes apart",
     [](Memory) {
       if (thread() % 2)
         warp_barrier();
       else
         shuffle_xor(0u, 1);
     }},
    {"lanes at two places",
     [](Memory) {
       if (thread() % 2)
         warp_barrier();
       else
         warp_barrier();
     }},
    {"a lane missing",
     [](Memory) {
       if (thread() % 32 != 7) warp_barrier();
     }},
    {"a barrier that some miss",
     [](Memory) {
       if (thread() < 40) barrier();
     }},
    {"load from outside", [](Memory m) { global_load4(m.in + 193 + thread()); }},
    {"load from nowhere", [](Memory) { load_element<Float16>(nullptr, thread()); }},
    {"load alignment", [](Memory m) { global_load8(m.in + thread()); }},
    {"store outside", [](Memory m) { global_store4(m.out - 1 + thread(), 0); }},
    {"store alignment", [](Memory m) { global_store16(m.out + 2, {}); }},
    {"store to what is read",
     [](Memory m) { store_element<Float32>(const_cast<uint32_t*>(m.in), thread(), 0); }},
    {"store where a thread has", [](Memory m) { store_element<Bfloat16>(m.out, thread() / 2, 0); }},
    {"store where a CTA has", [](Memory m) { global_store8(m.out + thread() * 2, {}); }},
    {"load of what is written",
     [](Memory m) {
       global_store4(m.out + block() * 64 + thread(), 0);
       global_load4(m.out + block() * 64 + thread());
     }},
    {"load of what nobody wrote", [](Memory m) { global_load4(m.out + thread()); }},
    {"work of another CTA",
     [](Memory m) {
       if (block() % 2 == 0) work_store(m.work + thread(), 0);
       barrier();
       work_load(m.work + thread());
     }},
    {"work of nobody", [](Memory m) { work_load(m.work + thread()); }},
    {"not TF32",
     [](Memory) {
       uint32_t a[4] = {1, 0, 0, 0};
       float d[4] = {};
       multiply<Float32>(d, a, 0, 0);
     }},
};

std::string said;

// What a warp does once: shared loads of words 1, 2 and 4 apart and of 16 bytes, stores, global loads.
void counted(Memory m) {
  const uint32_t start = shared_memory();
  for (int i = 0; i < 32; ++i) shared_store(start + (i * 32 + lane()) * 4, 0);
  barrier();
  shared_load(start + lane() * 4);
  shared_load(start + lane() * 8);
  shared_load(start + lane() * 16);
  shared_load(start + lane() * 128);
  shared_load(start);
  shared_load16(start + lane() * 16);
  if (lane() < 8) shared_load16(start + lane() * 16);
  barrier();
  global_load4(m.in + lane());
  global_load4(m.in + lane() * 8);
  global_store16(m.out + lane() * 4, {});
  copy16(start + lane() * 16, m.in + lane() * 4, lane() < 31 ? 16 : 0);
}

}  // namespace
}  // namespace symconv

using namespace symconv;

extern "C" {

const char* name_of(int rule) {
  return rule < int(sizeof kRules / sizeof *kRules) ? kRules[rule].name : nullptr;
}

// What the stand-in says of a kernel on three CTAs.
const char* broken(int rule, uint64_t seed) {
  alignas(16) static uint32_t memory[5][256];  // the second and fourth are nobody's
  auto* work = reinterpret_cast<float*>(memory[4]);
  host::set_seed(seed);
  host::forget_buffers();
  for (const int i : {0, 2, 4}) host::register_buffer(memory[i], sizeof memory[i], i > 0);
  const int cluster = kRules[rule].cluster, grid = cluster == 1 ? 3 : 4;
  const Memory m{memory[0], memory[2], work};
  said = launch_clusters(kRules[rule].kernel, grid, cluster, 64, 4096, Queue{}, m);
  host::forget_buffers();
  return said.c_str();
}

// As if it had run for so long that its clocks, or the names of its threads, must begin anew.
void age() {
  host::machine.start = host::kForever / 2 - 5;
  host::machine.first_writer = 0xffffffff - 300;
}

const char* shaped(int64_t grid, int64_t threads, int64_t bytes) {
  said = launch(+[](Memory) {}, grid, threads, bytes, Queue{}, Memory{});
  return said.c_str();
}

// "name value" by line, of counted() in one warp.
const char* counts(int tracing) {
  alignas(16) static uint32_t in[256], out[256];
  host::register_buffer(in, sizeof in, false);
  host::register_buffer(out, sizeof out, true);
  host::reset_counts();
  host::set_tracing(tracing);
  const std::string error = launch(counted, 1, 32, 4096, Queue{}, Memory{in, out, nullptr});
  host::set_tracing(false);
  host::forget_buffers();
  said = error;
  for (const auto& [name, count] : host::named_counts()) said += name + " " + std::to_string(count) + "\n";
  return said.c_str();
}
}
