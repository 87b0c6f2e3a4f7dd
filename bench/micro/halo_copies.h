// Copies and barriers of the stand-in of a cluster: cp.async, mbarrier, the copy engine.
#pragma once
#include "halo_fibres.h"

namespace halo {

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

}  // namespace halo
