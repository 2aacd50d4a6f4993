// Executes a program under a seccomp filter that answers some system calls with an errno:
// deny ERRNO NUMBER[@INDEX=VALUE][,...] PROGRAM ARGUMENT...
// What a kernel without the call says (ENOSYS), or a filter such as Docker's (EPERM). Instead of a number,
// ERRNO may be "kill" (whoever makes the call is killed by SIGSYS) or "hang" (it waits for ever).
// With @INDEX=VALUE only calls whose argument INDEX (its lower half) is VALUE.
//
// With -DERROR=... -DNUMBERS=... -DPROGRAM=... it stands in the place of PROGRAM instead, and passes its
// own arguments on: integration/deny/run gives it to the suite as the runtime.
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv) {
	struct sock_filter f[128];
	int k = 0;
	unsigned action = SECCOMP_RET_ERRNO, flags = 0;
#ifdef PROGRAM
	char *numbers = NUMBERS, *runtime = PROGRAM;
	int error = ERROR, first = 0;
	if (argc < 1)
		return 96;
#else
	if (argc < 4)
		return 96;
	char *numbers = argv[2], *runtime = argv[3];
	int error = atoi(argv[1]), first = 3;
	if (!strcmp(argv[1], "kill"))
		action = SECCOMP_RET_KILL_PROCESS;
	else if (!strcmp(argv[1], "hang"))
		action = SECCOMP_RET_USER_NOTIF;
#endif
	if (action == SECCOMP_RET_ERRNO)
		action |= error;
	const unsigned at = offsetof(struct seccomp_data, nr);
	f[k++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, at);
	for (char *s = numbers; *s && k < 120;) {
		long number = strtol(s, &s, 10);
		if (*s == '@') {
			long index = strtol(s + 1, &s, 10), value = strtol(s + 1, &s, 10);
			if (*s == ',')
				s++;
			unsigned argument = offsetof(struct seccomp_data, args[0]) + 8 * index;
			f[k++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 4);
			f[k++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, argument);
			f[k++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, 1);
			f[k++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, action);
			f[k++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
			continue;
		}
		if (*s == ',')
			s++;
		// Of mknod and mknodat the device nodes: whoever filters them lets FIFOs pass, as the kernel
		// does in a user namespace, and a runtime's create waits at one.
		int node = number == SYS_mknod || number == SYS_mknodat;
		f[k++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, node ? 5 : 1);
		if (node) {
			unsigned mode = offsetof(struct seccomp_data, args[number == SYS_mknod ? 1 : 2]);
			f[k++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, mode);
			f[k++] = (struct sock_filter)BPF_STMT(BPF_ALU | BPF_AND | BPF_K, S_IFMT);
			f[k++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, S_IFIFO, 0, 1);
			f[k++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
		}
		f[k++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, action);
	}
	f[k++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	struct sock_fprog program = {k, f};
	// As root without no_new_privs, so that the container is like any other.
	if (action == SECCOMP_RET_USER_NOTIF)
		flags = SECCOMP_FILTER_FLAG_NEW_LISTENER;
	int listener = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
	if (listener < 0) {
		perror("seccomp");
		return 97;
	}
	// While somebody has the listener and does not answer, the call does not return. Whoever that is ends
	// with the runtime, which is this process.
	if (flags && fork() == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	if (flags)
		close(listener);
	execv(runtime, argv + first);
	perror("execv");
	return 98;
}
