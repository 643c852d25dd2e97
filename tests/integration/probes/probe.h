/* A situation that a process can be in: it sets it up, says so, is checkpointed and restored meanwhile, and then says
   what it finds. What it says is in /data: `ready`, then `answer`, which ends with the line `end`. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

/* The setup must have worked; if not, the test hears of it. */
#define must(condition) \
    do { \
        errno = 0; \
        if (!(condition)) give_up(#condition); \
    } while (0)

void give_up(const char *what);
/* One line of the answer: whether `condition` holds after the restore. */
void check(int condition, const char *what);
/* One line of the answer that the test compares. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Say that all is set up, and wait for the test to say that it has been restored. */
void checkpoint_here(void);

struct situation {
    const char *name;
    void (*run)(void);
};
extern const struct situation file_situations[], memory_situations[], socket_situations[], process_situations[],
    behind_situations[];
