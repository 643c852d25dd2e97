/* counter MIB SECONDS FILE [second [shared | ranks]]: memory on the simulated GPU, and `step value` lines in FILE as it
 * changes. A second process besides; and memory of the CPU that both map, or NCCL's socket in each.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int simulated_begin(void);
int simulated_allocate(uint64_t size, uint32_t words, const uint32_t *data);
long long simulated_step(unsigned seconds);

static int rank(int number)
{
	struct sockaddr_un name = { .sun_family = AF_UNIX };
	snprintf(name.sun_path + 1, sizeof name.sun_path - 1, "tmp/nccl-socket-%d-2a4c", number);
	return bind(socket(AF_UNIX, SOCK_DGRAM, 0), (struct sockaddr *)&name, sizeof name);
}

int main(int argc, char **argv)
{
	static uint32_t data[256];
	char name[512];
	int shared = argc > 5 && !strcmp(argv[5], "shared"), ranks = argc > 5 && !strcmp(argv[5], "ranks");
	if (shared && mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0) == MAP_FAILED)
		return 4;
	int first = argc > 4 && fork();
	if (ranks && rank(first))
		return 5;
	snprintf(name, sizeof name, "%s%s", argv[3], first ? "." : "");
	for (unsigned i = 0; i < 256; i++)
		data[i] = i * 7919 + 1;
	if (simulated_begin() || simulated_allocate(strtoull(argv[1], NULL, 10) << 20, 256, data))
		return 3;
	for (long step = 0;; step++) {
		long long value = simulated_step(atoi(argv[2]));
		FILE *file = fopen(name, "a");
		fprintf(file, "%ld %lld\n", step, value);
		fclose(file);
		usleep(20000);
	}
}
