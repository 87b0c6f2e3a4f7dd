// The map of a tensor for the copy engine, made by the driver.
#pragma once
#include "hopper/device_hopper.h"

namespace symconv {

// The driver's encoder, or null.
inline decltype(&cuTensorMapEncodeTiled) encoder() {
#ifdef __CUDACC__
  void* found = nullptr;
  cudaDriverEntryPointQueryResult state;
#if CUDART_VERSION >= 12050
  const auto e =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &state);
#else
  const auto e = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &state);
#endif
  const bool there = e == cudaSuccess && state == cudaDriverEntryPointSuccess;
  return there ? reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found) : nullptr;
#else
  return &cuTensorMapEncodeTiled;
#endif
}

// Four axes of elements of 16 bits, the innermost first; strides of the others in bytes; swizzled over `span`
// bytes, 32, 64 or 128. Text of the error, or nothing.
inline std::string make_map(CUtensorMap& map, int64_t dtype, const void* start, const uint64_t (&sizes)[4],
                            const uint64_t (&strides)[3], const uint32_t (&box)[4], int span) {
  static const auto encode = encoder();
  if (!encode) return "the driver has no cuTensorMapEncodeTiled";
  const cuuint64_t all_sizes[] = {sizes[0], sizes[1], sizes[2], sizes[3]};
  const cuuint64_t all_strides[] = {strides[0], strides[1], strides[2]};
  const cuuint32_t every[] = {1, 1, 1, 1};
  const auto type = dtype == 0 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const int error = encode(&map, type, 4, const_cast<void*>(start), all_sizes, all_strides, box, every,
                           CU_TENSOR_MAP_INTERLEAVE_NONE,
                           span == 32   ? CU_TENSOR_MAP_SWIZZLE_32B
                           : span == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                        : CU_TENSOR_MAP_SWIZZLE_128B,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return error ? "cuTensorMapEncodeTiled: error " + std::to_string(error) : std::string();
}

}  // namespace symconv
