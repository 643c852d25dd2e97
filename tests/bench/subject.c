/* What the benchmarks measure, and what they measure it by. In a container it says in /data that it is set up, and,
   each time /data/go is made, whether all is as it was.

       subject memory MIB        so much memory, of which no two words are alike
       subject processes N       so many of this program
       subject vmas N            so many mappings of one page each

   Outside of one it prints the seconds that this machine takes, all threads at work:

       subject warm MIB THREADS  for memory to be touched; it is given back but for single pages, until it is killed
       subject touch MIB THREADS  the same in huge pages, all of which are given back
       subject copy MIB THREADS  into fresh memory, by UFFDIO_COPY
       subject read MIB THREADS FILE   of another process, by process_vm_readv, into a mapped file

   `subject load MIB THREADS` keeps as many cores and so much memory busy until it is killed. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MIB (1UL << 20)
#define PAGE 4096UL
#define KEPT (64 * PAGE) /* of so much, one page */
#define SEED 88172645463325252UL

static void must(int condition, const char *what)
{
    if (condition) return;
    perror(what);
    int fd = open("/data/answer", O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd >= 0) dprintf(fd, "setup failed: %s\n", what);
    _exit(98);
}

static uint64_t next(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

static void fill(uint64_t *at, size_t size, uint64_t seed)
{
    for (size_t word = 0; word < size / 8; word++) at[word] = next(&seed);
}

/* How many words are right until the first that isn't. */
static size_t compare(const uint64_t *at, size_t size, uint64_t seed)
{
    size_t word = 0;
    while (word < size / 8 && at[word] == next(&seed)) word++;
    return word;
}

static char *map(size_t size, int rights)
{
    char *at = mmap(NULL, size, rights, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    must(at != MAP_FAILED, "mmap");
    return at;
}

/* Answer for ever; `is_good` says whether all is as it was. No file may be open meanwhile. */
static void serve(int (*is_good)(const char *, size_t), const char *at, size_t count)
{
    close(open("/data/ready", O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
    for (;;) {
        while (access("/data/go", F_OK) != 0) usleep(5000);
        const char *answer = is_good(at, count) ? "good\n" : "NOT what it was\n";
        unlink("/data/go");
        int fd = open("/data/answer.new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
        must(fd >= 0 && write(fd, answer, strlen(answer)) > 0 && close(fd) == 0, "answer");
        must(rename("/data/answer.new", "/data/answer") == 0, "rename");
    }
}

static int memory_is_good(const char *at, size_t size)
{
    return compare((const uint64_t *)at, size, SEED) == size / 8;
}

static int vmas_are_good(const char *at, size_t count)
{
    for (size_t page = 0; page < count; page++)
        if (compare((const uint64_t *)(at + page * PAGE), PAGE, SEED + page) != PAGE / 8) return 0;
    return 1;
}

static void vmas(size_t count)
{
    char *at = map(count * PAGE, PROT_READ | PROT_WRITE);
    for (size_t page = 0; page < count; page++) {
        fill((uint64_t *)(at + page * PAGE), PAGE, SEED + page);
        if (page % 2) must(mprotect(at + page * PAGE, PAGE, PROT_READ) == 0, "mprotect");
    }
    serve(vmas_are_good, at, count);
}

static int processes_are_good(const char *pids, size_t count)
{
    for (size_t number = 0; number < count; number++)
        if (kill(((const pid_t *)pids)[number], 0) != 0) return 0;
    return waitpid(-1, NULL, WNOHANG) <= 0;
}

static void processes(size_t count, char *program)
{
    char *pids = map(count * sizeof(pid_t), PROT_READ | PROT_WRITE);
    for (size_t number = 0; number + 1 < count; number++) {
        pid_t child = fork();
        if (child == 0) _exit(execl(program, program, "wait", (char *)NULL));
        must(child > 0, "fork");
        ((pid_t *)pids)[number] = child;
    }
    usleep(200000); /* until they have all become the program */
    serve(processes_are_good, pids, count - 1);
}

static size_t share; /* of one thread */
static int fault;
static pid_t other;
static char *source, *target;

static void *copy(void *number)
{
    char *from = map(MIB, PROT_READ | PROT_WRITE);
    memset(from, 1, MIB);
    for (size_t done = 0; done < share; done += MIB) {
        struct uffdio_copy asked = {.dst = (uintptr_t)target + (uintptr_t)number * share + done, .src = (uintptr_t)from, .len = MIB};
        must(ioctl(fault, UFFDIO_COPY, &asked) == 0, "UFFDIO_COPY");
    }
    return NULL;
}

static void *read_other(void *number)
{
    for (size_t done = 0; done < share; done += MIB) {
        size_t offset = (uintptr_t)number * share + done;
        struct iovec to = {target + offset, MIB}, from = {source + offset, MIB};
        must(process_vm_readv(other, &to, 1, &from, 1, 0) == (ssize_t)MIB, "process_vm_readv");
    }
    return NULL;
}

static void *touch(void *number)
{
    for (size_t done = 0; done < share; done += PAGE) target[(uintptr_t)number * share + done] = 1;
    return NULL;
}

/* The kernel gives whole free blocks of 2 MiB back to a virtual machine's host, which a page that is in use prevents. */
static void give_back_most(size_t size)
{
    for (size_t done = 0; done < size; done += KEPT) must(madvise(target + done + PAGE, KEPT - PAGE, MADV_DONTNEED) == 0, "madvise");
}

static void *copy_about(void *number)
{
    char *half = target + (uintptr_t)number * share;
    for (;;) memcpy(half, half + share / 2, share / 2);
    return NULL;
}

static double now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec + at.tv_nsec / 1e9;
}

static void measure(void *(*work)(void *), size_t threads)
{
    pthread_t running[64];
    must(threads >= 1 && threads <= 64, "64 threads at most");
    double begun = now();
    for (size_t number = 0; number < threads; number++)
        must(pthread_create(&running[number], NULL, work, (void *)number) == 0, "pthread_create");
    for (size_t number = 0; number < threads; number++) pthread_join(running[number], NULL);
    printf("%.6f\n", now() - begun);
}

static void prepare_copy(size_t size)
{
    struct uffdio_api api = {.api = UFFD_API};
    target = map(size, PROT_READ | PROT_WRITE);
    struct uffdio_register range = {.range = {(uintptr_t)target, size}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    fault = syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
    must(fault >= 0 && ioctl(fault, UFFDIO_API, &api) == 0 && ioctl(fault, UFFDIO_REGISTER, &range) == 0, "userfaultfd");
}

static void prepare_read(size_t size, const char *path)
{
    int ready[2], fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    must(fd >= 0 && ftruncate(fd, size) == 0 && pipe(ready) == 0, path);
    target = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    source = map(size, PROT_READ | PROT_WRITE);
    must(target != MAP_FAILED, "mmap");
    other = fork();
    if (other == 0) {
        fill((uint64_t *)source, size, SEED);
        must(write(ready[1], "", 1) == 1, "write");
        for (;;) pause();
    }
    char byte;
    must(other > 0 && read(ready[0], &byte, 1) == 1, "fork");
}

int main(int count, char **words)
{
    if (count == 2 && strcmp(words[1], "wait") == 0)
        for (;;) pause();
    if (count < 3) return 2;
    const char *what = words[1];
    size_t number = strtoul(words[2], NULL, 10), size = number * MIB, threads = count > 3 ? strtoul(words[3], NULL, 10) : 1;
    if (strcmp(what, "memory") == 0) {
        char *at = map(size, PROT_READ | PROT_WRITE);
        fill((uint64_t *)at, size, SEED);
        serve(memory_is_good, at, size);
    }
    if (strcmp(what, "vmas") == 0) vmas(number);
    if (strcmp(what, "processes") == 0) processes(number, words[0]);
    share = size / threads / MIB * MIB;
    if (strcmp(what, "warm") == 0) {
        target = map(size, PROT_READ | PROT_WRITE);
        madvise(target, size, MADV_NOHUGEPAGE);
        measure(touch, threads);
        give_back_most(size);
        fflush(stdout);
        for (;;) pause();
    } else if (strcmp(what, "touch") == 0) {
        target = map(size, PROT_READ | PROT_WRITE);
        madvise(target, size, MADV_HUGEPAGE);
        measure(touch, threads);
    } else if (strcmp(what, "load") == 0) {
        target = map(size, PROT_READ | PROT_WRITE);
        memset(target, 1, size);
        measure(copy_about, threads);
    } else if (strcmp(what, "copy") == 0) {
        prepare_copy(size);
        measure(copy, threads);
    } else if (strcmp(what, "read") == 0 && count > 4) {
        prepare_read(size, words[4]);
        measure(read_other, threads);
        kill(other, SIGKILL);
    } else {
        return 2;
    }
    return 0;
}
