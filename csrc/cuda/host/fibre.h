// A fibre: a stack of its own that runs until it switches to another. One for each thread of a CTA.
#pragma once
#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__) || defined(__CET__) && (__CET__ & 2)
#define SYMCONV_UCONTEXT
#include <ucontext.h>
#endif

namespace symconv::host {

struct Fibre {
#ifdef SYMCONV_UCONTEXT
  ucontext_t context;
#else
  void* top = nullptr;  // of its stack, while it does not run
#endif
};

// Makes a fibre that begins with `entry`, which never returns.
void prepare(Fibre& fibre, uint8_t* stack, size_t bytes, void (*entry)());
void switch_to(Fibre& from, Fibre& to);

}  // namespace symconv::host
