// Problems from their descriptions: axes are right-aligned, those that are missing have extent 1.
#include "selection/description.h"

#include <c10/util/Exception.h>

#include <utility>

#include "selection/flat_ties.h"

namespace symconv {
namespace {

// The last values of `v`, from place `from` on, on the last axes.
Triple aligned(const Ints& v, size_t from, int64_t fill) {
  Triple t;
  t.fill(fill);
  for (size_t i = from; i < v.size(); ++i) t[kAxes - v.size() + i] = v[i];
  return t;
}

void check(const Description& d) {
  const size_t dims = d.weight.size() - 2;
  TORCH_CHECK(d.weight.size() >= 3 && d.weight.size() <= 5, "weight must have 3, 4 or 5 dims, got ",
              d.weight.size());
  TORCH_CHECK(d.input.size() == dims + 2 && d.output.size() == dims + 2, "input and output must have ",
              dims + 2, " dims, got ", d.input.size(), " and ", d.output.size());
  TORCH_CHECK(d.stride.size() == dims && d.padding.size() == dims && d.dilation.size() == dims,
              "stride, padding and dilation must have ", dims, " values each");
  TORCH_CHECK(d.groups >= 1, "groups must be at least 1, got ", d.groups);
}

// Orbits across groups, of one input channel each: rows and output channels are those of a layer of one
// group.
void lay_across(const Description& d, size_t first, Problem& p) {
  const int64_t rows = d.weight[0], channels = d.output[1];
  const Blocks none{Tie(), 1};
  int64_t row = 0, copies = rows;
  for (size_t i = first; i < d.ties.size(); i += 2) {
    const Segment s(d.ties[i], d.ties[i + 1], row, copies, {none});
    row += s.rows, copies += s.copied();
    TORCH_CHECK(s.rows >= 0 && row <= rows && copies <= channels, "ties do not fit the weight of ", rows,
                " rows for ", channels, " filters");
    p.across.resize(channels);
    for (int g = 0; g < s.members(); ++g)
      for (int64_t r = 0; r < s.rows; ++r)
        p.across[member_channel(s, g) + r] = {s.first + r, kAllAxes.member_of(s.tie, g)};
  }
  TORCH_CHECK(row == rows && copies == channels, "ties do not fit the weight: ", row, " rows and ", copies,
              " filters, expected ", rows, " and ", channels);
  p.orbits = p.filters;
  p.segments.emplace_back(0, p.filters, 0, p.filters, std::vector<Blocks>{none});
}

}  // namespace

Problem make_problem(const Description& d) {
  check(d);
  Problem p;
  p.batch = d.input[0];
  p.groups = d.groups;
  p.channels = d.input[1] / d.groups;
  p.filters = d.output[1] / d.groups;
  p.orbits = d.transposed ? d.weight[1] : d.weight[0] / d.groups;
  p.in = aligned(d.input, 2, 1), p.out = aligned(d.output, 2, 1), p.kernel = aligned(d.weight, 2, 1);
  p.stride = aligned(d.stride, 0, 1), p.padding = aligned(d.padding, 0, 0);
  p.dilation = aligned(d.dilation, 0, 1);
  p.transposed = d.transposed;
  const Head head = read_head(d.ties, d.groups);
  p.refused = head.reason;
  if (head.across && head.kernel.empty() && p.channels == 1 && !p.transposed) {
    p.refused = nullptr;
    lay_across(d, head.length, p);
  }
  if (head.across || p.refused) return p;  // its weight may have other sizes
  if (!head.kernel.empty()) {
    TORCH_CHECK(static_cast<int>(head.kernel.size()) == d.dims(), "ties are of ", head.kernel.size(),
                " dims, not ", d.dims());
    p.kernel = aligned(head.kernel, 0, 1);
  }
  TORCH_CHECK((d.ties.size() - head.length) % 2 == 0, "ties must be [mask, rows, ...]");
  int mask = 0;
  for (size_t i = head.length; i < d.ties.size(); i += 2) mask |= static_cast<int>(d.ties[i] & 7);
  TORCH_CHECK(head.channels() == 0 || head.channels() == d.input[1], "ties are of ", head.channels(),
              " input channels, not ", d.input[1]);
  Inputs inputs = read_inputs(head, Tie(mask), p.channels);
  p.refused = inputs.reason;
  if (p.refused) return p;
  int64_t row = 0, copies = p.orbits;
  for (size_t i = head.length; i < d.ties.size(); i += 2) {
    const Tie tie(static_cast<int>(d.ties[i] & 7));
    const Segment& s = p.segments.emplace_back(d.ties[i], d.ties[i + 1] / d.groups, row, copies,
                                               inputs_of(tie, inputs.parts, p.channels));
    row += s.rows;
    copies += s.copied();
  }
  p.order = std::move(inputs.order);
  const int64_t kept = d.transposed ? d.weight[0] / d.groups : d.weight[1];
  TORCH_CHECK(p.segments.empty() || kept == p.segments[0].kept_channels(), "weight has ", kept,
              " channels in a group, expected ", p.segments[0].kept_channels());
  TORCH_CHECK(row == p.orbits && copies == p.filters, "ties do not fit the weight: ", row, " rows and ",
              copies, " filters in a group, expected ", p.orbits, " and ", p.filters);
  return p;
}

}  // namespace symconv
