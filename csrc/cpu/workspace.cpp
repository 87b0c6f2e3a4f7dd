// Working memory that threads keep from call to call.
#include "workspace.h"

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <utility>
#include <vector>

#include "export.h"
#include "selection/counting.h"

namespace symconv {
namespace {

// Buffers that the calling thread has used and may use again. Memory that goes back to the system
// after every call comes back page by page: at 512 channels on a 7 x 7 map that took as long as the
// convolution. At most kKept bytes are kept.
class Workspace {
 public:
  static constexpr int64_t kKept = 32 << 20, kSmall = 64 << 10;

  static Workspace& of_thread() {
    static thread_local Workspace workspace;
    return workspace;
  }

  // The smallest that will do, but none of many times the size: a larger request that follows would find
  // nothing. Where there is none, the new one takes the place of the largest that was too small, so that
  // layers of a network share buffers instead of keeping a set each.
  at::Tensor take(int64_t bytes) {
    auto best = free_.end(), small = free_.end();
    for (auto it = free_.begin(); it != free_.end(); ++it) {
      if (it->numel() < bytes) {
        if (small == free_.end() || it->numel() > small->numel()) small = it;
      } else if (it->numel() <= 4 * bytes + kSmall && (best == free_.end() || it->numel() < best->numel())) {
        best = it;
      }
    }
    if (best == free_.end()) {
      if (small != free_.end()) free_.erase(small);
      return at::empty({bytes}, at::TensorOptions().dtype(at::kByte));
    }
    at::Tensor found = std::move(*best);
    free_.erase(best);
    return found;
  }

  void give_back(at::Tensor buffer) {
    // In deterministic mode fresh memory is filled, so that a read before a write shows in tests.
    if (at::globalContext().deterministicAlgorithms()) return;
    free_.push_back(std::move(buffer));
    while (bytes() > kKept) free_.erase(free_.begin());
  }

  int64_t bytes() const {
    int64_t sum = 0;
    for (const at::Tensor& buffer : free_) sum += buffer.numel();
    return sum;
  }

  void clear() { free_.clear(); }

 private:
  std::vector<at::Tensor> free_;  // oldest first
};

}  // namespace

Buffer take_buffer(int64_t bytes) {
  at::Tensor buffer = Workspace::of_thread().take(bytes);
  void* const data = buffer.data_ptr();
  c10::TensorImpl* const owner = buffer.unsafeReleaseTensorImpl();
  if (counting() != Counting::off) count_taken(owner, bytes);
  return {data, owner};
}

void give_back(Buffer buffer) {
  if (counting() != Counting::off) count_given_back(buffer.owner);
  using Owner = c10::intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;
  Workspace::of_thread().give_back(at::Tensor(Owner::reclaim(buffer.owner)));
}

void clear_workspace() { Workspace::of_thread().clear(); }

}  // namespace symconv
