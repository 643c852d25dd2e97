/*
 * The launcher: what containerd executes as its OCI runtime.
 *
 * A node calls its runtime for every container and every probe, and nearly all of these calls are none of our business. So
 * this program decides in a fraction of a millisecond who serves the call, and becomes that program: the downstream runtime,
 * or Python (boot.py beside the package) where a checkpoint is concerned. execve keeps the process, its environment, working
 * directory, descriptors, signal dispositions and terminal; nothing here changes any of them.
 *
 * It never refuses a call. What it doesn't understand goes to the downstream, whose own message is the right one.
 *
 * The rules are the contract with grit_runtime (oci/argv.py, host/workspace.py, config.py); tests/contract holds both to it.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef GRIT_PYTHON
#define GRIT_PYTHON "/usr/bin/python3"
#endif
#ifndef GRIT_LIBDIR
#define GRIT_LIBDIR "/usr/local/lib/grit-runtime"
#endif
#ifndef GRIT_CONFIG
#define GRIT_CONFIG "/etc/grit-runtime/config.yaml"
#endif

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#define DEFAULT_ROOT "/run/runc"
#define MAX_CONFIG (1 << 20)
#define MAX_BUNDLE_CONFIG (16 << 20)
#define MAX_LAUNCHER (1 << 20)

/* By this text a copy of this program is known for what it is: as its own downstream it would execute itself for ever. */
static const char mark[] = "grit-runtime-launcher-4f6b1c";

static char downstream[PATH_MAX] = "runc";
static char state_dir[PATH_MAX] = "/run/grit-runtime";
static char devices[PATH_MAX] = "auto";

extern char **environ;

struct text {
	const char *data;
	size_t size;
};

/*
 * Read a file of at most `limit` bytes. 0, or an errno (EFBIG, EINVAL for what is no file). The text lasts until the next
 * call. Not mmap: a page of a file that is being rewritten in place is gone for a moment, and touching it is a SIGBUS.
 */
static int read_file(const char *path, size_t limit, struct text *text)
{
	static char content[MAX_BUNDLE_CONFIG]; /* .bss: what isn't touched costs nothing */
	struct stat st;
	ssize_t got = 1;
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), err = 0; /* a FIFO must not hold us up */

	text->data = content;
	text->size = 0;
	if (fd < 0)
		return errno;
	if (fstat(fd, &st) < 0)
		err = errno;
	else if (!S_ISREG(st.st_mode))
		err = EINVAL;
	else if ((size_t)st.st_size > limit)
		err = EFBIG;
	while (!err && got && text->size < (size_t)st.st_size) { /* 0: it has been cut short meanwhile */
		got = read(fd, content + text->size, st.st_size - text->size);
		if (got < 0)
			err = errno;
		else
			text->size += got;
	}
	close(fd);
	return err;
}

static bool plain_char(char c)
{
	return isalnum((unsigned char)c) || (c && strchr("_./+-", c));
}

/* The scalar of "key: value" if it is of the simplest kind, perhaps with a comment behind it. */
static bool plain_scalar(const char *p, const char *end, char *out)
{
	size_t n = 0;

	while (p < end && *p == ' ')
		p++;
	while (p + n < end && n < PATH_MAX - 1 && plain_char(p[n]))
		n++;
	if (n == 0)
		return false;
	memcpy(out, p, n);
	out[n] = '\0';
	p += n;
	if (p < end && *p != ' ')
		return false;
	while (p < end && *p == ' ')
		p++;
	return p == end || *p == '#';
}

/*
 * Whether a line closes the quotes and brackets that it opens: else what stands below it may be text, whatever it looks like.
 * A backslash may escape a quote, which we would count: such a line is not ours to judge.
 */
static bool is_closed(const char *p, const char *end)
{
	int brackets = 0, quotes = 0, apostrophes = 0, backslashes = 0;

	for (const char *start = p; p < end && !(*p == '#' && (p == start || p[-1] == ' ')); p++) {
		brackets += *p == '[' || *p == '{';
		brackets -= *p == ']' || *p == '}';
		quotes += *p == '"';
		apostrophes += *p == '\'';
		backslashes += *p == '\\';
	}
	return !brackets && quotes % 2 == 0 && apostrophes % 2 == 0 && !backslashes;
}

