// Counts of the stand-in by access: what lanes of a warp do at the same place of the source, the same time
// round between two instructions of the whole warp, is one instruction of theirs.
#include <algorithm>
#include <vector>

#include "machine.h"

namespace symconv::host {

namespace {

constexpr int kBank = 4, kBanks = 32, kSector = 32;

// Bytes of each access are taken by quarter warps of 16, halves of 8, wholes of 4 bytes a lane.
int shared_wavefronts(const std::vector<Access>& lanes) {
  const int together = kBanks * kBank / std::max(lanes[0].bytes, kBank);
  int all = 0;
  for (size_t first = 0; first < lanes.size(); first += together) {
    std::vector<uint64_t> words;
    for (size_t i = first; i < std::min(first + together, lanes.size()); ++i)
      for (int b = 0; b < lanes[i].bytes; b += kBank) words.push_back((lanes[i].address + b) / kBank);
    std::sort(words.begin(), words.end());
    words.erase(std::unique(words.begin(), words.end()), words.end());
    int banks[kBanks] = {}, most = 0;
    for (const uint64_t w : words) most = std::max(most, ++banks[w % kBanks]);
    all += most;
  }
  return all;
}

int sectors(const std::vector<Access>& lanes) {
  std::vector<uint64_t> all;
  for (const Access& a : lanes)
    for (uint64_t s = a.address / kSector; s <= (a.address + a.bytes - 1) / kSector; ++s) all.push_back(s);
  std::sort(all.begin(), all.end());
  return int(std::unique(all.begin(), all.end()) - all.begin());
}

void count(const std::vector<Access>& lanes) {
  Counts& c = machine.counts;
  switch (lanes[0].kind) {
    case kSharedLoad:
      ++c.shared_loads, c.shared_load_wavefronts += shared_wavefronts(lanes);
      break;
    case kSharedStore:
      ++c.shared_stores, c.shared_store_wavefronts += shared_wavefronts(lanes);
      break;
    case kCopy:
      c.copy_wavefronts += shared_wavefronts(lanes);
      break;
    case kCopySource:
      c.copy_sectors += sectors(lanes);
      break;
    case kGlobalLoad:
      ++c.global_loads, c.load_sectors += sectors(lanes);
      break;
    case kGlobalStore:
      ++c.global_stores, c.store_sectors += sectors(lanes);
      break;
  }
}

bool same_place(const Access& a, const Access& b) {
  return a.kind == b.kind && a.line == b.line && a.column == b.column && a.file == b.file;
}

}  // namespace

void trace(Traced kind, uint64_t address, int bytes, Site at) {
  my_warp().log[self().lane].push_back({at.line(), at.column(), at.file_name(), address, bytes, kind});
}

// Takes the first access left of some lane, and with it the first of each lane that is at the same place.
void flush_trace(Warp& warp) {
  size_t next[32] = {};
  std::vector<Access> lanes;
  for (int leader = 0; leader < 32;) {
    if (next[leader] == warp.log[leader].size()) {
      ++leader;
      continue;
    }
    const Access& first = warp.log[leader][next[leader]];
    lanes.clear();
    for (int l = leader; l < 32; ++l) {
      if (next[l] == warp.log[l].size()) continue;
      const Access& a = warp.log[l][next[l]];
      if (!same_place(a, first)) continue;
      lanes.push_back(a);
      ++next[l];
    }
    count(lanes);
  }
  for (auto& log : warp.log) log.clear();
}

}  // namespace symconv::host
