/* Simulated libnvidia-ml.so.1: what DIRECTORY/state says (gpu.py). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct {
	char driver[80], uuid[96], name[96];
	unsigned long long total, used;
	int mig, compute, processes, pids[64], mps, clients[64], mirrored;
	unsigned long long bytes[64];
} now;

static int load(void)
{
	char path[4096];
	snprintf(path, sizeof path, "%s/state", getenv("SIMULATED_GPU") ?: "/nonexistent");
	FILE *file = fopen(path, "re");
	if (!file)
		return 9; /* NVML_ERROR_DRIVER_NOT_LOADED */
	int n = fscanf(file, "%79[^\n] %95[^\n] %95[^\n] %llu %llu %d %d %d", now.driver, now.uuid, now.name, &now.total,
		       &now.used, &now.mig, &now.compute, &now.processes);
	for (int i = 0; i < now.processes && i < 64; i++)
		n += fscanf(file, "%d %llu", &now.pids[i], &now.bytes[i]);
	n += fscanf(file, "%d", &now.mps);
	for (int i = 0; i < now.mps && i < 64; i++)
		n += fscanf(file, "%d", &now.clients[i]);
	n += fscanf(file, "%d", &now.mirrored);
	fclose(file);
	return n < 9 ? 999 : 0;
}

struct info { unsigned pid; unsigned long long used; unsigned gpu, compute; };

int nvmlInit_v2(void) { return load(); }
int nvmlInitWithFlags(unsigned flags) { (void)flags; return load(); }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { (void)code; return "simulated"; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { return snprintf(text, size, "%s", now.driver) < 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 1 + now.mirrored; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) { *handle = index ? (void *)&now.mirrored : &now; return index > 1 ? 2 : load(); }
int nvmlDeviceGetMemoryInfo(void *h, unsigned long long *memory)
{
	(void)h;
	memory[0] = now.total, memory[1] = now.total - now.used, memory[2] = now.used;
	return 0;
}
int nvmlDeviceGetMigMode(void *h, unsigned *current, unsigned *pending) { (void)h; *current = *pending = now.mig; return 0; }
int nvmlDeviceGetUUID(void *h, char *text, unsigned size)
{
	return snprintf(text, size, "%s%s", now.uuid, h == &now ? "" : "-mirrored") < 0;
}
int nvmlDeviceGetName(void *h, char *text, unsigned size) { (void)h; return snprintf(text, size, "%s", now.name) < 0; }
int nvmlDeviceGetMinorNumber(void *h, unsigned *minor) { (void)h; *minor = 0; return 0; }
int nvmlDeviceGetComputeMode(void *h, unsigned *mode) { (void)h; *mode = now.compute; return 0; }
int nvmlDeviceGetPersistenceMode(void *h, unsigned *mode) { (void)h; *mode = 1; return 0; }

static int list(int n, const int *pids, const unsigned long long *bytes, unsigned *count, struct info *infos)
{
	int room = *count >= (unsigned)n;
	*count = n;
	for (int i = 0; room && infos && i < n; i++)
		infos[i] = (struct info){ pids[i], bytes ? bytes[i] : 0, 0, 0 };
	return room ? 0 : 7; /* NVML_ERROR_INSUFFICIENT_SIZE */
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *h, unsigned *count, struct info *infos)
{
	(void)h;
	return list(now.processes, now.pids, now.bytes, count, infos);
}
int nvmlDeviceGetMPSComputeRunningProcesses_v3(void *h, unsigned *count, struct info *infos)
{
	(void)h;
	return list(now.mps, now.clients, NULL, count, infos);
}
