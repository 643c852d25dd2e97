#include "memory.h"

#include <pthread.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/wait.h>

static uint64_t next(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

void fill(char *at, size_t size, size_t stride, uint64_t seed)
{
    for (size_t page = 0; page < size / PAGE; page += stride)
        for (size_t word = 0; word < PAGE / 8; word++) ((uint64_t *)(at + page * PAGE))[word] = next(&seed);
}

int is_filled(const char *at, size_t size, size_t stride, uint64_t seed)
{
    for (size_t page = 0; page < size / PAGE; page++)
        for (size_t word = 0; word < PAGE / 8; word++)
            if (((const uint64_t *)(at + page * PAGE))[word] != (page % stride ? 0 : next(&seed))) return 0;
    return 1;
}

int is_zero(const char *at, size_t size)
{
    for (size_t word = 0; word < size / 8; word++)
        if (((const uint64_t *)at)[word]) return 0;
    return 1;
}

char *map(size_t size, int flags)
{
    char *at = mmap(NULL, size, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
    must(at != MAP_FAILED);
    return at;
}

/* What is mapped with which rights; one mapping may have become two, or two one. */
static unsigned long mappings(void)
{
    char line[512], rights[8], kept[8] = "";
    unsigned long start, end, last = 0, sum = 5381;
    FILE *file = fopen("/proc/self/maps", "r");
    must(file != NULL);
    while (fgets(line, sizeof line, file)) {
        if (strstr(line, "[v") || strstr(line, "[heap]") || sscanf(line, "%lx-%lx %7s", &start, &end, rights) != 3) continue;
        if (start != last || strcmp(rights, kept)) sum = (sum * 33 + start) * 33 + last + (unsigned char)rights[1] + rights[3];
        last = end;
        strcpy(kept, rights);
    }
    fclose(file);
    return sum;
}

/* Memory of every kind. */
static void kinds(void)
{
    char *dense = map(LARGE, MAP_PRIVATE), *sparse = map(LARGE, MAP_PRIVATE), *zeros = map(8 * MIB, MAP_PRIVATE);
    char *huge = map(LARGE, MAP_PRIVATE), *shared = map(4 * MIB, MAP_SHARED), *small = map(PAGE, MAP_PRIVATE);
    char *readable = map(4 * MIB, MAP_PRIVATE), *none = map(4 * MIB, MAP_PRIVATE), *untouched = map(LARGE, MAP_PRIVATE);
    char *growing = map(4 * MIB, MAP_PRIVATE | MAP_GROWSDOWN), *odd = map(3 * MIB + 5 * PAGE, MAP_PRIVATE);
    int open_only = memfd_create("open", MFD_CLOEXEC), mapped = memfd_create("mapped", MFD_CLOEXEC);
    must(open_only >= 0 && mapped >= 0 && ftruncate(open_only, 4 * MIB) == 0 && ftruncate(mapped, 4 * MIB) == 0);
    char *of_file = mmap(NULL, 4 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, mapped, 0);
    char *window = mmap(NULL, 4 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, open_only, 0);
    must(of_file != MAP_FAILED && window != MAP_FAILED);
    madvise(huge, LARGE, MADV_HUGEPAGE);
    fill(dense, LARGE, 1, 11);
    fill(sparse, LARGE, 3, 12);
    memset(zeros, 0, 8 * MIB);
    fill(huge, LARGE, 1, 13);
    fill(shared, 4 * MIB, 2, 14);
    fill(small, PAGE, 1, 15);
    fill(readable, 4 * MIB, 1, 16);
    fill(none, 4 * MIB, 5, 17);
    fill(growing, 4 * MIB, 1, 18);
    fill(odd, 3 * MIB + 5 * PAGE, 1, 19);
    fill(of_file, 4 * MIB, 1, 20);
    fill(window, 4 * MIB, 3, 21);
    must(munmap(window, 4 * MIB) == 0);
    must(mprotect(readable, 4 * MIB, PROT_READ) == 0 && mprotect(none, 4 * MIB, PROT_NONE) == 0);
    unsigned long before = mappings();
    checkpoint_here();
    check(mappings() == before, "the mappings");
    check(is_filled(dense, LARGE, 1, 11), "all of a large mapping");
    check(is_filled(sparse, LARGE, 3, 12), "every third page");
    check(is_zero(zeros, 8 * MIB), "zeros");
    check(is_filled(huge, LARGE, 1, 13), "huge pages");
    check(is_filled(shared, 4 * MIB, 2, 14), "shared memory");
    check(is_filled(small, PAGE, 1, 15), "a single page");
    check(is_filled(readable, 4 * MIB, 1, 16), "memory that may only be read");
    must(mprotect(none, 4 * MIB, PROT_READ) == 0);
    check(is_filled(none, 4 * MIB, 5, 17), "memory that may not be touched");
    check(is_filled(growing, 4 * MIB, 1, 18), "memory that grows down");
    check(is_filled(odd, 3 * MIB + 5 * PAGE, 1, 19), "an odd size");
    check(is_filled(of_file, 4 * MIB, 1, 20), "a file in memory");
    window = mmap(NULL, 4 * MIB, PROT_READ, MAP_SHARED, open_only, 0);
    check(window != MAP_FAILED && is_filled(window, 4 * MIB, 3, 21), "a file in memory that nobody has mapped");
    check(is_zero(untouched, LARGE), "memory that nobody touched");
}

/* A figure of the mapping that begins here (proc_pid_smaps(5)). */
static long kib_of(const char *at, const char *field)
{
    char line[512], start[32];
    long found = -1;
    int inside = 0;
    snprintf(start, sizeof start, "%lx-", (unsigned long)at);
    FILE *file = fopen("/proc/self/smaps", "r");
    while (file && fgets(line, sizeof line, file)) {
        if (strncmp(line, start, strlen(start)) == 0) inside = 1;
        if (inside && strncmp(line, field, strlen(field)) == 0) {
            found = strtol(line + strlen(field), NULL, 10);
            break;
        }
    }
    if (file) fclose(file);
    return found;
}

/* A child that has the parent's memory, of which either has written a part since. */
static void inherited(void)
{
    /* One mapping: CRIU compares the parent's and the child's by their ends (criu/mem.c, prepare_cow_vmas_for). */
    char *both = map(2 * LARGE, MAP_PRIVATE), *childs = both + LARGE;
    fill(both, LARGE, 1, 31);
    int done[2];
    must(pipe(done) == 0);
    pid_t child = fork();
    must(child >= 0);
    if (child == 0) {
        fill(both, 4 * MIB, 1, 32);
        fill(childs, LARGE, 2, 33);
        while (access("/data/go", F_OK) != 0) usleep(5000);
        int good = is_filled(both, 4 * MIB, 1, 32) && is_filled(childs, LARGE, 2, 33);
        uint64_t seed = 31;
        for (size_t word = 0; word < LARGE / 8; word++) {
            uint64_t wanted = next(&seed);
            if (word >= 4 * MIB / 8) good &= ((uint64_t *)both)[word] == wanted;
        }
        must(write(done[1], &good, sizeof good) == sizeof good);
        for (;;) pause();
    }
    checkpoint_here();
    int good = 0;
    check(read(done[0], &good, sizeof good) == sizeof good && good, "the child's memory");
    check(is_filled(both, LARGE, 1, 31), "the parent's memory");
    long whole = kib_of(both, "Rss:"), own = kib_of(both, "Pss:");
    check(whole >= (long)LARGE / 1024 && own < whole * 3 / 4, "what they share is there once");
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
}

static pthread_barrier_t ready;

static void *writer(void *at)
{
    fill(at, LARGE, 1, (uint64_t)(uintptr_t)at);
    pthread_barrier_wait(&ready);
    while (access("/data/go", F_OK) != 0) usleep(1000);
    return (void *)(uintptr_t)is_filled(at, LARGE, 1, (uint64_t)(uintptr_t)at);
}

/* Several threads, and a second program that has nothing of the first. */
static void threads(void)
{
    pthread_t running[4];
    must(pthread_barrier_init(&ready, NULL, 5) == 0);
    for (int number = 0; number < 4; number++)
        must(pthread_create(&running[number], NULL, writer, map(LARGE, MAP_PRIVATE)) == 0);
    pthread_barrier_wait(&ready);
    checkpoint_here();
    for (int number = 0; number < 4; number++) {
        void *good = NULL;
        check(pthread_join(running[number], &good) == 0 && good, "the memory of a thread");
    }
}

/* Whether a page holds nothing but this. */
static int is_all(const char *page, char value)
{
    for (int at = 0; at < 4096; at++)
        if (page[at] != value) return 0;
    return 1;
}

/* A segment that is attached, one that nobody has attached (shmget(2)), and files that end within a page: the page is
   memory to its end. */
static void segments(void)
{
    int attached = shmget(IPC_PRIVATE, 4 * MIB, 0600), detached = shmget(IPC_PRIVATE, 4 * MIB, 0600);
    must(attached >= 0 && detached >= 0);
    char *here = shmat(attached, NULL, 0), *there = shmat(detached, NULL, 0), *large = map(LARGE, MAP_PRIVATE);
    must(here != (void *)-1 && there != (void *)-1);
    fill(here, 4 * MIB, 1, 41);
    fill(there, 4 * MIB, 2, 42);
    fill(large, LARGE, 1, 43);
    must(shmdt(there) == 0);
    char *small = shmat(shmget(IPC_PRIVATE, 56, 0600), NULL, 0);
    must(small != (void *)-1);
    memset(small, 'a', 4096);
    int file = memfd_create("odd", 0);
    must(file >= 0 && ftruncate(file, 4096 + 56) == 0);
    char *odd = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    must(odd != MAP_FAILED);
    memset(odd, 'b', 8192);
    checkpoint_here();
    check(is_filled(here, 4 * MIB, 1, 41), "a segment");
    check(is_all(small, 'a'), "a segment of 56 bytes, to the end of its page");
    check(is_all(odd, 'b') && is_all(odd + 4096, 'b'), "a file in memory, to the end of its last page");
    there = shmat(detached, NULL, SHM_RDONLY);
    check(there != (void *)-1 && is_filled(there, 4 * MIB, 2, 42), "a segment that nobody had attached");
    check(is_filled(large, LARGE, 1, 43), "memory beside it");
}

const struct situation memory_situations[] = {
    {"memory-kinds", kinds}, {"memory-inherited", inherited}, {"memory-threads", threads},
    {"memory-segments", segments}, {NULL, NULL}
};
