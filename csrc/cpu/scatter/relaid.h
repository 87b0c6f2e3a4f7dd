// Lines of contiguous tensors for a scatter whose lanes are orbits: transposed on their way in and out.
// Included by scatter/scatter.cpp.
#pragma once

#include <algorithm>

#include "scatter/products.h"

namespace symconv {

// The rest of a scatter reads and writes copies of lines, through views (`near`) that take the place of the
// tensors (`far`).
template <class T>
class ScatterRelaid : public ScatterProducts<T> {
 public:
  ScatterRelaid(const PreparedScatter<T>& prepared, const MultiplyTensors<T>& near,
                const MultiplyTensors<T>& far)
      : ScatterProducts<T>(prepared, near), far_(far) {}

 protected:
  using Base = ScatterProducts<T>;
  using Base::p_, Base::q_, Base::plan_;
  using typename Base::Local, typename Base::Task;

  MultiplyTensors<T> nearby() const {
    MultiplyTensors<T> near = far_;
    near.source.batch_stride = near.out.batch_stride = 0;
    near.source.channel_stride = near.out.channel_stride = 1;
    near.source.stride[plan_.deep] = near.out.stride[plan_.deep] = 0;
    near.source.stride[plan_.outer] = p_.stage_ld, near.out.stride[plan_.outer] = p_.tile * p_.turned_ld;
    near.source.stride[plan_.inner] = q_.channels, near.out.stride[plan_.inner] = p_.turned_ld;
    return near;
  }

  // Brings `lines` source lines from `at` on; those that are there already are moved.
  void fetch(const Task& t, int64_t at, int64_t lines, Local& local) const {
    if (!p_.relaid) return;
    const int64_t begin = std::max<int64_t>(0, at), end = std::min(q_.in[plan_.outer], at + lines);
    int64_t next = begin;
    if (begin >= local.have_begin && begin < local.have_end) {
      next = std::min(local.have_end, end);
      const Element<T>* from = local.stage + (begin - local.have_begin) * p_.stage_ld;
      std::copy(from, from + (next - begin) * p_.stage_ld, local.stage);
    }
    turn_source(t, begin, next, end, local);
    local.have_begin = begin, local.have_end = std::max(begin, end);
    local.near.source.data = local.stage;
    local.near.source.origin = begin * p_.stage_ld + (local.stage_begin + t.group) * q_.channels;
  }

  // Results of line `o` are stored next, behind those that are there.
  void aim(const Task& t, int64_t o, Local& local) const {
    if (!p_.relaid) return;
    if (local.made_begin == local.made_end) local.made_begin = local.made_end = o;
    local.near.out.data = local.turned;
    local.near.out.origin =
        local.made_begin * local.near.out.stride[plan_.outer] + (t.first + t.group) * p_.turned_ld;
  }

  // So many lines were. They go where they belong when there is no room for as many again, or with 0.
  void emit(const Task& t, int64_t lines, Local& local) const {
    if (!p_.relaid) return;
    local.made_end += lines;
    const int64_t made = local.made_end - local.made_begin;
    if (lines && made + kLinesOut[plan_.filtering] <= p_.turned_lines) return;
    for (int member = 0; member < plan_.members(); ++member) turn_result(t, member, made, local);
    local.made_begin = local.made_end;
  }

 private:
  // Lines [next, end) to their places behind line `begin`. Whole ones follow each other without a gap.
  void turn_source(const Task& t, int64_t begin, int64_t next, int64_t end, const Local& local) const {
    const View<const Element<T>>& x = far_.source;
    const int64_t positions = local.stage_count, step = x.stride[plan_.inner];
    const bool whole = positions == p_.most_line() && x.stride[plan_.outer] == positions * step;
    const Element<T>* line = x.data + t.image * x.batch_stride + t.group * q_.channels * x.channel_stride +
                             local.stage_begin * step;
    for (int64_t count; next < end; next += count) {
      count = whole ? end - next : 1;
      p_.kernels.stage_line(line + next * x.stride[plan_.outer], step, x.channel_stride, count * positions,
                            q_.channels, local.stage + (next - begin) * p_.stage_ld, q_.channels);
    }
  }

  // Lines of one member, of the orbits of a block.
  void turn_result(const Task& t, int member, int64_t lines, const Local& local) const {
    const View<Element<T>>& y = far_.out;
    const int64_t first = t.block * p_.width, orbits = std::min(p_.width, p_.orbits - first);
    const int64_t row = member_channel(q_.segments[p_.segment], member) + first;
    const int64_t positions = t.last - t.first, step = y.stride[plan_.inner];
    const bool whole = positions == p_.tile && y.stride[plan_.outer] == positions * step;
    Element<T>* to =
        y.data + t.image * y.batch_stride + (t.group * q_.filters + row) * y.channel_stride + t.first * step;
    for (int64_t l = 0, count; l < lines; l += count) {
      count = whole ? lines : 1;
      p_.kernels.stage_line(local.turned + l * p_.tile * p_.turned_ld + row, 1, p_.turned_ld, orbits,
                            count * positions, to + (local.made_begin + l) * y.stride[plan_.outer],
                            y.channel_stride);
    }
  }

  const MultiplyTensors<T>& far_;
};

}  // namespace symconv
