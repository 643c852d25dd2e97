/*
 * Simulated cuda_plugin.so: does in CRIU's hooks what CRIU's own does, by the simulated cuda-checkpoint; after
 * plugins/cuda/cuda_plugin.c of CRIU 4.2, its faults included (marked FAULT). CRIU's headers are not needed: the
 * descriptor is that of version 0.2 with 12 hooks (criu-plugin.h of 4.1.1); newer ones take it as it is (verify_plugin).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { RESUME_DEVICES_LATE = 9, PAUSE_DEVICES, CHECKPOINT_DEVICES, HOOKS };
enum { DUMP, PRE_DUMP, RESTORE };
enum { LOG_ERROR = 1, LOG_INFO = 3 };
enum { ALIVE = 1 };
enum { RUNNING, LOCKED, CHECKPOINTED, UNKNOWN };
#define VERSION (2 << 8)
#define NAME "cuda_plugin"
#define LOCK_TIMEOUT "5000" /* the real one takes CRIU's own, which lies somewhere in its options */
#define error(format, ...) \
	print_on_level(LOG_ERROR, "Error (cuda_plugin.c:%d): " NAME ": " format "\n", __LINE__, __VA_ARGS__)
#define info(format, ...) print_on_level(LOG_INFO, NAME ": " format "\n", __VA_ARGS__)

/* CRIU's. */
extern int opts; /* struct cr_options, whose first member is final_state */
void print_on_level(unsigned level, const char *format, ...);
void set_compel_interrupt_only_mode(void);
bool alarm_timeouted(void);
int add_inventory_plugin(const char *name);
bool check_and_remove_inventory_plugin(const char *name, size_t length);

static struct { int pid, before; bool checkpointed; } known[64];
static int count;
static bool disabled, listed;

/* The exit code, -1 if there is none; `said` gets what was written. */
static int run(const char *const *argv, char *said, size_t size)
{
	int ends[2], status;
	size_t length = 0;
	ssize_t n = 0;
	if (pipe(ends))
		return -1;
	pid_t child = fork();
	if (!child) {
		dup2(ends[1], 1);
		dup2(ends[1], 2);
		closefrom(3);
		execvp(argv[0], (char **)argv);
		fprintf(stderr, "execvp(\"%s\") failed: %s\n", argv[0], strerror(errno));
		_exit(1);
	}
	close(ends[1]);
	while (child > 0 && length < size - 1 && (n = read(ends[0], said + length, size - 1 - length)) > 0)
		length += n;
	said[length] = 0;
	close(ends[0]);
	if (child < 0)
		return -1;
	if (n < 0) /* CRIU's alarm */
		kill(child, SIGKILL);
	if (waitpid(child, &status, 0) != child || !WIFEXITED(status))
		return -1;
	return WEXITSTATUS(status);
}

static int ask(int pid, const char *what, char *said, size_t size)
{
	char text[16];
	snprintf(text, sizeof text, "%d", pid);
	return run((const char *[]){ "cuda-checkpoint", what, "--pid", text, NULL }, said, size);
}

static int act(int pid, const char *action, const char *hook)
{
	char text[16], said[512];
	bool lock = !strcmp(action, "lock");
	snprintf(text, sizeof text, "%d", pid);
	int code = run((const char *[]){ "cuda-checkpoint", "--action", action, "--pid", text, lock ? "--timeout" : NULL,
					 LOCK_TIMEOUT, NULL }, said, sizeof said);
	if (code)
		error("%s of process %d failed with %s", hook, pid, said);
	return code ? -1 : 0;
}

/* FAULT: a program that failed or could not be run is taken for "no CUDA process". */
static int restore_thread(int pid)
{
	char said[512];
	if (!ask(pid, "--get-restore-tid", said, sizeof said))
		return atoi(said);
	error("no restore thread of process %d: %s", pid, said);
	return -1;
}

static int state_of(int thread)
{
	static const char *const words[] = { "running", "locked", "checkpointed" };
	char said[512];
	int state = ask(thread, "--get-state", said, sizeof said) ? UNKNOWN : RUNNING;
	while (state < UNKNOWN && strncmp(said, words[state], strlen(words[state])))
		state++;
	if (state == UNKNOWN)
		error("no state of %d: %s", thread, said);
	return state;
}

/* The thread runs while CRIU holds all others. */
static int let_run(int thread, uint64_t *mask)
{
	uint64_t block = ~(1ULL << (SIGTRAP - 1));
	if (ptrace(PTRACE_GETSIGMASK, thread, sizeof *mask, mask) || ptrace(PTRACE_SETSIGMASK, thread, sizeof block, &block) ||
	    ptrace(PTRACE_SETOPTIONS, thread, NULL, 0) || ptrace(PTRACE_CONT, thread, NULL, 0)) {
		error("cannot let thread %d run: %s", thread, strerror(errno));
		return -1;
	}
	return 0;
}

