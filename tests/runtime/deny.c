// Executes a program under a seccomp filter that answers some system calls with an errno:
// deny ERRNO NUMBER[,NUMBER...] PROGRAM ARGUMENT...
// What a kernel without the call says (ENOSYS), or a filter such as Docker's (EPERM).
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv) {
	struct sock_filter f[128];
	int k = 0;
	if (argc < 4)
		return 96;
	f[k++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
	for (char *s = argv[2]; *s && k < 120;) {
		long number = strtol(s, &s, 10);
		if (*s == ',')
			s++;
		f[k++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1);
		f[k++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | atoi(argv[1]));
	}
	f[k++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	struct sock_fprog program = {k, f};
	// As root without no_new_privs, so that the container is like any other.
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program)) {
		perror("seccomp");
		return 97;
	}
	execv(argv[3], argv + 3);
	perror("execv");
	return 98;
}
