#include "probe.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>

enum { BIG = 5 << 20 };

/* Whether another process is kept from a lock of `path`; `kind` is f(lock), p(osix) or o(fd). */
static int is_locked(const char *path, char kind)
{
    pid_t child = fork();
    if (child == 0) {
        int fd = open(path, O_RDWR);
        struct flock wanted = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
        int got = kind == 'f' ? flock(fd, LOCK_EX | LOCK_NB) : fcntl(fd, kind == 'p' ? F_SETLK : F_OFD_SETLK, &wanted);
        _exit(got == 0 ? 0 : 1);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) == 1;
}

static void locks(void)
{
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    int f = open("/tmp/f", O_RDWR | O_CREAT, 0600), p = open("/tmp/p", O_RDWR | O_CREAT, 0600);
    int o = open("/tmp/o", O_RDWR | O_CREAT, 0600);
    must(f >= 0 && p >= 0 && o >= 0);
    must(flock(f, LOCK_EX) == 0);
    must(fcntl(p, F_SETLK, &whole) == 0);
    must(fcntl(o, F_OFD_SETLK, &whole) == 0);
    checkpoint_here();
    check(is_locked("/tmp/f", 'f'), "flock is held");
    check(is_locked("/tmp/p", 'p'), "the posix lock is held");
    check(is_locked("/tmp/o", 'o'), "the ofd lock is held");
}

static void fill(int fd, int bytes)
{
    char block[4096];
    for (int at = 0; at < bytes; at += sizeof block) {
        memset(block, 'a' + (at >> 12) % 26, sizeof block);
        must(write(fd, block, sizeof block) == sizeof block);
    }
}

static int filled(int fd, int bytes)
{
    char block[4096];
    for (int at = 0; at < bytes; at += sizeof block)
        if (pread(fd, block, sizeof block, at) != sizeof block || block[7] != 'a' + (at >> 12) % 26) return 0;
    return 1;
}

/* A deleted file of 5 MiB; one of 1 byte; a deleted name of a file that has another one. All in `directory`. */
static void deleted_in(const char *directory)
{
    must(chdir(directory) == 0);
    int big = open("big", O_RDWR | O_CREAT, 0640), small = open("small", O_RDWR | O_CREAT, 0600);
    must(big >= 0 && small >= 0);
    fill(big, BIG);
    must(write(small, "x", 1) == 1);
    must(unlink("big") == 0 && unlink("small") == 0);
    checkpoint_here();
    check(filled(big, BIG), "the deleted file holds its 5 MiB");
    struct stat found;
    check(fstat(big, &found) == 0 && found.st_nlink == 0, "it is still deleted");
    char byte = 0;
    check(pread(small, &byte, 1, 0) == 1 && byte == 'x', "the small one too");
    check(access("big", F_OK) != 0 && access("small", F_OK) != 0, "no name came back");
}

static void deleted_in_rootfs(void) { deleted_in("/tmp"); }
static void deleted_in_bind_mount(void) { deleted_in("/data"); }
static void deleted_in_tmpfs(void) { deleted_in("/dev/shm"); }

static void linked_in(const char *directory)
{
    must(chdir(directory) == 0);
    int fd = open("name", O_RDWR | O_CREAT, 0600);
    must(fd >= 0 && write(fd, "linked", 6) == 6);
    must(link("name", "other") == 0 && unlink("name") == 0);
    checkpoint_here();
    struct stat mine, other;
    check(fstat(fd, &mine) == 0 && stat("other", &other) == 0, "the file and its other name are there");
    check(mine.st_ino == other.st_ino && mine.st_nlink == 1, "they are one file, with one name");
    check(access("name", F_OK) != 0, "the deleted name did not come back");
}

static void linked_in_rootfs(void) { linked_in("/tmp"); }
static void linked_in_bind_mount(void) { linked_in("/data"); }

static void inotify_on(const char *directory)
{
    char events[4096];
    int fd = inotify_init1(IN_NONBLOCK);
    must(fd >= 0 && inotify_add_watch(fd, directory, IN_CREATE) >= 0);
    must(chdir(directory) == 0);
    checkpoint_here();
    while (read(fd, events, sizeof events) > 0) {} /* of the restore itself */
    close(open("created", O_WRONLY | O_CREAT, 0600));
    ssize_t got = read(fd, events, sizeof events);
    check(got > 0 && (((struct inotify_event *)events)->mask & IN_CREATE), "the watch reports a new file");
}

static void inotify_rootfs(void) { inotify_on("/tmp"); }
static void inotify_tmpfs(void) { inotify_on("/dev/shm"); }
static void inotify_bind_mount(void) { inotify_on("/data"); }

