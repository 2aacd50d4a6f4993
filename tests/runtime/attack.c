// An attacker: tries what a protection that the host does not give would have stopped, and tells what came
// of it. attack TRY[=ARGUMENT]...: a line "TRY=ARGUMENT ERRNO" for each, 0 where it could be done. Static.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static int opened(const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC | O_NONBLOCK, 0600);
    if (fd < 0)
        return -1;
    close(fd);
    return 0;
}

static int socketed(int family, int type, int protocol)
{
    int fd = socket(family, type | SOCK_CLOEXEC, protocol);
    if (fd < 0)
        return -1;
    close(fd);
    return 0;
}

// Connects to a socket with a path, or an abstract one.
static int connected(const char *name, int abstract)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    size_t length = strlen(name);
    memcpy(at.sun_path + abstract, name, length);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    int done = connect(fd, (void *)&at, offsetof(struct sockaddr_un, sun_path) + abstract + length);
    int error = errno;
    close(fd);
    errno = error;
    return done;
}

static int traced(pid_t pid)
{
    if (ptrace(PTRACE_SEIZE, pid, NULL, NULL) != 0)
        return -1;
    kill(pid, SIGCONT);
    return 0;
}

static int memory_of(const char *pid)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%s/mem", pid);
    return opened(path, O_RDONLY);
}

// As clone3 has its flags in memory, where no filter sees them.
static int cloned3(unsigned long flags)
{
    unsigned long args[8] = {flags, 0, 0, 0, SIGCHLD};
    long pid = syscall(SYS_clone3, args, sizeof args);
    if (pid == 0)
        _exit(0);
    if (pid < 0)
        return -1;
    waitpid(pid, NULL, 0);
    return 0;
}

static int node(const char *argument)
{
    char path[256];
    unsigned major, minor;
    if (sscanf(argument, "%255[^:]:%u:%u", path, &major, &minor) != 3)
        return errno = EINVAL, -1;
    return mknod(path, S_IFCHR | 0666, makedev(major, minor));
}

// A program of classic shape for packets that go through a device: r0 = 0, exit.
static int loaded(void)
{
    static unsigned long long code[] = {0xb7, 0x95};
    unsigned char attr[128] = {3, 0, 0, 0, 2, 0, 0, 0}; // BPF_PROG_TYPE_SCHED_CLS, two instructions
    unsigned long long insns = (unsigned long)code, license = (unsigned long)"GPL";
    memcpy(attr + 8, &insns, 8);
    memcpy(attr + 16, &license, 8);
    return syscall(SYS_bpf, 5, attr, sizeof attr) < 0 ? -1 : 0;
}

static int attempt(const char *what, const char *with)
{
    unsigned char handle[64] = {8, 0, 0, 0, 1, 0, 0, 0};
    if (!strcmp(what, "mount"))
        return mount("none", with, "tmpfs", 0, NULL);
    if (!strcmp(what, "bind"))
        return mount("/bin", with, NULL, MS_BIND, NULL);
    if (!strcmp(what, "remount"))
        return mount(NULL, with, NULL, MS_REMOUNT | MS_BIND, NULL);
    if (!strcmp(what, "umount"))
        return umount2(with, MNT_DETACH);
    if (!strcmp(what, "fsopen"))
        return syscall(SYS_fsopen, "tmpfs", 0) < 0 ? -1 : 0;
    if (!strcmp(what, "read"))
        return opened(with, O_RDONLY);
    if (!strcmp(what, "write"))
        return opened(with, O_WRONLY);
    if (!strcmp(what, "create"))
        return opened(with, O_WRONLY | O_CREAT);
    if (!strcmp(what, "truncate"))
        return truncate(with, 0);
    if (!strcmp(what, "chmod"))
        return chmod(with, 0600);
    if (!strcmp(what, "remove"))
        return unlink(with);
    if (!strcmp(what, "mknod"))
        return node(with);
    if (!strcmp(what, "trace"))
        return traced(atoi(with));
    if (!strcmp(what, "memory"))
        return memory_of(with);
    if (!strcmp(what, "signal"))
        return kill(atoi(with), 0);
    if (!strcmp(what, "module"))
        return syscall(SYS_delete_module, "isorun-no-such-module", O_NONBLOCK);
    if (!strcmp(what, "handle"))
        return syscall(SYS_open_by_handle_at, AT_FDCWD, handle, O_RDONLY) < 0 && errno != ESTALE ? -1 : 0;
    if (!strcmp(what, "raw"))
        return socketed(AF_INET, SOCK_RAW, IPPROTO_ICMP);
    if (!strcmp(what, "raw6"))
        return socketed(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6);
    if (!strcmp(what, "packet"))
        return socketed(AF_PACKET, SOCK_RAW, 0);
    if (!strcmp(what, "oldpacket"))
        return socketed(AF_INET, SOCK_PACKET, 0);
    if (!strcmp(what, "vsock"))
        return socketed(40, SOCK_STREAM, 0);
    if (!strcmp(what, "inet"))
        return socketed(AF_INET, SOCK_STREAM, 0);
    if (!strcmp(what, "netlink"))
        return socketed(AF_NETLINK, SOCK_RAW, 0);
    if (!strcmp(what, "unix"))
        return socketed(AF_UNIX, SOCK_STREAM, 0);
    if (!strcmp(what, "pair"))
        return socketpair(AF_UNIX, atoi(with), 0, (int[2]){0});
    if (!strcmp(what, "keys"))
        return syscall(SYS_keyctl, 0, -3, 0) < 0 && errno != ENOKEY ? -1 : 0;
    if (!strcmp(what, "abstract"))
        return connected(with, 1);
    if (!strcmp(what, "connect"))
        return connected(with, 0);
    if (!strcmp(what, "uring"))
        return syscall(SYS_io_uring_setup, 1, (unsigned char[256]){0}) < 0 ? -1 : 0;
    if (!strcmp(what, "bpf"))
        return loaded();
    if (!strcmp(what, "setuid"))
        return setresuid(atoi(with), atoi(with), atoi(with));
    if (!strcmp(what, "chown"))
        return chown(with, 0, 0);
    if (!strcmp(what, "shm")) {
        int id = shmget(IPC_PRIVATE, 4096, IPC_CREAT | 0600);
        return id < 0 ? -1 : shmctl(id, IPC_RMID, NULL);
    }
    if (!strcmp(what, "unshare"))
        return unshare(atoi(with));
    if (!strcmp(what, "clone3"))
        return cloned3(strtoul(with, NULL, 0));
    if (!strcmp(what, "setns"))
        return setns(open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC), 0);
    fprintf(stderr, "attack: what is %s?\n", what);
    exit(64);
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int i = 1; i < argc; i++) {
        char *with = strchr(argv[i], '=');
        if (with)
            *with++ = 0;
        // In a process of its own: what succeeds is not to change what the next one finds.
        pid_t pid = fork();
        if (pid == 0) {
            errno = 0;
            int done = attempt(argv[i], with ? with : "");
            int error = done == 0 ? 0 : errno;
            printf("%s%s%s %d\n", argv[i], with ? "=" : "", with ? with : "", error);
            _exit(0);
        }
        waitpid(pid, NULL, 0);
    }
    return 0;
}