/* Whether a line holds what is a line break to YAML besides '\n', a tab, or a NUL. */
static bool has_odd_space(const char *p, const char *end)
{
	size_t n = end - p;

	return memchr(p, '\t', n) || memchr(p, '\r', n) || memchr(p, '\0', n) || memmem(p, n, "\xc2\x85", 2) ||
	       memmem(p, n, "\xe2\x80\xa8", 3) || memmem(p, n, "\xe2\x80\xa9", 3);
}

/*
 * Read `downstream`, `state-dir` and `devices` from the configuration. The full file needs a YAML parser and Python has one; but a
 * line that starts in column 0 of a block mapping is always a key, so a file in which every such line has the form of one
 * can be searched line by line. Returns false for any other file.
 */
static bool read_config(void)
{
	const char *path = getenv("GRIT_RUNTIME_CONFIG");
	bool seen_downstream = false, seen_state_dir = false, seen_devices = false, may_continue = false;
	struct text text;
	int err = read_file(path && *path ? path : GRIT_CONFIG, MAX_CONFIG, &text);

	if (err)
		return err == ENOENT;
	for (const char *line = text.data, *file_end = text.data + text.size; line < file_end;) {
		const char *end = memchr(line, '\n', file_end - line), *p = line;
		if (!end)
			end = file_end;
		while (p < end && *p == ' ')
			p++;
		if (has_odd_space(line, end) || !is_closed(line, end))
			return false;
		if (p > line && p < end && *p != '#' && !may_continue)
			return false; /* an indented top level, or more of a value that we took for complete */
		if (line < end && *line != ' ' && *line != '#') {
			size_t n;
			bool *seen = NULL;
			char *out = NULL;
			p = line;
			while (p < end && (islower((unsigned char)*p) || isdigit((unsigned char)*p) || *p == '-'))
				p++;
			n = p - line;
			if (!islower((unsigned char)*line) || p == end || *p != ':' || (p + 1 < end && p[1] != ' '))
				return false;
			if (n == strlen("downstream") && !memcmp(line, "downstream", n))
				seen = &seen_downstream, out = downstream;
			else if (n == strlen("state-dir") && !memcmp(line, "state-dir", n))
				seen = &seen_state_dir, out = state_dir;
			else if (n == strlen("devices") && !memcmp(line, "devices", n))
				seen = &seen_devices, out = devices;
			if (seen && (*seen || !plain_scalar(p + 1, end, out)))
				return false;
			if (seen)
				*seen = true;
			may_continue = !seen;
		}
		line = end + 1;
	}
	return true;
}

/* `-name` or `--name`, with or without `=value`: the name and, if it is there, the value. */
static bool is_flag(const char *word, const char *name, const char **value)
{
	size_t n = strlen(name);

	word += strspn(word, "-");
	if (strncmp(word, name, n) || (word[n] && word[n] != '='))
		return false;
	*value = word[n] ? word + n + 1 : NULL;
	return true;
}

static bool one_of(const char *word, const char *const *names, const char **value)
{
	for (; *names; names++)
		if (is_flag(word, *names, value))
			return true;
	return false;
}

/* The index of the verb, found by position as urfave/cli and Go's flag package do; 0 if there is none that we can tell. */
static int find_verb(int argc, char **argv, const char **root)
{
	static const char *const values[] = { "log", "log-format", "root", "rootless", "criu", "cgroup-manager", "log-level", NULL };
	static const char *const switches[] = { "debug", "systemd-cgroup", NULL };

	for (int i = 1; i < argc; i++) {
		const char *word = argv[i], *value = NULL;
		if (!strcmp(word, "--"))
			return i + 1 < argc ? i + 1 : 0;
		if (word[0] != '-' || !word[1])
			return i;
		if (one_of(word, values, &value)) {
			const char *ignored;
			if (!value && ++i == argc)
				return 0;
			if (is_flag(word, "root", &ignored))
				*root = value ? value : argv[i];
		} else if (!one_of(word, switches, &value)) {
			return 0; /* it may take the next word, or not; `--help` and `--version` make any verb the downstream's */
		}
	}
	return 0;
}

