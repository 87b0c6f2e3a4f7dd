/* Every block that torch allocates between pages that cannot be touched. Loaded before everything else by guard.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE 4096
#define SLOTS (1 << 18) /* blocks at a time; a power of two */

struct block {
  char *user, *base;
  size_t length;
};

static struct block blocks[SLOTS]; /* hashed by the address that the user has, with linear probing */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static void (*next_free)(void*);

static size_t slot_of(const void* user) { return ((uintptr_t)user >> 4) * 0x9E3779B97F4A7C15ull >> 46 & (SLOTS - 1); }

static void remember(struct block b) {
  pthread_mutex_lock(&lock);
  size_t i = slot_of(b.user);
  for (size_t tried = 0; blocks[i].user; i = (i + 1) & (SLOTS - 1))
    if (++tried == SLOTS) abort();
  blocks[i] = b;
  pthread_mutex_unlock(&lock);
}

/* What comes after an empty slot is never found: blocks that belong before it move there. */
static void close_gap(size_t gap) {
  for (size_t i = (gap + 1) & (SLOTS - 1); blocks[i].user; i = (i + 1) & (SLOTS - 1)) {
    const size_t wanted = slot_of(blocks[i].user);
    if (((i - wanted) & (SLOTS - 1)) < ((i - gap) & (SLOTS - 1))) continue;
    blocks[gap] = blocks[i];
    gap = i;
  }
  blocks[gap] = (struct block){0};
}

static struct block forget(void* user) {
  struct block found = {0};
  pthread_mutex_lock(&lock);
  for (size_t i = slot_of(user); blocks[i].user; i = (i + 1) & (SLOTS - 1))
    if (blocks[i].user == user) {
      found = blocks[i];
      close_gap(i);
      break;
    }
  pthread_mutex_unlock(&lock);
  return found;
}

/* SYMCONV_FAST_GUARD=end: the block ends where the page behind it begins, but for the alignment; begin: it begins where
   the page before it ends. Fresh memory is all ones, which is not a number. */
int posix_memalign(void** out, size_t alignment, size_t size) {
  static int at_end = -1;
  if (at_end < 0) {
    const char* mode = getenv("SYMCONV_FAST_GUARD");
    at_end = !mode || strcmp(mode, "begin");
  }
  const size_t rounded = (size + alignment - 1) / alignment * alignment;
  const size_t data = (rounded + PAGE - 1) / PAGE * PAGE, length = data + 2 * PAGE;
  if (alignment > PAGE) return EINVAL;
  char* base = mmap(NULL, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return ENOMEM;
  if (data && mprotect(base + PAGE, data, PROT_READ | PROT_WRITE)) return ENOMEM;
  memset(base + PAGE, 0xff, data);
  *out = at_end ? base + PAGE + data - rounded : base + PAGE;
  remember((struct block){*out, base, length});
  return 0;
}

void free(void* user) {
  if (!user) return;
  const struct block found = forget(user);
  if (found.base) {
    munmap(found.base, found.length);
    return;
  }
  if (!next_free) next_free = (void (*)(void*))dlsym(RTLD_NEXT, "free");
  next_free(user);
}
