// Barriers in shared memory and the copy engine of the stand-in.
#include "hopper.h"
#include "machine.h"

int cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, uint32_t rank, void* start,
                           const uint64_t* sizes, const uint64_t* strides, const uint32_t* box,
                           const uint32_t* every, CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                           CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  if (rank != 4) return 1;
  map->start = static_cast<const uint8_t*>(start);
  map->span = swizzle == CU_TENSOR_MAP_SWIZZLE_32B ? 32 : swizzle == CU_TENSOR_MAP_SWIZZLE_64B ? 64 : 128;
  map->element_bytes = type <= CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 ? 2 : 4;
  const int64_t row = int64_t{box[0]} * map->element_bytes;
  bool right = row <= map->span && row % 16 == 0 && reinterpret_cast<uintptr_t>(start) % 16 == 0;
  for (uint32_t i = 0; i < rank; ++i) {
    map->sizes[i] = sizes[i];
    map->strides[i] = i ? strides[i - 1] : map->element_bytes;
    map->box[i] = box[i];
    right = right && sizes[i] >= 1 && sizes[i] <= uint64_t{1} << 32 && box[i] >= 1 && box[i] <= 256;
    right = right && every[i] == 1;
    right = right && (i == 0 || (map->strides[i] % 16 == 0 && map->strides[i] < int64_t{1} << 40));
  }
  return right ? 0 : 1;
}

