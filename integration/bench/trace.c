/* Which parts of a program run: for integration/bench/order.
 *
 * usage: trace OUT PROGRAM ARGUMENT...
 *
 * Executes PROGRAM one instruction at a time, with the processes that it
 * makes, and writes a byte for each 16 of its addresses from 0x200000 on: 1
 * where an instruction was executed there. A child that executes something
 * else is let go, and what is left when PROGRAM ends is killed; PROGRAM itself
 * may execute itself again. Slow: a second for some 100,000 instructions. Exit
 * status: 0, or 1 where PROGRAM fails.
 */
#include <err.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#define BASE 0x200000UL
#define CELLS ((8UL << 20) / 16)

static unsigned char seen[CELLS];

static void mark(pid_t pid)
{
	struct user_regs_struct regs;

	if (ptrace(PTRACE_GETREGS, pid, 0, &regs) == 0 && regs.rip >= BASE && (regs.rip - BASE) / 16 < CELLS)
		seen[(regs.rip - BASE) / 16] = 1;
}

int main(int argc, char **argv)
{
	long options = PTRACE_O_EXITKILL | PTRACE_O_TRACEEXEC | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK |
		       PTRACE_O_TRACEVFORK;
	int status, result = 1;
	pid_t main_pid, pid;
	FILE *out;

	if (argc < 3)
		errx(1, "usage: trace OUT PROGRAM ARGUMENT...");
	main_pid = fork();
	if (main_pid < 0)
		err(1, "fork");
	if (main_pid == 0) {
		if (ptrace(PTRACE_TRACEME, 0, 0, 0))
			err(127, "ptrace");
		execv(argv[2], argv + 2);
		err(127, "execute %s", argv[2]);
	}
	if (waitpid(main_pid, &status, 0) != main_pid || !WIFSTOPPED(status))
		errx(1, "%s did not start", argv[2]);
	if (ptrace(PTRACE_SETOPTIONS, main_pid, 0, options) || ptrace(PTRACE_SINGLESTEP, main_pid, 0, 0))
		err(1, "ptrace");
	while ((pid = waitpid(-1, &status, __WALL)) > 0 || errno == EINTR) {
		int signal;

		if (pid < 0)
			continue;
		if (WIFEXITED(status) || WIFSIGNALED(status)) {
			if (pid != main_pid)
				continue;
			result = !(WIFEXITED(status) && WEXITSTATUS(status) == 0);
			break;
		}
		if (status >> 16 == PTRACE_EVENT_EXEC && pid != main_pid) {
			ptrace(PTRACE_DETACH, pid, 0, 0);
			continue;
		}
		mark(pid);
		signal = WSTOPSIG(status);
		if (signal == SIGTRAP || signal == SIGSTOP)
			signal = 0;
		ptrace(PTRACE_SINGLESTEP, pid, 0, signal);
	}
	out = fopen(argv[1], "wbe");
	if (!out || fwrite(seen, 1, CELLS, out) != CELLS || fclose(out))
		err(1, "write %s", argv[1]);
	return result;
}
