// The smallest family that can be built: y[i] = scale x[i]. Its parameters, listed once.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "launch.h"

namespace symconv {

#define TINY_FIELDS(F) F(dtype) F(count) F(scale)

struct TinyParams {
#define SYMCONV_DECLARE(name) int64_t name = 0;
  TINY_FIELDS(SYMCONV_DECLARE)
#undef SYMCONV_DECLARE
};

std::string tiny_check(const TinyParams& params);
int64_t tiny_workspace(const TinyParams& params);
std::string tiny_launch(const TinyParams& params, const Pointers& pointers, const Queue& queue);
std::vector<Variant> tiny_variants();

}  // namespace symconv
