/* counter MIB SECONDS FILE [second [shared]]: a second process, and memory of the CPU that both map; memory on the simulated GPU, and `step value` lines in FILE as it changes. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int simulated_begin(void);
int simulated_allocate(uint64_t size, uint32_t words, const uint32_t *data);
long long simulated_step(unsigned seconds);

int main(int argc, char **argv)
{
	static uint32_t data[256];
	char name[512];
	if (argc > 5 && mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0) == MAP_FAILED)
		return 4;
	snprintf(name, sizeof name, "%s%s", argv[3], argc > 4 && fork() ? "." : "");
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
