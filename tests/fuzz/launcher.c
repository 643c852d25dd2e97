/*
 * The launcher's readers of what others write, with sanitizers: its command line is this program's, and each file named by
 * LAUNCHER_INPUT is a configuration (GRIT_RUNTIME_CONFIG names the same one) and a config.json.
 */
#define main launcher_main
#include "../../launcher/grit-runtime.c"
#undef main

int main(int argc, char **argv)
{
	const char *root = DEFAULT_ROOT, *file = getenv("LAUNCHER_INPUT");
	char path[4 * PATH_MAX], small[64];
	int verb = find_verb(argc, argv, &root);

	workspace_root(root, path, sizeof path - NAME_MAX - 16);
	workspace_root(root, small, sizeof small);
	if (verb) {
		concerns_us(argv + verb + 1, true, root);
		create_mentions_us(argv + verb + 1);
	}
	if (file) {
		size_t size;
		FILE *stream = fopen(file, "rb");
		/* as large as it is, so that a byte too far is found */
		char *exact;
		fseek(stream, 0, SEEK_END);
		size = ftell(stream);
		rewind(stream);
		exact = malloc(size ? size : 1);
		if (fread(exact, 1, size, stream) != size)
			return 2;
		fclose(stream);
		mentions_us((struct text){ .data = exact, .size = size });
		asks_for_devices((struct text){ .data = exact, .size = size });
		free(exact);
		read_config();
	}
	return 0;
}
