#include "probe.h"

#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>

static unsigned long long status_bits(const char *name)
{
    char line[256];
    unsigned long long bits = ~0ULL;
    FILE *file = fopen("/proc/self/status", "r");
    while (file && fgets(line, sizeof line, file))
        if (strncmp(line, name, strlen(name)) == 0) bits = strtoull(line + strlen(name) + 1, NULL, 16);
    if (file) fclose(file);
    return bits;
}

static int file_number(const char *path)
{
    int number = -9999;
    FILE *file = fopen(path, "r");
    if (file && fscanf(file, "%d", &number) != 1) number = -9999;
    if (file) fclose(file);
    return number;
}

/* What the container's configuration sets on its process. */
static void attributes(void)
{
    struct rlimit files = {0}, stack = {0};
    struct sched_param parameters = {0};
    umask(027);
    must(chdir("/var/run") == 0);
    must(setpriority(PRIO_PROCESS, 0, 7) == 0);
    must(sched_setscheduler(0, SCHED_BATCH, &parameters) == 0);
    must(prctl(PR_SET_NAME, "renamed") == 0);
    unsigned long long effective = status_bits("CapEff"), bounding = status_bits("CapBnd");
    unsigned long long ambient = status_bits("CapAmb");
    int privileges = prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), adjusted = file_number("/proc/self/oom_score_adj");
    checkpoint_here();
    char name[16] = {0}, directory[64] = {0};
    check(getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur == 200 && files.rlim_max == 300, "RLIMIT_NOFILE");
    check(getrlimit(RLIMIT_CORE, &stack) == 0 && stack.rlim_cur == 4096 && stack.rlim_max == 8192, "RLIMIT_CORE");
    check(umask(0) == 027, "the umask");
    check(getcwd(directory, sizeof directory) && strcmp(directory, "/var/run") == 0, "the working directory");
    check(getpriority(PRIO_PROCESS, 0) == 7, "the nice value");
    check(sched_getscheduler(0) == SCHED_BATCH, "the scheduling policy");
    check(prctl(PR_GET_NAME, name) == 0 && strcmp(name, "renamed") == 0, "the name");
    check(status_bits("CapEff") == effective && status_bits("CapBnd") == bounding, "capabilities");
    check(status_bits("CapAmb") == ambient && ambient != 0, "ambient capabilities");
    check(privileges == 1 && prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == privileges, "no_new_privs");
    check(file_number("/proc/self/oom_score_adj") == adjusted && adjusted == 500, "oom_score_adj");
    say("environment %s", getenv("WHOSE"));
}

static volatile sig_atomic_t alarms, queued;
static void on_alarm(int number) { (void)number; alarms++; }
static void on_queued(int number, siginfo_t *info, void *context)
{
    (void)number, (void)context;
    queued = info->si_value.sival_int;
}

static void timers_and_signals(void)
{
    struct itimerval hour = {.it_value = {3600, 0}}, left;
    struct sigaction action = {.sa_handler = on_alarm}, with_value = {.sa_sigaction = on_queued, .sa_flags = SA_SIGINFO};
    struct sigevent none = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM};
    struct itimerspec ticks = {.it_value = {0, 20000000}, .it_interval = {0, 20000000}};
    sigset_t blocked, pending;
    timer_t timer;
    must(sigaction(SIGALRM, &action, NULL) == 0 && sigaction(SIGRTMIN + 2, &with_value, NULL) == 0);
    must(setitimer(ITIMER_VIRTUAL, &hour, NULL) == 0);
    must(timer_create(CLOCK_MONOTONIC, &none, &timer) == 0 && timer_settime(timer, 0, &ticks, NULL) == 0);
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGRTMIN + 2);
    sigprocmask(SIG_BLOCK, &blocked, NULL);
    must(sigqueue(getpid(), SIGRTMIN + 2, (union sigval){.sival_int = 42}) == 0);
    checkpoint_here();
    check(getitimer(ITIMER_VIRTUAL, &left) == 0 && left.it_value.tv_sec > 3000, "the interval timer goes on");
    int before = alarms;
    for (int i = 0; i < 400 && alarms == before; i++) usleep(5000);
    check(alarms > before, "the posix timer goes on");
    check(sigpending(&pending) == 0 && sigismember(&pending, SIGRTMIN + 2), "the pending signal is pending");
    sigprocmask(SIG_UNBLOCK, &blocked, NULL);
    check(queued == 42, "and has its value");
}

