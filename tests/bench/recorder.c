/*
 * Stands for a program and records when it began and ended, by CLOCK_MONOTONIC: one line each, `begin NS VERB` and
 * `end NS VERB`. Compiled with -DPROGRAM="..." and -DRECORD="...". It is the program's parent, hands on what kills it, and
 * exits as it did.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *const verbs[] = { "restore", "checkpoint", "create", "start", "state", "ps", "pause", "resume", "kill",
				     "delete", "swrk", "check", "--version", "--help", NULL };

static const char *verb_of(char **argv)
{
	for (char **word = argv + 1; *word; word++)
		for (const char *const *verb = verbs; *verb; verb++)
			if (!strcmp(*word, *verb))
				return word[1] && !strcmp(word[1], "--help") ? "--help" : *verb;
	return "other";
}

static void record(const char *what, const char *verb)
{
	struct timespec now;
	char line[128];
	int fd, size;

	clock_gettime(CLOCK_MONOTONIC, &now);
	size = snprintf(line, sizeof line, "%s %lld %s\n", what, now.tv_sec * 1000000000LL + now.tv_nsec, verb);
	fd = open(RECORD, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0 || write(fd, line, size) != size)
		_exit(125);
	close(fd);
}

int main(int argc, char **argv)
{
	const char *verb = verb_of(argv);
	int status;
	pid_t pid;

	(void)argc;
	record("begin", verb);
	pid = vfork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		execv(PROGRAM, argv);
		_exit(127);
	}
	if (pid < 0 || waitpid(pid, &status, 0) < 0)
		return 126;
	record("end", verb);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
