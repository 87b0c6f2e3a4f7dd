// What a call of the 3 x 3 kernels for Hopper is given: that of the patch kernels, with tiles of its own.
#pragma once
#include "patch/params.h"

namespace symconv {

// As PatchParams; `tile` is an index into hopper_variants(). Planes (depth) are not for these kernels, and
// the channels of a group fill whole stages where there are several groups.
#define HOPPER_FIELDS(F) PATCH_FIELDS(F)
struct HopperParams : PatchParams {};

std::string hopper_check(const HopperParams& p);
int64_t hopper_workspace(const HopperParams& p);  // bytes: the folded weights
std::string hopper_launch(const HopperParams& p, const Pointers& pointers, const Queue& queue);
std::vector<Variant> hopper_variants();

}  // namespace symconv
