/* Memory with a content that can be made again. */
#include "probe.h"

#include <stdint.h>
#define MIB (1UL << 20)
#define PAGE 4096UL
#define LARGE (24 * MIB)

/* Every `stride`th page is filled from the seed, the others are left alone. */
void fill(char *at, size_t size, size_t stride, uint64_t seed);
int is_filled(const char *at, size_t size, size_t stride, uint64_t seed);
int is_zero(const char *at, size_t size);
char *map(size_t size, int flags);