namespace symconv::host {

namespace {

Barrier& barrier_at(Cta& cta, uint32_t address, Site at) {
  if (cta.ended == machine.threads) fail("barrier of a CTA that has ended", at);
  for (Barrier& b : cta.barriers)
    if (b.address == address) return b;
  fail("no barrier was started at shared address " + std::to_string(address - kBase), at);
}

void join(uint32_t* to, const uint32_t* from) {
  for (int i = 0; i < kWidth; ++i) to[i] = max(to[i], from[i]);
}

void complete(Barrier& b) {
  if (b.pending || b.bytes) return;
  std::memcpy(b.done, b.arrived, sizeof b.done);
  b.pending = b.count;
  ++b.phase;
  for (int i = 0; i < machine.ctas * machine.threads; ++i) {
    Thread& t = machine.thread[i];
    if (t.barrier != &b || (b.phase & 1) == t.parity) continue;
    t.barrier = nullptr;
    machine.warp[t.warp].ready |= 1u << t.lane;
    machine.ready_warps |= uint64_t{1} << t.warp;
  }
}

void send(BulkCopy bulk, Site at) {
  if (bulk.data.size() % 16) fail("bulk copy of bytes that are not a multiple of 16", at);
  const Barrier& b = barrier_at(*bulk.cta, bulk.barrier, at);
  if (!b.published) fail("bulk copy: its barrier is not published", at);
  std::memcpy(bulk.clock, my_warp().clock, sizeof bulk.clock);
  const Thread& t = self();
  const uint32_t now = my_warp().clock[t.warp];
  for (const uint32_t to : bulk.to) {
    check_shared(*bulk.cta, to, 16, 16, "bulk copy", at);
    begin_write(*bulk.cta, to, 16, t.lane, at);
    for (int i = 0; i < 4; ++i) bulk.cta->words[to / 4 + i] = {now, uint8_t(t.warp), uint8_t(t.lane), 1};
  }
  machine.counts.bulk_bytes += bulk.data.size();
  machine.bulks.push_back(std::move(bulk));
}

}  // namespace

uint32_t engine_swizzle(uint32_t address, int span) { return address ^ (address >> 3 & (span - 16)); }

void start_barrier(uint32_t address, int arrivals, Site at) {
  Cta& cta = *self().cta;
  check_shared(cta, address, 8, 8, "barrier", at);
  int all = 0;
  for (int c = 0; c < machine.ctas; ++c) all += int(machine.cta[c].barriers.size());
  if (all == kMostBarriers) fail("more barriers than the stand-in has", at);
  for (const Barrier& b : cta.barriers)
    if (b.address == address) fail("barrier started twice", at);
  Barrier b{};
  b.address = address, b.count = b.pending = arrivals, b.copies = kMostWarps + all;
  std::fill_n(b.arrived, kWidth, machine.start);
  std::fill_n(b.done, kWidth, machine.start);
  cta.barriers.push_back(b);
  machine.width = kWidth;
}

void arrive(uint32_t address, int rank, int64_t bytes, Site at) {
  if (rank >= machine.ctas) fail("no CTA " + std::to_string(rank) + " in the cluster", at);
  Thread& t = self();
  Cta& cta = rank < 0 ? *t.cta : machine.cta[rank];
  Barrier& b = barrier_at(cta, address, at);
  join(b.arrived, my_warp().clock);
  tick(t.warp);
  b.bytes += bytes;
  if (--b.pending < 0) fail("barrier: more arrivals than it counts", at);
  complete(b);
}

void await(uint32_t address, uint32_t phase, Site at) {
  Thread& t = self();
  Barrier& b = barrier_at(*t.cta, address, at);
  if ((b.phase & 1) == phase) {
    t.barrier = &b;
    t.parity = phase;
    suspend("a barrier in shared memory", at);
  }
  join(my_warp().clock, b.done);
}

void publish_barriers() {
  for (Barrier& b : self().cta->barriers) b.published = true;
}

void cluster_barrier(Site at) {
  if (++machine.cluster_arrived < machine.ctas * machine.threads) return suspend("cluster_barrier()", at);
  machine.cluster_arrived = 0;
  ++machine.counts.barriers;
  meet(0, machine.warps);
}

void copy_box(uint32_t to, const CUtensorMap& map, uint32_t barrier, const int (&from)[4], Site at) {
  if (to % 128) fail("bulk copy of a box: 128 does not divide the address", at);
  const int pixel_bytes = map.box[0] * map.element_bytes;
  BulkCopy bulk{};
  bulk.cta = self().cta, bulk.barrier = barrier;
  const int pixels = map.box[1] * map.box[2] * map.box[3];
  for (int pixel = 0; pixel < pixels; ++pixel)
    for (int i = 0; i < pixel_bytes; i += 16) {
      const int64_t place[] = {from[0] + i / map.element_bytes, from[1] + pixel % map.box[1],
                               from[2] + pixel / map.box[1] % map.box[2],
                               from[3] + pixel / map.box[1] / map.box[2]};
      bool inside = true;
      int64_t offset = 0;
      for (int d = 0; d < 4; ++d) {
        inside = inside && place[d] >= 0 && place[d] < map.sizes[d];
        offset += place[d] * map.strides[d];
      }
      bulk.to.push_back(engine_swizzle(to + pixel * pixel_bytes + i, map.span));
      bulk.data.resize(bulk.data.size() + 16, 0);
      if (!inside) continue;
      const auto bytes = std::min<int64_t>(16, (map.sizes[0] - place[0]) * map.element_bytes);
      std::memcpy(&bulk.data[bulk.data.size() - 16],
                  check_source(map.start + offset, bytes, 1, "bulk copy", at), bytes);
    }
  send(std::move(bulk), at);
}

void copy_bytes(uint32_t to, const void* from, int bytes, uint32_t barrier, uint32_t ctas, Site at) {
  const uint8_t* data = check_source(from, bytes, 16, "bulk copy", at);
  if (ctas >> machine.ctas) fail("bulk copy to a CTA that is not in the cluster", at);
  if (!ctas) ctas = 1u << (self().cta - machine.cta.data());
  for (int rank = 0; rank < machine.ctas; ++rank) {
    if (!(ctas >> rank & 1)) continue;
    BulkCopy bulk{};
    bulk.cta = &machine.cta[rank], bulk.barrier = barrier;
    bulk.data.assign(data, data + bytes);
    for (int i = 0; i < bytes; i += 16) bulk.to.push_back(to + i);
    send(std::move(bulk), at);
  }
}

// One of the copies under way, by chance. What is wrong ends the launch.
void land() {
  Machine& m = machine;
  const size_t index = random_below(m.bulks.size());
  const BulkCopy bulk = std::move(m.bulks[index]);
  m.bulks.erase(m.bulks.begin() + index);
  if (bulk.cta->ended == m.threads) {
    m.fault = "bulk copy to a CTA that has ended (CTA " + std::to_string(bulk.cta->index) + ")";
    return;
  }
  for (Barrier& b : bulk.cta->barriers) {
    if (b.address != bulk.barrier) continue;
    const uint32_t when = ++b.arrived[b.copies];
    for (size_t i = 0; i < bulk.to.size(); ++i)
      end_write(*bulk.cta, bulk.to[i], &bulk.data[i * 16], 16, b.copies, kWarpWide, when);
    join(b.arrived, bulk.clock);
    b.bytes -= int64_t(bulk.data.size());
    complete(b);
  }
}

}  // namespace symconv::host
