/* Compiles profiles with libseccomp the way runc does, to compare isorun's programs with them.
 *
 * Standard input: one profile after the other, as lines
 *     default ACTION
 *     arch NAME
 *     rule ACTION CALL [INDEX OP VALUE VALUETWO]...
 *     end
 * with ACTION a return value in decimal and OP libseccomp's number of the operator. Standard output
 * for each: "error ERRNO", or the number of instructions and then "code jt jf k" for each.
 */
#include <errno.h>
#include <linux/filter.h>
#include <seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static int add(scmp_filter_ctx filter, uint32_t action, int nr, struct scmp_arg_cmp *args, int count)
{
	int seen[6] = { 0 }, twice = 0, rc = 0;
	for (int i = 0; i < count; i++)
		twice |= seen[args[i].arg]++;
	if (!twice)
		return seccomp_rule_add_array(filter, action, nr, count, args);
	for (int i = 0; i < count && rc == 0; i++)
		rc = seccomp_rule_add_array(filter, action, nr, 1, &args[i]);
	return rc;
}

static void print(scmp_filter_ctx filter)
{
	int fd = memfd_create("filter", 0);
	int rc = seccomp_export_bpf(filter, fd);
	if (rc) {
		printf("error %d\n", -rc);
	} else {
		struct sock_filter insn;
		printf("%ld\n", (long)(lseek(fd, 0, SEEK_END) / sizeof(insn)));
		lseek(fd, 0, SEEK_SET);
		while (read(fd, &insn, sizeof(insn)) == sizeof(insn))
			printf("%u %u %u %u\n", insn.code, insn.jt, insn.jf, insn.k);
	}
	close(fd);
}

int main(void)
{
	char line[4096];
	scmp_filter_ctx filter = NULL;
	uint32_t fallback = 0;
	int rc = 0, rules = 0;
	while (fgets(line, sizeof(line), stdin)) {
		char *word = strtok(line, " \n");
		if (!strcmp(word, "default")) {
			fallback = strtoul(strtok(NULL, " \n"), NULL, 10);
			filter = seccomp_init(fallback);
			rc = rules = 0;
		} else if (!strcmp(word, "arch")) {
			int added = seccomp_arch_add(filter, seccomp_arch_resolve_name(strtok(NULL, " \n")));
			if (added && added != -EEXIST)
				rc = added;
		} else if (!strcmp(word, "rule") && rc == 0) {
			uint32_t action = strtoul(strtok(NULL, " \n"), NULL, 10);
			int nr = seccomp_syscall_resolve_name(strtok(NULL, " \n"));
			struct scmp_arg_cmp args[16];
			int count = 0;
			for (char *index; (index = strtok(NULL, " \n")); count++) {
				args[count].arg = atoi(index);
				args[count].op = atoi(strtok(NULL, " \n"));
				args[count].datum_a = strtoull(strtok(NULL, " \n"), NULL, 10);
				args[count].datum_b = strtoull(strtok(NULL, " \n"), NULL, 10);
			}
			rules++;
			if (action != fallback && nr != __NR_SCMP_ERROR)
				rc = add(filter, action, nr, args, count);
		} else if (!strcmp(word, "end")) {
			if (rules > 32)
				seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2);
			if (rc)
				printf("error %d\n", -rc);
			else
				print(filter);
			seccomp_release(filter);
		}
	}
	return 0;
}