static int hold(int thread, uint64_t *mask)
{
	int status = 0;
	long options = PTRACE_O_SUSPEND_SECCOMP | PTRACE_O_TRACESYSGOOD;
	if (ptrace(PTRACE_INTERRUPT, thread, NULL, 0) || waitpid(thread, &status, __WALL) != thread || !WIFSTOPPED(status) ||
	    ptrace(PTRACE_SETOPTIONS, thread, NULL, options) || ptrace(PTRACE_SETSIGMASK, thread, sizeof *mask, mask)) {
		error("cannot hold thread %d again (status %x): %s", thread, status, strerror(errno));
		return -1;
	}
	return 0;
}

static int pause_devices(int pid)
{
	if (disabled)
		return -ENOTSUP;
	int thread = restore_thread(pid);
	if (thread == -1)
		return 0;
	int before = state_of(thread);
	if (before == UNKNOWN || count == 64)
		return -1;
	if (!listed && add_inventory_plugin(NAME))
		return -1;
	listed = true;
	if (before == RUNNING && act(pid, "lock", "PAUSE_DEVICES")) {
		if (alarm_timeouted())
			act(pid, "unlock", "PAUSE_DEVICES");
		return -1;
	}
	info("process %d is locked", pid);
	known[count].pid = pid;
	known[count].before = before;
	known[count++].checkpointed = false;
	return 0;
}

static int checkpoint_devices(int pid)
{
	uint64_t mask;
	int i, thread, code;
	if (disabled)
		return -ENOTSUP;
	if ((thread = restore_thread(pid)) == -1)
		return 0;
	for (i = 0; i < count && known[i].pid != pid; i++)
		continue;
	if (i == count)
		return -1;
	if (known[i].before == CHECKPOINTED)
		return 0;
	if (let_run(thread, &mask))
		return -1;
	/* FAULT: set although it may fail; the way back is then a restore that is refused, and the lock stays. */
	known[i].checkpointed = true;
	code = act(pid, "checkpoint", "CHECKPOINT_DEVICES");
	return hold(thread, &mask) || code ? -1 : 0;
}

static int resume(int pid, bool checkpointed, int before)
{
	uint64_t mask;
	int code = 0, thread = restore_thread(pid);
	if (thread == -1) {
		info("no need to resume devices of process %d", pid);
		return 0;
	}
	if (let_run(thread, &mask))
		return -1;
	if (checkpointed && before != CHECKPOINTED)
		code = act(pid, "restore", "RESUME_DEVICES");
	if (!code && before == RUNNING)
		code = act(pid, "unlock", "RESUME_DEVICES");
	return hold(thread, &mask) || code ? -1 : 0;
}

/* At a restore; what CRIU does of an error is a line in its log. */
static int resume_devices_late(int pid)
{
	return disabled ? -ENOTSUP : resume(pid, true, RUNNING);
}

/* FAULT: with no program that works, the plugin is silently none. */
static int init(int stage)
{
	char path[4096], said[2048];
	struct stat there;
	snprintf(path, sizeof path, "%s/state", getenv("SIMULATED_GPU") ?: "/nonexistent");
	disabled = stage == PRE_DUMP || (stage == RESTORE && !check_and_remove_inventory_plugin(NAME, strlen(NAME))) ||
		   stat(path, &there) || run((const char *[]){ "cuda-checkpoint", "-h", NULL }, said, sizeof said) ||
		   !strstr(said, "--action");
	if (!disabled)
		set_compel_interrupt_only_mode();
	info("stage %d, %s", stage, disabled ? "disabled" : "enabled");
	return 0;
}

/* FAULT: nobody hears of a failure here. */
static void fini(int stage, int ret)
{
	if (disabled || stage != DUMP || (opts != ALIVE && !ret))
		return;
	for (int i = 0; i < count; i++)
		resume(known[i].pid, known[i].checkpointed, known[i].before);
}

struct {
	const char *name;
	int (*init)(int stage);
	void (*exit)(int stage, int ret);
	unsigned version, max_hooks;
	void *hooks[HOOKS];
} CR_PLUGIN_DESC = {
	NAME, init, fini, VERSION, HOOKS,
	{ [RESUME_DEVICES_LATE] = resume_devices_late, [PAUSE_DEVICES] = pause_devices, [CHECKPOINT_DEVICES] = checkpoint_devices },
};
