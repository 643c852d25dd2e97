/* Simulated libcuda.so.1; see __init__.py. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { RUNNING, LOCKED, CHECKPOINTED };
enum { NONE, STATE, THREAD, LOCK, CHECKPOINT, RESTORE, UNLOCK };
enum { ALLOCATE = 1, UPLOAD, DOWNLOAD, STEP };
#define NAME "simulated-cuda"

/* Shared with whoever calls the checkpoint API, through a memfd that CRIU dumps and restores. */
struct control {
	uint32_t command, done, result, argument, state, gate, poisoned;
	int32_t thread;
	char uuid[64]; /* of its GPU */
};

static struct control *control;
static pthread_mutex_t calls = PTHREAD_MUTEX_INITIALIZER;
static int gpu = -1;
static uint32_t count, *saved;
static uint64_t bytes;
static const uint32_t LAST = 0x5a17ed;

static void futex_wait(uint32_t *word, uint32_t value) { syscall(SYS_futex, word, FUTEX_WAIT, value, NULL, NULL, 0); }
static void futex_wake(uint32_t *word) { syscall(SYS_futex, word, FUTEX_WAKE, 1 << 30, NULL, NULL, 0); }

static int exactly(int fd, void *data, size_t size)
{
	for (char *at = data; size;) {
		ssize_t n = read(fd, at, size);
		if (n <= 0)
			return -1;
		at += n;
		size -= n;
	}
	return 0;
}

static int ask(uint32_t operation, uint32_t words, uint64_t size, const void *data, size_t length)
{
	struct { uint32_t operation, words; uint64_t size; } header = { operation, words, size };
	if (write(gpu, &header, sizeof header) != sizeof header)
		return -1;
	for (size_t sent = 0; sent < length;) {
		ssize_t n = write(gpu, (const char *)data + sent, length - sent);
		if (n <= 0)
			return -1;
		sent += n;
	}
	return 0;
}

static long long answer(void)
{
	int64_t value;
	return exactly(gpu, &value, sizeof value) ? -1 : value;
}

static int attach(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX, .sun_path = "/gpu/socket" };
	gpu = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	return connect(gpu, (struct sockaddr *)&address, sizeof address) ? 304 : 0;
}

static int lock(uint32_t milliseconds)
{
	struct timespec until;
	if (control->state != RUNNING)
		return 401;
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += milliseconds / 1000;
	until.tv_nsec += milliseconds % 1000 * 1000000L;
	if (until.tv_nsec >= 1000000000L)
		until.tv_sec++, until.tv_nsec -= 1000000000L;
	if (pthread_mutex_timedlock(&calls, &until))
		return 600;
	control->state = LOCKED;
	pthread_mutex_unlock(&calls);
	return 0;
}

/* As driver 580: one mapping for all that is on the GPU, made at once. */
static uint64_t staging(void)
{
	return bytes > 4 * (uint64_t)count + 4 ? bytes : 4 * (uint64_t)count + 4;
}

