// Switching between fibres: what calls preserve is pushed, the stack is changed, and popped.
#include "fibre.h"

#include <cstring>

namespace symconv::host {

#ifdef SYMCONV_UCONTEXT

void prepare(Fibre& fibre, uint8_t* stack, size_t bytes, void (*entry)()) {
  getcontext(&fibre.context);
  fibre.context.uc_stack.ss_sp = stack;
  fibre.context.uc_stack.ss_size = bytes;
  fibre.context.uc_link = nullptr;
  makecontext(&fibre.context, entry, 0);
}
void switch_to(Fibre& from, Fibre& to) { swapcontext(&from.context, &to.context); }

#else

extern "C" void symconv_switch_stack(void** from, void* to);
asm(R"(
.text
.hidden symconv_switch_stack
.globl symconv_switch_stack
.type symconv_switch_stack, @function
symconv_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size symconv_switch_stack, .-symconv_switch_stack
)");

void prepare(Fibre& fibre, uint8_t* stack, size_t bytes, void (*entry)()) {
  auto* top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack + bytes) & ~uintptr_t{15});
  *--top = nullptr;  // where `entry` would return to; 16 divides the address of it plus 8, as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fibre.top = top;
}
void switch_to(Fibre& from, Fibre& to) { symconv_switch_stack(&from.top, to.top); }

#endif

}  // namespace symconv::host