/* <state-dir>/<root as one name>: '/' becomes '-', and what a path name may not plainly hold \xHH (systemd.unit(5)). */
static bool workspace_root(const char *root, char *out, size_t size)
{
	char absolute[2 * PATH_MAX];
	size_t n = 0;
	bool any = false;

	if (root[0] == '/')
		n = snprintf(absolute, sizeof absolute, "%s", root);
	else {
		char here[PATH_MAX];
		if (!getcwd(here, sizeof here))
			return false;
		n = snprintf(absolute, sizeof absolute, "%s/%s", here, root);
	}
	if (n >= sizeof absolute)
		return false;
	n = snprintf(out, size, "%s/", state_dir);
	for (const char *p = absolute; *p && n + 5 < size; p++) {
		if (*p == '/') {
			if (any && p[1] && p[1] != '/')
				out[n++] = '-';
		} else {
			if (isalnum((unsigned char)*p) || strchr(":_", *p) || (*p == '.' && any))
				out[n++] = *p;
			else
				n += snprintf(out + n, size - n, "\\x%02x", (unsigned char)*p);
			any = true;
		}
	}
	if (!any)
		out[n++] = '-';
	out[n] = '\0';
	return n + 5 < size;
}

/*
 * Whether a word after the verb names a container that something of ours concerns: one with an open journal, or for
 * `delete` with anything at all. A flag's value may be taken for a container's name here: Python looks closer.
 */
static bool concerns_us(char **words, bool any_trace, const char *root)
{
	char path[4 * PATH_MAX];

	if (!workspace_root(root, path, sizeof path - NAME_MAX - 16) || access(path, F_OK))
		return false;
	size_t n = strlen(path);
	for (; *words; words++) {
		const char *word = *words;
		if (!*word || *word == '-' || strchr(word, '/') || !strcmp(word, ".") || !strcmp(word, "..") || strlen(word) > NAME_MAX)
			continue;
		snprintf(path + n, sizeof path - n, any_trace ? "/%s" : "/%s/journal", word);
		if (!access(path, F_OK))
			return true;
	}
	return false;
}

/* Whether JSON text may hold the key "grit.dev/...", also if a writer chose to escape one of its characters. */
static bool mentions_us(struct text text)
{
	const char *p = text.data, *end = text.data + text.size;

	if (memmem(p, text.size, "grit.dev/", 9))
		return true;
	while ((p = memmem(p, end - p, "\\", 1)) && p + 1 < end) {
		if (p[1] == '/')
			return true;
		if (p[1] == 'u' && p + 6 <= end && p[2] == '0' && p[3] == '0') {
			char hex[3] = { p[4], p[5], 0 };
			long c = strtol(hex, NULL, 16);
			if (c && strchr("grit.dev/", (int)c))
				return true;
		}
		p += 2;
	}
	return false;
}

/* Whether it is ours to give containers the devices that they ask for: the downstream may be NVIDIA's runtime. */
static bool gives_devices(void)
{
	static const char chain[] = "nvidia-container-runtime";
	const char *slash = strrchr(downstream, '/');

	if (!strcmp(devices, "auto"))
		return strncmp(slash ? slash + 1 : downstream, chain, sizeof chain - 1) != 0;
	return strcmp(devices, "chain") && strcmp(devices, "none");
}

static bool asks_for_devices(struct text text)
{
	static const char visible[] = "NVIDIA_VISIBLE_DEVICES", annotation[] = "cdi.k8s.io/";

	return memmem(text.data, text.size, visible, sizeof visible - 1) ||
	       memmem(text.data, text.size, annotation, sizeof annotation - 1);
}

/* Whether the bundle of a `create` asks for a restore or a device, as far as can be told without reading its JSON. */
static bool create_mentions_us(char **words)
{
	static const char *const bundles[] = { "bundle", "b", NULL };
	static const char *const values[] = { "console-socket", "pidfd-socket", "pid-file", "preserve-fds", NULL };
	const char *bundle = ".", *value;
	char path[PATH_MAX];
	struct text text;

	for (; *words && strcmp(*words, "--"); words++) {
		if (**words != '-')
			continue;
		if (one_of(*words, bundles, &value))
			bundle = value ? value : words[1] ? *++words : ".";
		else if (one_of(*words, values, &value) && !value && words[1])
			words++;
	}
	if (!*bundle)
		bundle = "."; /* as runc */
	if (snprintf(path, sizeof path, "%s/config.json", bundle) >= (int)sizeof path)
		return false;
	return !read_file(path, MAX_BUNDLE_CONFIG, &text) &&
	       (mentions_us(text) || (gives_devices() && asks_for_devices(text)));
}