/* A watch on a file that has no name any more. */
static void inotify_deleted(void)
{
    int fd = inotify_init1(IN_NONBLOCK), file = open("/tmp/watched", O_WRONLY | O_CREAT, 0600);
    must(fd >= 0 && file >= 0 && inotify_add_watch(fd, "/tmp/watched", IN_MODIFY) >= 0 && unlink("/tmp/watched") == 0);
    checkpoint_here();
    check(write(file, "x", 1) == 1, "restored");
}

static void fanotify(void)
{
    char events[4096];
    int fd = fanotify_init(FAN_CLASS_NOTIF | FAN_NONBLOCK, O_RDONLY);
    must(fd >= 0);
    must(fanotify_mark(fd, FAN_MARK_ADD, FAN_OPEN | FAN_EVENT_ON_CHILD, AT_FDCWD, "/tmp") == 0);
    checkpoint_here();
    close(open("/tmp/created", O_WRONLY | O_CREAT, 0600));
    check(read(fd, events, sizeof events) > 0, "the mark reports an opened file");
}

/* eventfd, timerfd, signalfd in one epoll set. */
static void descriptors(void)
{
    sigset_t usr1;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    sigprocmask(SIG_BLOCK, &usr1, NULL);
    struct itimerspec hour = {.it_value = {3600, 0}, .it_interval = {60, 0}}, left;
    int event = eventfd(7, EFD_NONBLOCK), timer = timerfd_create(CLOCK_MONOTONIC, 0), signals = signalfd(-1, &usr1, 0);
    int set = epoll_create1(0);
    must(event >= 0 && timer >= 0 && signals >= 0 && set >= 0);
    must(timerfd_settime(timer, 0, &hour, NULL) == 0);
    for (int i = 0, fds[] = {event, timer, signals}; i < 3; i++) {
        struct epoll_event wanted = {.events = EPOLLIN, .data = {.u32 = 100 + i}};
        must(epoll_ctl(set, EPOLL_CTL_ADD, fds[i], &wanted) == 0);
    }
    checkpoint_here();
    struct epoll_event got[3];
    check(epoll_wait(set, got, 3, 0) == 1 && got[0].data.u32 == 100, "epoll reports the eventfd alone");
    eventfd_t value = 0;
    check(eventfd_read(event, &value) == 0 && value == 7, "the eventfd holds its value");
    check(timerfd_gettime(timer, &left) == 0 && left.it_value.tv_sec > 3000 && left.it_value.tv_sec <= 3600 &&
              left.it_interval.tv_sec == 60, "the timerfd goes on");
    kill(getpid(), SIGUSR1);
    check(epoll_wait(set, got, 3, 1000) == 1 && got[0].data.u32 == 102, "the signalfd reports a signal");
}

static void pidfd(void)
{
    pid_t child = fork();
    if (child == 0)
        for (;;) pause();
    int fd = syscall(SYS_pidfd_open, child, 0);
    must(fd >= 0);
    checkpoint_here();
    check(syscall(SYS_pidfd_send_signal, fd, SIGKILL, NULL, 0) == 0, "the pidfd reaches the process");
    int status = 0;
    check(waitpid(child, &status, 0) == child && WTERMSIG(status) == SIGKILL, "which was the child");
}

static void io_uring(void)
{
    char parameters[256] = {0};
    must(syscall(SYS_io_uring_setup, 4, parameters) >= 0);
    checkpoint_here();
}

static void memfd(void)
{
    int fd = memfd_create("named", 0);
    must(fd >= 0);
    fill(fd, BIG);
    char *shared = mmap(NULL, BIG, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    must(shared != MAP_FAILED);
    checkpoint_here();
    check(filled(fd, BIG), "the memfd holds its 5 MiB");
    shared[0] = '!';
    char byte = 0;
    check(pread(fd, &byte, 1, 0) == 1 && byte == '!', "the mapping is the file's");
}

const struct situation file_situations[] = {
    {"locks", locks},
    {"deleted-in-rootfs", deleted_in_rootfs},
    {"deleted-in-bind-mount", deleted_in_bind_mount},
    {"deleted-in-tmpfs", deleted_in_tmpfs},
    {"linked-in-rootfs", linked_in_rootfs},
    {"linked-in-bind-mount", linked_in_bind_mount},
    {"inotify-rootfs", inotify_rootfs},
    {"inotify-tmpfs", inotify_tmpfs},
    {"inotify-bind-mount", inotify_bind_mount},
    {"inotify-deleted", inotify_deleted},
    {"fanotify", fanotify},
    {"descriptors", descriptors},
    {"pidfd", pidfd},
    {"io-uring", io_uring},
    {"memfd", memfd},
    {0},
};
