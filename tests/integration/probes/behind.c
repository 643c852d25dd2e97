/* What a process does with its memory while that is still being filled. */
#include "memory.h"

#include <pthread.h>
#include <sys/mman.h>

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

/* The first `size` bytes of what `is_filled` would look at, from `skip` bytes on. */
static int goes_on(const char *at, size_t skip, size_t size, uint64_t seed)
{
    char *whole = map(skip + size, MAP_PRIVATE);
    fill(whole, skip + size, 1, seed);
    int good = memcmp(at, whole + skip, size) == 0;
    munmap(whole, skip + size);
    return good;
}

/* A child looks at memory, writes there, and says by its exit code whether all was as it is to be. */
static int in_a_child(char *at, uint64_t seed, int generations)
{
    pid_t child = fork();
    if (child < 0) return 0;
    if (child == 0) {
        int good = generations == 0 || in_a_child(at, seed, generations - 1);
        good &= madvise(at, 4 * MIB, MADV_DONTNEED) == 0 && is_zero(at, 4 * MIB);
        good &= goes_on(at + 4 * MIB, 4 * MIB, LARGE - 4 * MIB, seed);
        fill(at, LARGE, 1, seed + 1);
        _exit(good && is_filled(at, LARGE, 1, seed + 1) ? 0 : 1);
    }
    int status = 1;
    return waitpid(child, &status, 0) == child && status == 0;
}

struct touched {
    char *at;
    size_t first;
    uint64_t wrong;
};

/* Each thread goes through all of it in an order of its own. */
static void *touch(void *of)
{
    struct touched *here = of;
    for (size_t count = 0; count < LARGE / PAGE; count++) {
        size_t page = (here->first + count * 1021) % (LARGE / PAGE);
        here->wrong += *(uint64_t *)(here->at + page * PAGE) != page * 3 + 1;
    }
    return NULL;
}

static void everything(void)
{
    char *random = map(LARGE, MAP_PRIVATE), *sparse = map(LARGE, MAP_PRIVATE), *forked = map(LARGE, MAP_PRIVATE);
    char *emptied = map(LARGE, MAP_PRIVATE), *cut = map(LARGE, MAP_PRIVATE), *moved = map(LARGE, MAP_PRIVATE);
    char *left = map(LARGE, MAP_PRIVATE), *split = map(LARGE, MAP_PRIVATE), *written = map(LARGE, MAP_PRIVATE);
    char *overwritten = map(LARGE, MAP_PRIVATE), *executed = map(LARGE, MAP_PRIVATE);
    fill(sparse, LARGE, 3, 52);
    fill(forked, LARGE, 1, 53);
    fill(emptied, LARGE, 1, 54);
    fill(cut, LARGE, 1, 55);
    fill(moved, LARGE, 1, 56);
    fill(left, LARGE, 1, 57);
    fill(split, LARGE, 1, 58);
    fill(written, LARGE, 1, 59);
    fill(overwritten, LARGE, 1, 60);
    fill(executed, LARGE, 1, 61);
    for (size_t page = 0; page < LARGE / PAGE; page++) *(uint64_t *)(random + page * PAGE) = page * 3 + 1;
    checkpoint_here();

    pid_t other = fork(); /* is gone, with all of its memory, before that is filled */
    if (other == 0) execl("/bin/probe", "/bin/probe", (char *)NULL);
    check(other > 0 && waitpid(other, NULL, 0) == other, "a child that executes a program");
    check(in_a_child(forked, 53, 2), "a child, its child, and that one's");
    check(is_filled(forked, LARGE, 1, 53), "the parent's memory, which the child has overwritten");

    pthread_t threads[4];
    struct touched each[4];
    for (size_t number = 0; number < 4; number++) {
        each[number] = (struct touched){random, number * LARGE / PAGE / 4, 0};
        must(pthread_create(&threads[number], NULL, touch, &each[number]) == 0);
    }

    size_t half = LARGE / 2, odd = 3 * MIB + 5 * PAGE;
    check(madvise(emptied + odd, half, MADV_DONTNEED) == 0 && is_zero(emptied + odd, half), "emptied memory");
    check(goes_on(emptied, 0, odd, 54) && goes_on(emptied + odd + half, odd + half, LARGE - odd - half, 54), "and beside it");

    check(munmap(cut + odd, half) == 0, "unmapped memory");
    char *again = mmap(cut + odd, half, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    check(again == cut + odd && is_zero(again, half), "another mapping in its place");
    check(goes_on(cut, 0, odd, 55) && goes_on(cut + odd + half, odd + half, LARGE - odd - half, 55), "what is beside it");

    char *target = map(2 * LARGE, MAP_PRIVATE);
    char *there = mremap(moved, LARGE, 2 * LARGE, MREMAP_MAYMOVE | MREMAP_FIXED, target);
    check(there == target && is_zero(there + LARGE, LARGE), "memory that has moved and grown");
    check(is_filled(there, LARGE, 1, 56), "what it held");
    char *twice = mremap(left, LARGE, LARGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
    check(twice != MAP_FAILED && is_zero(left, LARGE), "memory that has moved, and its place stayed");
    check(twice != MAP_FAILED && is_filled(twice, LARGE, 1, 57), "what that held");

    int good = 1;
    for (size_t at = 0; at < LARGE; at += 8 * PAGE) good &= mprotect(split + at, PAGE, PROT_READ) == 0;
    check(good && is_filled(split, LARGE, 1, 58), "memory in many mappings");

    int file = memfd_create("written", 0);
    size_t done = 0;
    while (file >= 0 && done < LARGE) {
        ssize_t count = write(file, written + done, LARGE - done);
        if (count <= 0) break;
        done += count;
    }
    char *seen = mmap(NULL, LARGE, PROT_READ, MAP_SHARED, file, 0);
    check(done == LARGE && seen != MAP_FAILED && is_filled(seen, LARGE, 1, 59), "what a system call reads");
    check(pread(file, overwritten + odd, half, 0) == (ssize_t)half && goes_on(overwritten + odd, 0, half, 59),
          "what a system call writes");
    check(goes_on(overwritten, 0, odd, 60) && goes_on(overwritten + odd + half, odd + half, LARGE - odd - half, 60),
          "what it leaves");

    for (size_t number = 0; number < 4; number++)
        check(pthread_join(threads[number], NULL) == 0 && each[number].wrong == 0, "what a thread touches");
    check(is_filled(sparse, LARGE, 3, 52), "every third page");
    check(is_filled(executed, LARGE, 1, 61), "memory that nobody touched until now");
}

/* It goes through all of its memory again and again, and says so each time. */
static void reader(void)
{
    char *memory = map(4 * LARGE, MAP_PRIVATE);
    fill(memory, 4 * LARGE, 1, 71);
    checkpoint_here();
    pid_t child = fork();
    for (unsigned long round = 0;; round++) {
        if (!is_filled(memory, 4 * LARGE, 1, 71)) say("NOT ok: %s has wrong memory in round %lu", child ? "the parent" : "the child", round);
        int fd = open(child ? "/data/parent" : "/data/child", O_WRONLY | O_CREAT | O_APPEND, 0644);
        if (fd < 0 || write(fd, "round\n", 6) != 6) _exit(97);
        close(fd);
    }
}

const struct situation behind_situations[] = {{"behind-everything", everything}, {"behind-reader", reader}, {NULL, NULL}};
