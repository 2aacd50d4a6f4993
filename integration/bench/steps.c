/* Drives a runtime the way an engine does, for the bench.
 *
 * usage: steps [--rss FILE] run RUNTIME ROOT BUNDLE ID
 *        steps [--rss FILE] cycle RUNTIME ROOT BUNDLE ID
 *        steps as ID DIRECTORY COMMAND...
 *
 * `run` is one process: RUNTIME run. `cycle` is create, start and delete, each
 * a process of its own; in between it waits, as the subreaper that conmon and
 * containerd's shim are, for the container's process to end, so that delete
 * never meets a process that is still going down (runc then sleeps for 100 ms).
 *
 * `as` executes COMMAND as the user and group ID, who has no privileges and
 * nothing but DIRECTORY (XDG_RUNTIME_DIR).
 *
 * With --rss it writes one line a step: its name and its peak RSS in KiB, as
 * wait4 says it: the largest of that process and all that it waited for. The
 * line "init" is the container's process, from the clone to its end, where it
 * was left to this subreaper. Exit status: 0, or 1 when a step failed.
 */
#define _GNU_SOURCE
#include <err.h>
#include <grp.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static FILE *rss;
static long init_rss = -1;
static pid_t init_pid = -1;

static void reaped(pid_t pid, const struct rusage *usage)
{
	if (pid == init_pid)
		init_rss = usage->ru_maxrss;
}

/* Runs one step and waits for it. posix_spawn shares the address space, so
 * that no copy of this program's pages counts as the runtime's. */
static void step(const char *name, char *const argv[])
{
	pid_t pid, got;
	int status, error = posix_spawnp(&pid, argv[0], NULL, NULL, argv, environ);
	struct rusage usage;
	if (error)
		errx(1, "cannot start %s: %s", argv[0], strerror(error));
	while ((got = wait4(-1, &status, 0, &usage)) != pid) {
		if (got < 0)
			err(1, "wait4");
		/* The container's process may end before `start` does; a
		 * runtime's own helpers are left here too. */
		reaped(got, &usage);
	}
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		errx(1, "%s %s failed: wait status 0x%x", argv[0], name, (unsigned)status);
	if (rss)
		fprintf(rss, "%s %ld\n", name, usage.ru_maxrss);
}

static pid_t read_pid(const char *path)
{
	FILE *file = fopen(path, "re");
	int pid = -1;
	if (!file || fscanf(file, "%d", &pid) != 1)
		errx(1, "no pid in %s", path);
	fclose(file);
	return pid;
}

static int as(char **argv)
{
	unsigned id = (unsigned)atoi(argv[0]);
	if (setenv("XDG_RUNTIME_DIR", argv[1], 1) || setgroups(0, NULL) || setresgid(id, id, id) ||
	    setresuid(id, id, id))
		err(1, "become user %u", id);
	execvp(argv[2], argv + 2);
	err(1, "%s", argv[2]);
}

int main(int argc, char **argv)
{
	if (argc > 4 && !strcmp(argv[1], "as"))
		return as(argv + 2);
	if (argc > 2 && !strcmp(argv[1], "--rss")) {
		rss = fopen(argv[2], "ae");
		if (!rss)
			err(1, "%s", argv[2]);
		argc -= 2;
		argv += 2;
	}
	if (argc != 6)
		errx(2, "usage: steps [--rss FILE] run|cycle RUNTIME ROOT BUNDLE ID");
	char *verb = argv[1], *runtime = argv[2], *root = argv[3], *bundle = argv[4], *id = argv[5];

	if (!strcmp(verb, "run")) {
		step("run", (char *[]){ runtime, "--root", root, "run", "--bundle", bundle, id, NULL });
		return 0;
	}
	if (strcmp(verb, "cycle"))
		errx(2, "steps: '%s' is neither run nor cycle", verb);

	char pid_file[4096];
	snprintf(pid_file, sizeof pid_file, "%s.pid", root);
	if (prctl(PR_SET_CHILD_SUBREAPER, 1))
		err(1, "PR_SET_CHILD_SUBREAPER");
	step("create", (char *[]){ runtime, "--root", root, "create", "--bundle", bundle,
				   "--pid-file", pid_file, id, NULL });
	init_pid = read_pid(pid_file);
	step("start", (char *[]){ runtime, "--root", root, "start", id, NULL });
	while (init_rss < 0) {
		struct rusage usage;
		pid_t got = wait4(-1, NULL, 0, &usage);
		if (got < 0)
			err(1, "the container's process %d was not left to its subreaper", (int)init_pid);
		reaped(got, &usage);
	}
	step("delete", (char *[]){ runtime, "--root", root, "delete", id, NULL });
	if (rss)
		fprintf(rss, "init %ld\n", init_rss);
	unlink(pid_file);
	return 0;
}
