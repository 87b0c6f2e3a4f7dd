// Global memory of the stand-in: only what was registered, and each place written by one thread of a launch.
#include "machine.h"

namespace symconv::host {

namespace {

constexpr int kPlace = 2;  // bytes that know their writer

// The registered buffer around some bytes.
Buffer& around(const void* start, int64_t bytes, const std::string& what, Site at) {
  Machine& m = machine;
  const auto* p = static_cast<const uint8_t*>(start);
  const auto holds = [&](const Buffer& b) { return p >= b.start && p + bytes <= b.start + b.bytes; };
  if (m.last_buffer < m.buffers.size() && holds(m.buffers[m.last_buffer])) return m.buffers[m.last_buffer];
  for (size_t i = 0; i < m.buffers.size(); ++i)
    if (holds(m.buffers[i])) {
      m.last_buffer = i;
      return m.buffers[i];
    }
  std::string near;
  int64_t nearest = 1 << 20;
  for (const Buffer& b : m.buffers) {
    const int64_t off = p < b.start ? b.start - p : p + bytes - (b.start + b.bytes);
    if (off >= nearest) continue;
    nearest = off;
    near = ": " + std::to_string(p - b.start) + " bytes from the start of one of " + std::to_string(b.bytes);
  }
  fail(what + " outside of the registered buffers" + near, at);
}

void check_aligned(const void* p, int64_t alignment, const std::string& what, Site at) {
  if (reinterpret_cast<uintptr_t>(p) % alignment)
    fail(what + " of " + std::to_string(alignment) + " bytes is not aligned", at);
}

uint32_t my_name() {
  const Place& p = self().place;
  return machine.first_writer + uint32_t(p.block) * uint32_t(p.threads) + p.thread;
}

void release(Buffer& b) {
  std::free(b.written);
  b.written = nullptr;
}

}  // namespace

// Of a buffer that kernels write, only what an earlier launch has written.
const uint8_t* check_source(const void* from, int64_t bytes, int alignment, const char* what, Site at) {
  check_aligned(from, alignment, what, at);
  const Buffer& b = around(from, bytes, what, at);
  const auto* p = static_cast<const uint8_t*>(from);
  if (!b.written) return p;
  for (int64_t i = (p - b.start) / kPlace; i < (p - b.start + bytes + kPlace - 1) / kPlace; ++i) {
    if (!b.written[i] && !machine.sample)
      fail(std::string(what) + " of what no kernel wrote, from a buffer to write", at);
    if (b.written[i] >= machine.first_writer)
      fail(std::string(what) + " of what the same launch writes: only work_load() may", at);
  }
  return p;
}

void global_read(const void* from, void* to, int bytes, Site at) {
  std::memcpy(to, check_source(from, bytes, bytes, "load", at), bytes);
  machine.counts.global_load_bytes += bytes;
  if (machine.tracing) trace(kGlobalLoad, reinterpret_cast<uintptr_t>(from), bytes, at);
}

// What threads of the same CTA have written it may read too; it is for the kernel to put a barrier between.
void work_read(const void* from, void* to, int bytes, Site at) {
  check_aligned(from, bytes, "work_load", at);
  const Buffer& b = around(from, bytes, "work_load", at);
  const auto* p = static_cast<const uint8_t*>(from);
  const Place& place = self().place;
  const uint32_t first = machine.first_writer + uint32_t(place.block) * uint32_t(place.threads);
  for (int64_t i = (p - b.start) / kPlace; b.written && i < (p - b.start + bytes) / kPlace; ++i) {
    if (!b.written[i] && !machine.sample) fail("work_load of what no kernel wrote", at);
    if (b.written[i] >= machine.first_writer && b.written[i] - first >= uint32_t(place.threads))
      fail("work_load of what another CTA of the same launch wrote", at);
  }
  std::memcpy(to, p, bytes);
  machine.counts.global_load_bytes += bytes;
  if (machine.tracing) trace(kGlobalLoad, reinterpret_cast<uintptr_t>(from), bytes, at);
}

void global_write(void* to, const void* from, int bytes, Site at) {
  check_aligned(to, bytes, "store", at);
  const Buffer& b = around(to, bytes, "store", at);
  if (!b.written) fail("store to a buffer that is only read", at);
  const auto* p = static_cast<const uint8_t*>(to);
  const uint32_t me = my_name();
  for (int64_t i = (p - b.start) / kPlace; i < (p - b.start + bytes) / kPlace; ++i) {
    if (b.written[i] >= machine.first_writer && b.written[i] != me) {
      const uint32_t other = b.written[i] - machine.first_writer;
      fail("store where thread " + std::to_string(other % self().place.threads) + " of CTA " +
               std::to_string(other / self().place.threads) + " has written, byte " +
               std::to_string(i * kPlace) + " of the buffer",
           at);
    }
    b.written[i] = me;
  }
  std::memcpy(to, from, bytes);
  machine.counts.global_store_bytes += bytes;
  if (machine.tracing) trace(kGlobalStore, reinterpret_cast<uintptr_t>(to), bytes, at);
}

void register_buffer(const void* start, int64_t bytes, bool writable) {
  const auto* p = static_cast<const uint8_t*>(start);
  auto& buffers = machine.buffers;
  for (size_t i = 0; i < buffers.size();)
    if (buffers[i].start < p + bytes && p < buffers[i].start + buffers[i].bytes) {
      release(buffers[i]);
      buffers.erase(buffers.begin() + i);
    } else {
      ++i;
    }
  if (bytes <= 0) return;
  Buffer b{p, bytes, nullptr};
  if (writable) {
    b.written = static_cast<uint32_t*>(std::calloc((bytes + kPlace - 1) / kPlace, sizeof(uint32_t)));
    if (!b.written) throw std::bad_alloc();
  }
  buffers.push_back(b);
}

void forget_buffer(const void* start) {
  auto& buffers = machine.buffers;
  for (size_t i = 0; i < buffers.size(); ++i)
    if (buffers[i].start == start) {
      release(buffers[i]);
      buffers.erase(buffers.begin() + i);
      return;
    }
}

void forget_buffers() {
  for (Buffer& b : machine.buffers) release(b);
  machine.buffers.clear();
}

}  // namespace symconv::host