static int checkpoint(void)
{
	if (control->state != LOCKED)
		return 401;
	saved = mmap(NULL, staging(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (saved == MAP_FAILED)
		return 2;
	saved[staging() / 4 - 1] = LAST;
	if (ask(DOWNLOAD, 0, 0, NULL, 0) || exactly(gpu, saved, 4 * count))
		return 999;
	close(gpu);
	gpu = -1;
	control->state = CHECKPOINTED;
	return 0;
}

static int restore(void)
{
	if (control->poisoned)
		return 304;
	if (control->state != CHECKPOINTED)
		return 401;
	if (saved[staging() / 4 - 1] != LAST)
		return 999;
	int code = attach();
	if (!code && bytes && (ask(ALLOCATE, count, bytes, NULL, 0) || (code = answer()))) {
		control->poisoned = 1; /* as driver 580: after an error nothing helps any more */
		close(gpu);
		gpu = -1;
		return code ? code : 999;
	}
	if (code || ask(UPLOAD, count, 0, saved, 4 * count) || answer())
		return code ? code : 999;
	if (!getenv("SIMULATED_KEEPS"))
		munmap(saved, staging());
	control->state = LOCKED;
	return 0;
}

static int unlock(void)
{
	if (control->state != LOCKED)
		return 401;
	control->state = RUNNING;
	control->gate++;
	futex_wake(&control->gate);
	return 0;
}

static void *serve(void *unused)
{
	(void)unused;
	prctl(PR_SET_NAME, "cuda-simulated");
	control->thread = syscall(SYS_gettid);
	control->done = 1;
	futex_wake(&control->done);
	for (;;) {
		while (control->command == NONE)
			futex_wait(&control->command, NONE);
		switch (control->command) {
		case STATE:
		case THREAD: control->result = 0; break;
		case LOCK: control->result = lock(control->argument); break;
		case CHECKPOINT: control->result = checkpoint(); break;
		case RESTORE: control->result = restore(); break;
		case UNLOCK: control->result = unlock(); break;
		}
		control->command = NONE;
		control->done = 1;
		futex_wake(&control->done);
	}
	return NULL;
}

/* What a program calls. */

static int current(const char *directory, char *uuid)
{
	char path[4096];
	snprintf(path, sizeof path, "%s/state", directory);
	FILE *file = fopen(path, "re");
	int found = file && fscanf(file, "%*s %63s", uuid) == 1;
	if (file)
		fclose(file);
	return found ? 0 : 999;
}

int simulated_begin(void)
{
	pthread_t thread;
	int fd = memfd_create(NAME, 0), code;
	if (ftruncate(fd, 4096))
		return 999;
	control = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if ((code = attach()) || (code = current("/gpu", control->uuid)))
		return code;
	pthread_create(&thread, NULL, serve, NULL);
	while (!control->done)
		futex_wait(&control->done, 0);
	control->done = 0;
	return 0;
}

static void enter(void)
{
	for (;;) {
		uint32_t gate = control->gate;
		pthread_mutex_lock(&calls);
		if (control->state == RUNNING)
			return;
		pthread_mutex_unlock(&calls);
		futex_wait(&control->gate, gate);
	}
}

int simulated_allocate(uint64_t size, uint32_t words, const uint32_t *data)
{
	enter();
	int failed = ask(ALLOCATE, words, size, NULL, 0) || answer() || ask(UPLOAD, words, 0, data, 4 * words) || answer();
	count = words;
	bytes = size;
	pthread_mutex_unlock(&calls);
	return failed;
}

long long simulated_step(unsigned seconds)
{
	enter();
	sleep(seconds);
	long long value = ask(STEP, 0, 0, NULL, 0) ? -1 : answer();
	pthread_mutex_unlock(&calls);
	return value;
}

/* The process checkpoint API. */

static int fault(const char *operation, int *value)
{
	char path[4096], name[64], what[64];
	int code = 0;
	snprintf(path, sizeof path, "%s/faults", getenv("SIMULATED_GPU") ?: "/nonexistent");
	FILE *file = fopen(path, "re");
	while (file && fscanf(file, "%63s %63s", name, what) == 2) {
		if (strcmp(name, operation))
			continue;
		if (!strcmp(what, "hang"))
			for (;;)
				pause();
		if (!strcmp(what, "slow"))
			sleep(2);
		else if (*what == '=' && value)
			*value = atoi(what + 1), code = -1;
		else
			code = atoi(what);
	}
	if (file)
		fclose(file);
	return code;
}

static struct control *find(int pid, int *fd)
{
	char path[512], target[256];
	snprintf(path, sizeof path, "/proc/%d/fd", pid);
	DIR *directory = opendir(path);
	*fd = -1;
	if (!directory)
		return (void *)-1;
	for (struct dirent *entry; (entry = readdir(directory)) && *fd < 0;) {
		snprintf(path, sizeof path, "/proc/%d/fd/%s", pid, entry->d_name);
		ssize_t length = readlink(path, target, sizeof target - 1);
		target[length < 0 ? 0 : length] = 0;
		if (strstr(target, "memfd:" NAME))
			*fd = open(path, O_RDWR | O_CLOEXEC);
	}
	closedir(directory);
	if (*fd < 0)
		return NULL;
	return mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
}

static int host_thread(int pid, int inner)
{
	char path[512], line[256];
	int found = -1;
	snprintf(path, sizeof path, "/proc/%d/task", pid);
	DIR *directory = opendir(path);
	for (struct dirent *entry; directory && (entry = readdir(directory));) {
		snprintf(path, sizeof path, "/proc/%d/task/%s/status", pid, entry->d_name);
		FILE *file = fopen(path, "re");
		while (file && fgets(line, sizeof line, file))
			if (!strncmp(line, "NSpid:", 6)) {
				char *last = strrchr(line, '\t');
				if (last && atoi(last) == inner)
					found = atoi(entry->d_name);
			}
		if (file)
			fclose(file);
	}
	if (directory)
		closedir(directory);
	return found;
}

/* Whether the caller may open the GPU's device, if it has one: cgroups may forbid it. */
static int usable(void)
{
	char path[4096];
	snprintf(path, sizeof path, "%s/device", getenv("SIMULATED_GPU") ?: "/nonexistent");
	int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC), error = errno;
	if (fd >= 0)
		close(fd);
	return fd >= 0 || error == ENOENT;
}

/* A restore thread is told of a process that a tracer holds, too: CRIU's plugin asks for it then. */
static int held(int pid)
{
	char path[64], state = 0;
	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	FILE *file = fopen(path, "re");
	int found = file && fscanf(file, "%*d (%*[^)]) %c", &state) == 1 && state == 't';
	if (file)
		fclose(file);
	return found;
}

static int command(int pid, const char *name, uint32_t number, uint32_t argument, int *value)
{
	int fd, code = fault(name, value);
	if (code)
		return code < 0 ? 0 : code;
	if (!usable())
		return 100;
	struct control *other = find(pid, &fd);
	if (!other || other == (void *)-1)
		return other ? 304 : 3;
	if (number == THREAD && held(pid)) {
		*value = host_thread(pid, other->thread);
		munmap(other, 4096);
		return close(fd);
	}
	flock(fd, LOCK_EX);
	other->argument = argument;
	other->done = 0;
	other->command = number;
	futex_wake(&other->command);
	while (!other->done)
		futex_wait(&other->done, 0);
	code = other->result;
	if (value)
		*value = number == STATE ? (int)other->state : host_thread(pid, other->thread);
	munmap(other, 4096);
	close(fd);
	return code;
}

int cuInit(unsigned flags) { return (int)flags; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuCheckpointProcessGetState(int pid, int *state) { return command(pid, "GetState", STATE, 0, state); }
int cuCheckpointProcessGetRestoreThreadId(int pid, int *tid) { return command(pid, "GetRestoreThreadId", THREAD, 0, tid); }
int cuCheckpointProcessLock(int pid, uint32_t *args) { return command(pid, "Lock", LOCK, args ? args[0] : 0, NULL); }
int cuCheckpointProcessCheckpoint(int pid, void *args) { (void)args; return command(pid, "Checkpoint", CHECKPOINT, 0, NULL); }

struct restore_args { struct { unsigned char was[16], becomes[16]; } *pairs; unsigned count; };

static void written(char *text, const unsigned char *uuid)
{
	text += sprintf(text, "GPU-");
	for (int i = 0; i < 16; i++)
		text += sprintf(text, i == 4 || i == 6 || i == 8 || i == 10 ? "-%02x" : "%02x", uuid[i]);
}

/* The GPU of the checkpoint has to be this node's, by itself or by the map. */
static int moved(int pid, struct restore_args *args)
{
	int fd, code;
	char here[64], was[64], becomes[64];
	struct control *other = find(pid, &fd);
	if (!other || other == (void *)-1)
		return 0;
	if (!(code = current(getenv("SIMULATED_GPU") ?: "/nonexistent", here)) && strcmp(other->uuid, here)) {
		code = 1;
		for (unsigned i = 0; args && i < args->count; i++) {
			written(was, args->pairs[i].was);
			written(becomes, args->pairs[i].becomes);
			if (!strcmp(was, other->uuid) && !strcmp(becomes, here)) {
				strcpy(other->uuid, here);
				code = 0;
			}
		}
	}
	munmap(other, 4096);
	close(fd);
	return code;
}

int cuCheckpointProcessRestore(int pid, void *args)
{
	int code = moved(pid, args);
	return code ? code : command(pid, "Restore", RESTORE, 0, NULL);
}

int cuCheckpointProcessUnlock(int pid, void *args) { (void)args; return command(pid, "Unlock", UNLOCK, 0, NULL); }
