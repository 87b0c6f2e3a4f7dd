// From flat ties to blocks of input channels.
#include "selection/flat_ties.h"

#include <algorithm>
#include <numeric>

namespace symconv {
namespace {

using Table = std::vector<int64_t>;

constexpr int64_t kMostRows = 1 << 24;
// Runs of channels that are worth a part of their own.
constexpr size_t kMostRuns = 8;
constexpr int64_t kShortestRun = 8;
constexpr const char* kMalformed = "its ties are not well formed";

// [mask, rows, ...] of orbits, in the order of output channels.
bool read_orbits(const int64_t* moves, size_t count, Head& head) {
  if (count < 2 || moves[0] < 1 || moves[0] > kMostRows || moves[1] < 0 ||
      count != 2 + 2 * static_cast<size_t>(moves[1]))
    return false;
  const int64_t groups = moves[0], segments = moves[1];
  int64_t rows = 0, filters = 0;  // of a group
  for (int64_t i = 0; i < segments; ++i) {
    const int64_t mask = moves[2 + 2 * i], each = moves[3 + 2 * i];
    if (mask < 0 || mask > 7 || each < 0 || each > kMostRows || each % groups) return false;
    head.letters |= each ? static_cast<int>(mask) : 0;
    rows += each / groups, filters += each / groups * Tie(static_cast<int>(mask)).members();
  }
  for (int letter = 0; letter < kAxes; ++letter) {
    if (!(head.letters >> letter & 1)) continue;
    head.partners[letter].resize(groups * filters);
    std::iota(head.partners[letter].begin(), head.partners[letter].end(), 0);
  }
  for (int64_t group = 0; group < groups; ++group) {
    int64_t first = group * filters, copies = first + rows;
    for (int64_t i = 0; i < segments; ++i) {
      const Segment segment(moves[2 + 2 * i], moves[3 + 2 * i] / groups, first, copies, {});
      for (int axis = 0; axis < segment.tie.axes(); ++axis)
        for (int member = 0; member < segment.tie.members(); ++member)
          for (int64_t row = 0; row < segment.rows; ++row)
            head.partners[kAxes - 1 - segment.tie.axis(axis)][member_channel(segment, member) + row] =
                member_channel(segment, member ^ 1 << axis) + row;
      first += segment.rows, copies += segment.copied();
    }
  }
  return true;
}

bool is_involution(const Table& table) {
  const auto channels = static_cast<int64_t>(table.size());
  for (int64_t c = 0; c < channels; ++c)
    if (table[c] < 0 || table[c] >= channels || table[table[c]] != c) return false;
  return true;
}

bool read_tables(const int64_t* moves, size_t count, Head& head) {
  if (count < 2 || moves[0] < 1 || moves[1] < 1 || moves[1] > 7) return false;
  const auto channels = static_cast<size_t>(moves[0]);
  head.letters = static_cast<int>(moves[1]);
  if (count != 2 + Tie(head.letters).axes() * channels) return false;
  const int64_t* at = moves + 2;
  for (int letter = 0; letter < kAxes; ++letter) {
    if (!(head.letters >> letter & 1)) continue;
    head.partners[letter].assign(at, at + channels);
    if (!is_involution(head.partners[letter])) return false;
    at += channels;
  }
  return true;
}

// Orbits of channels of a group with the same stabilizer.
struct Kind {
  Tie tie;
  std::vector<std::array<int64_t, 1 << kAxes>> orbits;  // by member; block 0 has the lowest channel
};

// Of a channel, its images by all members of a tie.
std::array<int64_t, 1 << kAxes> images_of(const Head& head, const Tie& tie, int64_t channel) {
  std::array<int64_t, 1 << kAxes> image{};
  for (int member = 0; member < tie.members(); ++member) {
    image[member] = channel;
    for (int i = 0; i < tie.axes(); ++i)
      if (member >> i & 1) image[member] = head.partners[kAxes - 1 - tie.axis(i)][image[member]];
  }
  return image;
}

// Orbits of a kind whose blocks are runs of channels.
struct Run {
  const Kind* kind;
  size_t begin, end;
  int64_t size() const { return static_cast<int64_t>(end - begin); }
};

std::vector<Run> runs_of(const std::vector<Kind>& kinds) {
  std::vector<Run> runs;
  for (const Kind& kind : kinds)
    for (size_t i = 0; i < kind.orbits.size(); ++i) {
      bool follows = i > 0;
      for (int member = 0; follows && member < kind.tie.members(); ++member)
        follows = kind.orbits[i][member] == kind.orbits[i - 1][member] + 1;
      if (!follows) runs.push_back({&kind, i, i});
      runs.back().end = i + 1;
    }
  return runs;
}

// Few runs of some channels are parts by themselves, where they lie; so is a kind that is one run.
bool are_parts(const std::vector<Run>& runs, size_t kinds) {
  return runs.size() == kinds ||
         (runs.size() <= kMostRuns &&
          std::all_of(runs.begin(), runs.end(), [](auto& run) { return run.size() >= kShortestRun; }));
}

Inputs sorted_by_kind(const std::vector<Kind>& kinds) {
  const std::vector<Run> runs = runs_of(kinds);
  Inputs inputs;
  if (are_parts(runs, kinds.size())) {
    for (const Run& run : runs)
      inputs.parts.push_back({run.kind->tie, run.size(), run.kind->orbits[run.begin]});
    return inputs;
  }
  int64_t place = 0;
  for (const Kind& kind : kinds) {
    const auto size = static_cast<int64_t>(kind.orbits.size());
    Blocks& part = inputs.parts.emplace_back(Blocks{kind.tie, size});
    for (int member = 0; member < kind.tie.members(); ++member) {
      part.at[member] = place + member * size;
      for (const auto& orbit : kind.orbits) inputs.order.push_back(orbit[member]);
    }
    place += size * kind.tie.members();
  }
  return inputs;
}

Blocks all_of(int64_t channels) { return {Tie(), channels}; }

}  // namespace

Head read_head(const std::vector<int64_t>& ties, int64_t groups) {
  if (ties.empty() || ties[0] >= 0) return {};
  Head head;
  const auto refused = [&](const char* reason) {
    head.reason = reason;
    return head;
  };
  head.length = ties.size();
  const auto length = static_cast<size_t>(-ties[0]);
  if (length < 4 || length > ties.size() || ties[2] < 0 || static_cast<size_t>(ties[2]) + 4 > length)
    return refused(kMalformed);
  head.length = length;
  head.kernel.assign(ties.begin() + 3, ties.begin() + 3 + ties[2]);
  const int64_t* moves = ties.data() + 3 + ties[2];
  const size_t rest = length - 4 - head.kernel.size();
  head.across = ties[1] != 0;
  if (head.across) return refused("its mirrors exchange groups");
  const bool fits = moves[0] == 1   ? read_orbits(moves + 1, rest, head)
                    : moves[0] == 2 ? read_tables(moves + 1, rest, head)
                                    : moves[0] == 0 && rest == 0;
  return fits && head.channels() % groups == 0 ? head : refused(kMalformed);
}

Inputs read_inputs(const Head& head, const Tie& tie, int64_t channels) {
  const Tie moved = tie.without(tie.without(Tie(head.letters)));
  if (moved.axes() == 0) return {{all_of(channels)}, {}};
  std::array<Kind, 1 << kAxes> by_mask;
  for (int64_t c = 0; c < head.channels(); ++c) {
    const auto image = images_of(head, moved, c), alike = images_of(head, moved, c % channels);
    const int64_t group = c / channels;
    Tie own = moved;
    int fixed = 0;
    for (int member = 0; member < moved.members(); ++member) {
      if (image[member] / channels != group) return {{}, {}, "its mirrors exchange groups"};
      if (image[member] != alike[member] + group * channels)
        return {{}, {}, "its mirrors move input channels of one group otherwise than those of another"};
      fixed += image[member] == c;
    }
    for (int i = 0; i < moved.axes(); ++i)
      if (image[1 << i] == c) own = own.without(moved.axis(i));
    if (fixed * own.members() != moved.members())
      return {{}, {}, "mirrors along two axes move an input channel alike"};
    const bool first = *std::min_element(image.begin(), image.begin() + moved.members()) == c;
    if (group > 0 || !first) continue;
    Kind& kind = by_mask[own.mask()];
    kind.tie = own;
    auto& orbit = kind.orbits.emplace_back();
    for (int member = 0; member < own.members(); ++member)
      orbit[member] = image[moved.member_of(own, member)];
  }
  std::vector<Kind> kinds;
  for (Kind& kind : by_mask)
    if (!kind.orbits.empty()) kinds.push_back(std::move(kind));
  return sorted_by_kind(kinds);
}

std::vector<Blocks> inputs_of(const Tie& tie, const std::vector<Blocks>& parts, int64_t channels) {
  std::vector<Blocks> own;
  bool moves = false;
  for (const Blocks& part : parts) {
    const Tie still = part.tie.without(tie), moved = part.tie.without(still);
    moves = moves || moved.axes() > 0;
    for (int other = 0; other < still.members(); ++other) {
      Blocks& some = own.emplace_back(Blocks{moved, part.size});
      for (int member = 0; member < moved.members(); ++member)
        some.at[member] = part.at[part.tie.member_of(still, other) | part.tie.member_of(moved, member)];
    }
  }
  if (!moves) return {all_of(channels)};
  std::sort(own.begin(), own.end(), [](const Blocks& a, const Blocks& b) { return a.at[0] < b.at[0]; });
  int64_t kept = 0;
  for (Blocks& some : own) some.kept = kept, kept += some.size;
  return own;
}

}  // namespace symconv
