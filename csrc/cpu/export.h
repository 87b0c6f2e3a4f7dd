// What other libraries, the Python module first of all, may call of this one.
#pragma once

#define SYMCONV_API __attribute__((visibility("default")))

namespace symconv {

// In use: amx_bf16, avx512_bf16, avx512, avx2 or baseline.
SYMCONV_API const char* instruction_set();

// Intel or AMD; empty for other makers of CPUs.
SYMCONV_API const char* cpu_maker();

// Gives the buffers that the calling thread keeps for its next call back to the system.
SYMCONV_API void clear_workspace();

}  // namespace symconv
