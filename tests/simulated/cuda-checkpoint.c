/* Simulated cuda-checkpoint: the arguments and output of NVIDIA's. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int cuCheckpointProcessGetState(int, int *);
int cuCheckpointProcessGetRestoreThreadId(int, int *);
int cuCheckpointProcessLock(int, uint32_t *);
int cuCheckpointProcessCheckpoint(int, void *);
int cuCheckpointProcessRestore(int, void *);
int cuCheckpointProcessUnlock(int, void *);

static struct { unsigned char was[16], becomes[16]; } pairs[16];
static struct { void *pairs; unsigned count; } args = { pairs, 0 };

static const char *uuid(const char *text, unsigned char *bytes)
{
	unsigned byte;
	text += strlen("GPU-");
	for (int i = 0; i < 16 && sscanf(text, "%2x", &byte) == 1; i++, text += 2 + (text[2] == '-'))
		bytes[i] = byte;
	return text;
}

/* OLD=NEW,... */
static void parse(const char *text)
{
	for (; *text && args.count < 16; args.count++) {
		text = uuid(text, pairs[args.count].was);
		text = uuid(text + (*text == '='), pairs[args.count].becomes);
		text += *text == ',';
	}
}

int main(int argc, char **argv)
{
	const char *states[] = { "running", "locked", "checkpointed", "failed" }, *action = "";
	uint32_t lock[16] = { 0 };
	int pid = 0, value = 0, code = 1;
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "-h"))
			return puts("--get-state --get-restore-tid --action lock|checkpoint|restore|unlock --pid"), 0;
		if (!strcmp(argv[i], "--pid"))
			pid = atoi(argv[++i]);
		else if (!strcmp(argv[i], "--timeout"))
			lock[0] = atoi(argv[++i]);
		else if (!strcmp(argv[i], "--device-map"))
			parse(argv[++i]);
		else if (!strcmp(argv[i], "--action"))
			action = argv[++i];
		else
			action = argv[i];
	}
	if (!strcmp(action, "--get-state") && !(code = cuCheckpointProcessGetState(pid, &value)))
		puts(states[value]);
	if (!strcmp(action, "--get-restore-tid") && !(code = cuCheckpointProcessGetRestoreThreadId(pid, &value)))
		printf("%d\n", value);
	if (!strcmp(action, "lock"))
		code = cuCheckpointProcessLock(pid, lock);
	if (!strcmp(action, "checkpoint"))
		code = cuCheckpointProcessCheckpoint(pid, NULL);
	if (!strcmp(action, "restore"))
		code = cuCheckpointProcessRestore(pid, args.count ? &args : NULL);
	if (!strcmp(action, "unlock"))
		code = cuCheckpointProcessUnlock(pid, NULL);
	const char *words = code == 3 ? "initialization error" : code == 2 ? "out of memory"
			    : code == 100 ? "no CUDA-capable device is detected"
			    : code == 600 ? "device not ready"
			    : code == 304 ? "OS call failed or operation not supported on this OS"
			    : code == 801 ? "operation not supported" : "unknown error";
	if (code)
		fprintf(stderr, "Error on process ID %d: \"%s\"\n", pid, words);
	return code != 0;
}