/* Children: one that leads a session, one that leads a process group. */
static void sessions(void)
{
    pid_t own = fork();
    if (own == 0) {
        setsid();
        for (;;) pause();
    }
    pid_t grouped = fork();
    if (grouped == 0) {
        setpgid(0, 0);
        for (;;) pause();
    }
    while (getsid(own) != own || getpgid(grouped) != grouped) usleep(1000);
    checkpoint_here();
    check(getsid(own) == own, "the session leader leads its session");
    check(getpgid(grouped) == grouped && getsid(grouped) == getsid(0), "the group leader leads its group");
}

static void zombie(void)
{
    siginfo_t info;
    int status = 0;
    pid_t dead = fork();
    if (dead == 0) _exit(6);
    must(waitid(P_PID, dead, &info, WEXITED | WNOWAIT) == 0);
    checkpoint_here();
    check(waitpid(dead, &status, 0) == dead && WEXITSTATUS(status) == 6, "the zombie has its exit status");
}

static void stopped(void)
{
    int status = 0;
    pid_t child = fork();
    if (child == 0) {
        raise(SIGSTOP);
        _exit(5);
    }
    must(waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status));
    checkpoint_here();
    check(waitpid(child, &status, WNOHANG) == 0, "the stopped child does not run");
    kill(child, SIGCONT);
    check(waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 5, "until it is continued");
}

static volatile int turns[3];
static __thread int own_number;
static void *turn(void *number)
{
    own_number = *(int *)number;
    for (;;) {
        turns[own_number]++;
        usleep(1000);
    }
    return NULL;
}

static void threads(void)
{
    static int numbers[] = {0, 1, 2};
    pthread_t made;
    for (int i = 0; i < 3; i++) must(pthread_create(&made, NULL, turn, &numbers[i]) == 0);
    while (!turns[0] || !turns[1] || !turns[2]) usleep(1000);
    int seen[3] = {turns[0], turns[1], turns[2]};
    checkpoint_here();
    for (int i = 0, later; i < 3; i++) {
        later = turns[i];
        for (int wait = 0; wait < 400 && turns[i] == later; wait++) usleep(5000);
        check(turns[i] > later && later >= seen[i], "a thread goes on");
    }
}

/* The filter of the configuration makes mkdir fail with EDOM. */
static void seccomp(void)
{
    must(mkdir("/tmp/forbidden", 0700) != 0 && errno == EDOM);
    checkpoint_here();
    check(prctl(PR_GET_SECCOMP) == 2, "a filter is in force");
    check(mkdir("/tmp/forbidden", 0700) != 0 && errno == EDOM, "and is the same");
    int fd = open("/tmp/allowed", O_CREAT | O_WRONLY, 0600);
    check(fd >= 0, "which lets other calls pass");
}

static void user(void)
{
    must(getuid() == 0);
    checkpoint_here();
    check(getuid() == 0, "root inside");
    say("map %d", file_number("/proc/self/uid_map"));
}

static void names(void)
{
    char name[65] = {0};
    checkpoint_here();
    gethostname(name, sizeof name - 1);
    say("hostname %s", name);
    say("pid %d", getpid());
}

const struct situation process_situations[] = {
    {"attributes", attributes},
    {"timers-and-signals", timers_and_signals},
    {"sessions", sessions},
    {"zombie", zombie},
    {"stopped", stopped},
    {"threads", threads},
    {"seccomp", seccomp},
    {"user", user},
    {"names", names},
    {0},
};
