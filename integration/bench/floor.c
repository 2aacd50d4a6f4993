/* The floor: what running the bench's bundle costs the kernel, whoever asks.
 *
 * It makes the cgroup, clones into the same namespaces, makes the same mounts,
 * devices and masks, pivots, executes the same program, waits for it and
 * removes the cgroup: with everything known beforehand, nothing checked,
 * nothing cleaned up after an error, no config read, no state written, no
 * capability dropped, no device rule and no seccomp filter loaded. A runtime
 * cannot be much faster than this without doing less.
 *
 * usage: floor BUNDLE CGROUP [PROGRAM ARGUMENT...]
 *   BUNDLE   absolute path of the bundle: rootfs, and files to bind
 *   CGROUP   the directory to make for the container's cgroup
 *   PROGRAM  what to execute (default: /bin/true)
 *
 * It must follow config.json beside it by hand: a mount there is a mount here.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#define MUST(call) do { if ((call) < 0) err(1, "floor: %s", #call); } while (0)

static const unsigned long SAFE = MS_NOSUID | MS_NOEXEC | MS_NODEV;

static const char *const masked[] = {
	"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
	"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
	"/sys/devices/virtual/powercap", "/sys/firmware", "/sys/fs/selinux",
	"/proc/interrupts",
};
static const char *const readonly[] = {
	"/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys",
	"/proc/sysrq-trigger",
};

static void bind_file(const char *bundle, const char *name, const char *target)
{
	char source[4096];
	snprintf(source, sizeof source, "%s/files/%s", bundle, name);
	MUST(mount(source, target, NULL, MS_BIND | MS_REC, NULL));
	MUST(mount(NULL, target, NULL, MS_REC | MS_PRIVATE, NULL));
}

static void devices(void)
{
	static const struct { const char *path; int major, minor; } nodes[] = {
		{ "dev/null", 1, 3 }, { "dev/zero", 1, 5 }, { "dev/full", 1, 7 },
		{ "dev/random", 1, 8 }, { "dev/urandom", 1, 9 }, { "dev/tty", 5, 0 },
	};
	for (size_t i = 0; i < sizeof nodes / sizeof *nodes; i++)
		MUST(mknod(nodes[i].path, S_IFCHR | 0666, makedev(nodes[i].major, nodes[i].minor)));
	MUST(symlink("/proc/self/fd", "dev/fd"));
	MUST(symlink("/proc/self/fd/0", "dev/stdin"));
	MUST(symlink("/proc/self/fd/1", "dev/stdout"));
	MUST(symlink("/proc/self/fd/2", "dev/stderr"));
	MUST(symlink("pts/ptmx", "dev/ptmx"));
}

/* Masked directories share one read-only tmpfs, as files share /dev/null. */
static void masks(void)
{
	const char *empty = NULL;
	for (size_t i = 0; i < sizeof masked / sizeof *masked; i++) {
		struct stat st;
		if (stat(masked[i], &st) < 0)
			continue;
		if (!S_ISDIR(st.st_mode)) {
			MUST(mount("/dev/null", masked[i], NULL, MS_BIND, NULL));
		} else if (!empty) {
			empty = masked[i];
			MUST(mount("tmpfs", empty, "tmpfs", MS_RDONLY, "nr_inodes=1,size=0"));
		} else {
			MUST(mount(empty, masked[i], NULL, MS_BIND, NULL));
		}
	}
	for (size_t i = 0; i < sizeof readonly / sizeof *readonly; i++)
		if (!mount(readonly[i], readonly[i], NULL, MS_BIND | MS_REC, NULL))
			MUST(mount(NULL, readonly[i], NULL, MS_BIND | MS_REMOUNT | MS_RDONLY | SAFE, NULL));
}

static void child(const char *bundle, char **program)
{
	MUST(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
	MUST(chdir(bundle));
	MUST(mount("rootfs", "rootfs", NULL, MS_BIND | MS_REC, NULL));
	MUST(chdir("rootfs"));

	umask(0);
	MUST(mount("proc", "proc", "proc", SAFE, NULL));
	MUST(mount("tmpfs", "dev", "tmpfs", MS_NOSUID | MS_STRICTATIME, "mode=755,size=65536k"));
	MUST(mount("sysfs", "sys", "sysfs", SAFE | MS_RDONLY, NULL));
	MUST(mkdir("dev/pts", 0755));
	MUST(mount("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC,
		   "newinstance,ptmxmode=0666,mode=0620,gid=5"));
	MUST(mkdir("dev/mqueue", 0755));
	MUST(mount("mqueue", "dev/mqueue", "mqueue", SAFE, NULL));
	MUST(mkdir("dev/shm", 0755));
	MUST(mount("shm", "dev/shm", "tmpfs", SAFE, "mode=1777,size=65536k"));
	bind_file(bundle, "containerenv", "run/.containerenv");
	bind_file(bundle, "hostname", "etc/hostname");
	bind_file(bundle, "hosts", "etc/hosts");
	MUST(mount("cgroup", "sys/fs/cgroup", "cgroup2", SAFE | MS_RELATIME, NULL));
	MUST(mount(NULL, "sys/fs/cgroup", NULL, MS_BIND | MS_REMOUNT | MS_RDONLY | SAFE | MS_RELATIME, NULL));
	devices();

	MUST(syscall(SYS_pivot_root, ".", "."));
	MUST(umount2(".", MNT_DETACH));
	MUST(chdir("/"));
	int sysctl = open("/proc/sys/net/ipv4/ping_group_range", O_WRONLY | O_CLOEXEC);
	MUST(sysctl);
	MUST(write(sysctl, "0 0", 3));
	masks();

	MUST(sethostname("bench", 5));
	umask(022);
	setsid();
	char *envp[] = { "PATH=/bin", NULL };
	execve(program[0], program, envp);
	err(1, "floor: execve %s", program[0]);
}

int main(int argc, char **argv)
{
	if (argc < 3)
		errx(2, "usage: floor BUNDLE CGROUP [PROGRAM ARGUMENT...]");

	MUST(mkdir(argv[2], 0755));
	int cgroup = open(argv[2], O_PATH | O_DIRECTORY | O_CLOEXEC);
	MUST(cgroup);
	struct clone_args args = {
		.flags = CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNS |
			 CLONE_NEWCGROUP | CLONE_INTO_CGROUP,
		.exit_signal = SIGCHLD,
		.cgroup = (uint64_t)cgroup,
	};
	long pid = syscall(SYS_clone3, &args, sizeof args);
	MUST(pid);
	if (pid == 0)
		child(argv[1], argc > 3 ? argv + 3 : (char *[]){ "/bin/true", NULL });
	int status;
	MUST(waitpid((pid_t)pid, &status, 0));
	MUST(rmdir(argv[2]));
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
