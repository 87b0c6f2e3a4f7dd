// Shared memory of the stand-in: loads, stores and copies, each held against what the clocks allow.
#include "machine.h"

namespace symconv::host {

namespace {

std::string at_address(uint32_t address) { return " at shared address " + std::to_string(address); }

// What the words of an access name as their writer or reader.
std::string of(int warp, int lane) {
  if (warp >= kMostWarps) return " of the copy engine";
  return " of warp " + std::to_string(warp) + (lane < 32 ? ", lane " + std::to_string(lane) : std::string());
}

}  // namespace

uint32_t shared_start() { return kBase; }

void check_shared(const Cta&, uint32_t address, int bytes, int alignment, const char* what, Site at,
                  int lane) {
  if (address % alignment) fail(std::string(what) + " is not aligned" + at_address(address), at, lane);
  if (address < kBase || int64_t{address} + bytes > kBase + machine.shared_bytes)
    fail(std::string(what) + " outside of shared memory" + at_address(address - kBase), at, lane);
}

void note_read(Cta& cta, uint32_t address, int bytes, int lane, Site at) {
  const int me = self().warp;
  const uint32_t* clock = machine.warp[me].clock;
  const uint32_t now = clock[me];
  for (uint32_t i = address / 4; i < (address + bytes) / 4; ++i) {
    const Word& w = cta.words[i];
    if (w.when < machine.start) [[unlikely]]
      fail("read of what nobody wrote" + at_address(i * 4 - kBase), at);
    if (w.pending) [[unlikely]]
      fail("read of a copy that was not waited for" + at_address(i * 4 - kBase), at);
    if (w.who == me ? w.when == now && w.lane != lane : clock[w.who] < w.when) [[unlikely]]
      fail("read without a barrier after the write" + of(w.who, w.lane) + at_address(i * 4 - kBase), at);
    uint32_t& read = cta.read[i * machine.stride + me];
    const uint32_t before = read % 64;
    if (read / 64 != now || before == kWarpWide)
      read = now * 64 + lane;
    else if (int(before) != lane && lane != kWarpWide)
      read = now * 64 + kSeveral;
  }
}

void begin_write(Cta& cta, uint32_t address, int bytes, int lane, Site at) {
  const int me = self().warp;
  const uint32_t* clock = machine.warp[me].clock;
  const uint32_t now = clock[me];
  for (uint32_t i = address / 4; i < (address + bytes) / 4; ++i) {
    const Word& w = cta.words[i];
    if (w.pending && w.when >= machine.start) [[unlikely]]
      fail("write over a copy that was not waited for" + at_address(i * 4 - kBase), at);
    if (w.who == me ? w.when == now && w.lane != lane : w.when >= machine.start && clock[w.who] < w.when)
        [[unlikely]]
      fail("write without a barrier after the write" + of(w.who, w.lane) + at_address(i * 4 - kBase), at);
    const uint32_t* read = &cta.read[i * machine.stride];
    for (int v = 0; v < machine.warps; ++v) {
      const int reader = int(read[v] % 64);
      if (v == me ? read[v] / 64 == now && reader != lane && reader != kWarpWide : read[v] / 64 > clock[v])
          [[unlikely]]
        fail("write without a barrier after the read" + of(v, reader) + at_address(i * 4 - kBase), at);
    }
  }
}

void end_write(Cta& cta, uint32_t address, const void* data, int bytes, int who, int lane, uint32_t when) {
  std::memcpy(&cta.memory[address], data, bytes);
  for (uint32_t i = address / 4; i < (address + bytes) / 4; ++i)
    cta.words[i] = {when, uint8_t(who), uint8_t(lane), 0};
}

void shared_read(uint32_t address, uint32_t* to, int bytes, Site at) {
  Thread& t = self();
  check_shared(*t.cta, address, bytes, bytes, "load", at);
  note_read(*t.cta, address, bytes, t.lane, at);
  std::memcpy(to, &t.cta->memory[address], bytes);
  machine.counts.shared_load_bytes += bytes;
  if (machine.tracing) trace(kSharedLoad, address, bytes, at);
}

void shared_write(uint32_t address, const uint32_t* from, int bytes, Site at) {
  Thread& t = self();
  check_shared(*t.cta, address, bytes, bytes, "store", at);
  begin_write(*t.cta, address, bytes, t.lane, at);
  end_write(*t.cta, address, from, bytes, t.warp, t.lane, my_warp().clock[t.warp]);
  machine.counts.shared_store_bytes += bytes;
  if (machine.tracing) trace(kSharedStore, address, bytes, at);
}

// What it copies is read when it begins, and seen when it was waited for.
void copy(uint32_t target, const void* source, int size, int bytes, Site at) {
  Thread& t = self();
  check_shared(*t.cta, target, size, size, "copy", at);
  if (bytes < 0 || bytes > size) fail("copy of " + std::to_string(bytes) + " bytes", at);
  PendingCopy c{target, size, {}};
  if (reinterpret_cast<uintptr_t>(source) % size) fail("copy from an address that is not aligned", at);
  if (bytes) std::memcpy(c.data, check_source(source, bytes, 1, "copy", at), bytes);
  begin_write(*t.cta, target, size, t.lane, at);
  const uint32_t now = my_warp().clock[t.warp];
  for (int i = 0; i < size / 4; ++i)
    t.cta->words[target / 4 + i] = {now, uint8_t(t.warp), uint8_t(t.lane), 1};
  t.copies.push_back(c);
  ++t.groups.back();
  ++machine.counts.copies;
  machine.counts.copy_bytes += bytes;
  if (machine.tracing) {
    trace(kCopy, target, size, at);
    if (bytes) trace(kCopySource, reinterpret_cast<uintptr_t>(source), bytes, at);
  }
}

void commit_copies() { self().groups.push_back(0); }

void wait_for_copies(int left) {
  Thread& t = self();
  const int groups = int(t.groups.size()) - 1 - left;
  if (groups <= 0) return;
  int copies = 0;
  for (int g = 0; g < groups; ++g) copies += t.groups[g];
  const uint32_t now = my_warp().clock[t.warp];
  for (int i = 0; i < copies; ++i)
    end_write(*t.cta, t.copies[i].target, t.copies[i].data, t.copies[i].size, t.warp, t.lane, now);
  t.copies.erase(t.copies.begin(), t.copies.begin() + copies);
  t.groups.erase(t.groups.begin(), t.groups.begin() + groups);
}

}  // namespace symconv::host