static const char *ignored_signals(void)
{
	struct sigaction pipe_action, xfsz_action;

	sigaction(SIGPIPE, NULL, &pipe_action);
	sigaction(SIGXFSZ, NULL, &xfsz_action);
	if (pipe_action.sa_handler == SIG_IGN)
		return xfsz_action.sa_handler == SIG_IGN ? "pipe,xfsz" : "pipe";
	return xfsz_action.sa_handler == SIG_IGN ? "xfsz" : "-";
}

/*
 * Become Python. -I and -S: no environment variable, user site, .pth file or current directory may choose the code. CPython
 * ignores SIGPIPE and SIGXFSZ, which would survive its execve: it is told what they were.
 */
static int run_python(const char *reason, int argc, char **argv)
{
	char **args = calloc(argc + 7, sizeof *args);

	if (args) {
		int n = 0;
		args[n++] = GRIT_PYTHON;
		args[n++] = "-I";
		args[n++] = "-S";
		args[n++] = GRIT_LIBDIR "/boot.py";
		args[n++] = (char *)reason;
		args[n++] = (char *)ignored_signals();
		memcpy(args + n, argv, (argc + 1) * sizeof *args);
		execve(GRIT_PYTHON, args, environ);
	}
	fprintf(stderr, "grit-runtime: cannot execute %s: %s\n", GRIT_PYTHON, strerror(errno));
	return 1; /* runc's code for everything that isn't the container's own */
}

/* The file of the downstream: as it stands if it holds a slash, else the first executable of that name in PATH. */
static bool find_downstream(char *out)
{
	const char *path = getenv("PATH");

	if (strchr(downstream, '/'))
		return strcpy(out, downstream);
	for (const char *p = path && *path ? path : DEFAULT_PATH;; p++) {
		size_t n = strcspn(p, ":");
		struct stat st;
		if (snprintf(out, PATH_MAX, "%.*s/%s", n ? (int)n : 1, n ? p : ".", downstream) < PATH_MAX &&
		    !access(out, X_OK) && !stat(out, &st) && S_ISREG(st.st_mode))
			return true;
		p += n;
		if (!*p)
			return false;
	}
}

static bool is_launcher(const char *path)
{
	struct text text;

	return !read_file(path, MAX_LAUNCHER, &text) && memmem(text.data, text.size, mark, sizeof mark - 1);
}

static int run_downstream(int argc, char **argv)
{
	char path[PATH_MAX];

	if (find_downstream(path) && !is_launcher(path)) {
		char *self = argv[0];
		argv[0] = path;
		execve(path, argv, environ);
		argv[0] = self;
	}
	return run_python("downstream", argc, argv); /* which says what is wrong with it */
}

int main(int argc, char **argv)
{
	static const char *const ours[] = {
		"checkpoint", "restore", "recover", "config", "export", "sign", "install", "uninstall",
		"plan", "doctor", "diagnose", "checkpoints", "prune", "capture", "restore-into", "report", "e2e", NULL
	};
	/* Whoever may read a checkpoint may have it shown. */
	static const char *const reading[] = { "inspect", "diff", "completion", NULL };
	const char *root = DEFAULT_ROOT;
	int verb;

	if (argc < 1)
		return 1;
	if (!read_config())
		return run_python("config", argc, argv);
	verb = find_verb(argc, argv, &root);
	if (!verb)
		return run_downstream(argc, argv);
	for (const char *const *name = reading; *name; name++)
		if (!strcmp(argv[verb], *name))
			return run_python("verb", argc, argv);
	if (geteuid())
		return run_downstream(argc, argv); /* our state is root's */
	for (const char *const *name = ours; *name; name++)
		if (!strcmp(argv[verb], *name))
			return run_python("verb", argc, argv);
	if (concerns_us(argv + verb + 1, !strcmp(argv[verb], "delete"), root))
		return run_python("verb", argc, argv);
	if (!strcmp(argv[verb], "create") && create_mentions_us(argv + verb + 1))
		return run_python("verb", argc, argv);
	return run_downstream(argc, argv);
}
