// The gradient of the input as a convolution of the output's gradient, in the words of the patch kernels.
#pragma once
#include "hopperdgrad/params.h"
#include "patch/params.h"

namespace symconv {

// What is read is y, what is written x; channels that are summed are rows of the weight, orbits channels of
// x.
inline PatchParams as_patch(const HopperdgradParams& p) {
  PatchParams q;
  q.dtype = p.dtype, q.batch = p.batch, q.depth = 1, q.height = p.height, q.width = p.width;
  q.groups = p.groups, q.channels = p.rows, q.orbits = p.channels, q.mask = p.mask, q.tile = p.tile;
  q.x_n = p.y_n, q.x_y = p.y_y, q.x_x = p.y_x;
  q.y_n = p.x_n, q.y_y = p.x_y, q.y_x = p.x_x;
  q.w_group = p.w_group, q.w_row = p.w_channel, q.w_channel = p.w_row, q.w_y = p.w_y, q.w_x = p.w_x;
  return q;
}

}  // namespace symconv
