// Runners by the numbers that calls are told apart by.
#include "operator/call_cache.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

namespace symconv {
namespace {

constexpr size_t kMaxRunners = 8192;

using Key = c10::SmallVector<int64_t, 64>;

void add(Key& key, const at::Tensor& t) {
  key.push_back(t.dim() << 16 | static_cast<int64_t>(t.device().type()) << 9 |
                static_cast<int64_t>(t.scalar_type()) << 1 | suggests_channels_last(t));
  key.append(t.sizes().begin(), t.sizes().end());
}

Key make_key(const Call& call, int64_t pin) {
  Key key;
  key.push_back(static_cast<int64_t>(call.op) << 2 | call.channels_last << 1 | call.bias.has_value());
  key.push_back(pin);
  // What choices depend on beside the arguments: the threads, and whether runs must repeat bit by bit.
  key.push_back(at::get_num_threads() * 2 +
                static_cast<int64_t>(at::globalContext().deterministicAlgorithms()));
  add(key, call.first), add(key, call.second);
  if (call.bias) add(key, *call.bias);
  key.append(call.size.begin(), call.size.end());
  key.append(call.layer.begin(), call.layer.end());
  return key;
}

struct Hash {
  using is_transparent = void;
  size_t operator()(at::IntArrayRef key) const {
    uint64_t hash = key.size();
    for (size_t i = 0; i < key.size(); i += 2) {
      const auto next = static_cast<uint64_t>(i + 1 < key.size() ? key[i + 1] : 0);
      const auto product = static_cast<unsigned __int128>(hash ^ static_cast<uint64_t>(key[i])) *
                           (next ^ 0x9E3779B97F4A7C15ull);
      hash = static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
    }
    return hash;
  }
};

struct Equal {
  using is_transparent = void;
  bool operator()(at::IntArrayRef a, at::IntArrayRef b) const { return a == b; }
};

using Runners = std::unordered_map<Ints, std::shared_ptr<const Runner>, Hash, Equal>;

// Never freed: runners may hold what belongs to an interpreter that is gone when statics are destroyed. They
// are freed, and choosers asked, while the lock is open.
struct Cache {
  std::mutex lock;
  Runners runners;
  int64_t epoch = 0;
  const Chooser* chooser = nullptr;
};
Cache& cache() {
  static auto* const held = new Cache;
  return *held;
}

}  // namespace

Ints flatten(const Layer& layer) {
  Ints row;
  for (const Ints* list :
       {&layer.ties, &layer.stride, &layer.padding, &layer.dilation, &layer.output_padding}) {
    row.push_back(static_cast<int64_t>(list->size()));
    row.insert(row.end(), list->begin(), list->end());
  }
  row.push_back(layer.transposed);
  row.push_back(layer.groups);
  return row;
}

Layer unflatten(at::IntArrayRef row) {
  const auto list = [&] {
    const auto length = static_cast<size_t>(row.front());
    Ints values = row.slice(1, length).vec();
    row = row.slice(1 + length);
    return values;
  };
  Layer layer;
  layer.ties = list(), layer.stride = list(), layer.padding = list(), layer.dilation = list();
  layer.output_padding = list();
  layer.transposed = row[0] != 0, layer.groups = row[1];
  return layer;
}

Chooser::~Chooser() = default;

void set_chooser(const Chooser* chooser) { cache().chooser = chooser; }

const Chooser* chooser() { return cache().chooser; }

std::shared_ptr<const Runner> find_runner(const Call& call) {
  Cache& c = cache();
  const Key key = make_key(call, c.chooser ? c.chooser->pin() : 0);
  int64_t epoch = 0;
  {
    const std::lock_guard<std::mutex> guard(c.lock);
    const auto found = c.runners.find(at::IntArrayRef(key));
    if (found != c.runners.end()) return found->second;
    epoch = c.epoch;
  }
  auto chosen = std::make_shared<const Runner>(c.chooser ? c.chooser->choose(call) : choose_standalone(call));
  Runners full;
  const std::lock_guard<std::mutex> guard(c.lock);
  if (epoch != c.epoch) return chosen;  // it may be a choice by the old switches
  if (c.runners.size() >= kMaxRunners) full.swap(c.runners);
  // Another thread may have been first.
  return c.runners.try_emplace(Ints(key.begin(), key.end()), chosen).first->second;
}

void forget_runners() {
  Runners old;
  const std::lock_guard<std::mutex> guard(cache().lock);
  ++cache().epoch;
  old.swap(cache().runners);
}

int64_t remembered_runners() {
  const std::lock_guard<std::mutex> guard(cache().lock);
  return static_cast<int64_t>(cache().runners.size());
}

}  // namespace symconv
