// What the tests need from inside a container and busybox cannot do. Built static by the harness.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <linux/seccomp.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <sys/syscall.h>
#include <unistd.h>

static long number(const char *text) { return (long)strtoull(text, NULL, 0); }

// Prints what a system call gave: "ret -1 errno 1".
static int answer(long ret, int error)
{
    printf("ret %ld errno %d\n", ret, ret == -1 ? error : 0);
    return 0;
}

// syscall NUMBER [ARGUMENT...]: the native gate.
static int native(int argc, char **argv)
{
    long a[7] = {0};
    for (int i = 0; i < argc && i < 7; i++)
        a[i] = number(argv[i]);
    errno = 0;
    long ret = syscall(a[0], a[1], a[2], a[3], a[4], a[5], a[6]);
    return answer(ret, errno);
}

// int80 NUMBER: the gate of 32-bit programs, with which x86 rules apply.
static int int80(char **argv)
{
    int ret;
    __asm__ volatile("int $0x80" : "=a"(ret) : "a"((int)number(argv[0])), "b"(0), "c"(0), "d"(0)
                     : "memory", "r8", "r9", "r10", "r11");
    return answer(ret < 0 ? -1 : ret, -ret);
}

// fds: every open descriptor of this process, with what it is.
static int fds(void)
{
    for (int fd = 0; fd < 4096; fd++) {
        char name[64], link[4096];
        if (fcntl(fd, F_GETFD) == -1)
            continue;
        snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
        ssize_t n = readlink(name, link, sizeof link - 1);
        link[n > 0 ? n : 0] = 0;
        printf("fd %d %s\n", fd, link);
    }
    return 0;
}

// The name of a process, without its line's end.
static int name_of(int pid, char *name)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/comm", pid);
    FILE *file = fopen(path, "re");
    if (!file || !fgets(name, 64, file)) {
        if (file)
            fclose(file);
        return -1;
    }
    fclose(file);
    name[strcspn(name, "\n")] = 0;
    return 0;
}

// memory MEGABYTES: touches that much, "touched" if it lived.
static int memory(char **argv)
{
    size_t size = (size_t)number(argv[0]) << 20;
    char *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        return answer(-1, errno);
    memset(at, 1, size);
    puts("touched");
    return 0;
}

// forks COUNT: how many children could be had at once.
static int forks(char **argv)
{
    int made = 0, wanted = (int)number(argv[0]);
    for (; made < wanted; made++) {
        pid_t pid = fork();
        if (pid == 0) {
            pause();
            _exit(0);
        }
        if (pid < 0) {
            printf("forked %d errno %d\n", made, errno);
            return 0;
        }
    }
    printf("forked %d errno 0\n", made);
    return 0;
}

// burn MILLISECONDS: processor time used in that much real time.
static int burn(char **argv)
{
    struct timespec start, now, used;
    clock_gettime(CLOCK_MONOTONIC, &start);
    do
        clock_gettime(CLOCK_MONOTONIC, &now);
    while ((now.tv_sec - start.tv_sec) * 1000 + (now.tv_nsec - start.tv_nsec) / 1000000 <
           number(argv[0]));
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    printf("burned %ld\n", used.tv_sec * 1000 + used.tv_nsec / 1000000);
    return 0;
}

// write PATH...: whether a file could be changed; never changes a byte of one that it may.
static int writable(int argc, char **argv)
{
    for (int i = 0; i < argc; i++) {
        int fd = open(argv[i], O_WRONLY | O_CLOEXEC);
        printf("%s %d\n", argv[i], fd < 0 ? errno : 0);
    }
    return 0;
}

// node PATH...: type, numbers, mode and owner of device nodes.
static int node(int argc, char **argv)
{
    for (int i = 0; i < argc; i++) {
        struct stat s;
        if (lstat(argv[i], &s) != 0)
            printf("%s missing\n", argv[i]);
        else
            printf("%s %c %u:%u %o %u:%u\n", argv[i],
                   S_ISCHR(s.st_mode) ? 'c' : S_ISBLK(s.st_mode) ? 'b' : S_ISFIFO(s.st_mode) ? 'p' : '-',
                   (unsigned)(s.st_rdev >> 8) & 0xfff, (unsigned)(s.st_rdev & 0xff) | (unsigned)((s.st_rdev >> 12) & 0xfff00),
                   s.st_mode & 07777, s.st_uid, s.st_gid);
    }
    return 0;
}

// agent SOCKET ERRNO: on the host, takes one seccomp listener from the runtime, prints the state it
// came with, answers every call with that errno until the container has ended.
static int agent(char **argv)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    strncpy(at.sun_path, argv[0], sizeof at.sun_path - 1);
    int server = socket(AF_UNIX, SOCK_STREAM, 0);
    if (server < 0 || bind(server, (void *)&at, sizeof at) != 0 || listen(server, 1) != 0)
        return perror("listen"), 1;
    int peer = accept(server, NULL, NULL);
    static char text[65536], control[256];
    struct iovec part = {text, sizeof text - 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control,
                             .msg_controllen = sizeof control};
    if (recvmsg(peer, &message, MSG_CMSG_CLOEXEC) <= 0)
        return perror("recvmsg"), 1;
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    if (!head || head->cmsg_type != SCM_RIGHTS)
        return fprintf(stderr, "no descriptor came\n"), 1;
    int listener;
    memcpy(&listener, CMSG_DATA(head), sizeof listener);
    printf("%s\n", text);
    if (!strcmp(argv[1], "leave"))
        return 0;
    int go_on = !strcmp(argv[1], "continue");
    for (;;) {
        struct seccomp_notif ask;
        memset(&ask, 0, sizeof ask);
        if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &ask) != 0) {
            if (errno == EINTR)
                continue;
            return 0;
        }
        struct seccomp_notif_resp reply = {.id = ask.id};
        if (go_on)
            reply.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
        else
            reply.error = -(int)number(argv[1]);
        ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &reply);
        printf("asked %d\n", ask.data.nr);
    }
}

// spy NAME: until /tmp/stop is there, tries to get at every process of this pid namespace that comes
// and is called neither like itself nor NAME: its memory, the host behind its root, its
// file, its descriptors. One line for each thing that could be had while the process was still called so.
static int spy(char **argv)
{
    printf("spying\n");
    long seen = 0;
    while (access("/tmp/stop", F_OK) != 0) {
        DIR *proc = opendir("/proc");
        for (struct dirent *entry; proc && (entry = readdir(proc));) {
            int pid = atoi(entry->d_name);
            if (pid < 2 || pid == getpid())
                continue;
            char before[64], after[64], path[64];
            if (name_of(pid, before) || !strcmp(before, "probe") || !strcmp(before, argv[0]))
                continue;
            seen++;
            const char *got = NULL;
            struct stat s;
            // The permission for this is that of ptrace.
            snprintf(path, sizeof path, "/proc/%d/mem", pid);
            int mem = open(path, O_RDONLY | O_CLOEXEC);
            if (mem >= 0) {
                got = "mem";
                close(mem);
            }
            snprintf(path, sizeof path, "/proc/%d/root/", pid);
            if (!got && stat(path, &s) == 0)
                got = "root";
            snprintf(path, sizeof path, "/proc/%d/exe", pid);
            if (!got && stat(path, &s) == 0)
                got = "exe";
            snprintf(path, sizeof path, "/proc/%d/fd/0", pid);
            if (!got && stat(path, &s) == 0)
                got = "fd";
            if (got && !name_of(pid, after) && !strcmp(before, after))
                printf("got %s of %d %s\n", got, pid, before);
        }
        if (proc)
            closedir(proc);
    }
    printf("seen %ld\n", seen);
    return 0;
}

// flood: gives the terminal up, ends with 3, and leaves a child that writes to stdout for ever.
static int flood(void)
{
    signal(SIGHUP, SIG_IGN);
    ioctl(0, TIOCNOTTY);
    if (fork() != 0)
        return 3;
    for (;;)
        if (write(1, "flood\n", 6) < 0)
            return 0;
}

// keyring: as user 1000 makes a session keyring of this name, which everybody may search, and waits.
static int keyring(char **argv)
{
    if (setresgid(1000, 1000, 1000) || setresuid(1000, 1000, 1000))
        return 1;
    long id = syscall(SYS_keyctl, 1, argv[0]);
    if (id < 0 || syscall(SYS_keyctl, 5, id, 0x3f3f0008))
        return 1;
    puts("made");
    pause();
    return 0;
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    const char *what = argc > 1 ? argv[1] : "";
    char **rest = argv + 2;
    if (!strcmp(what, "syscall") && argc > 2)
        return native(argc - 2, rest);
    if (!strcmp(what, "int80") && argc > 2)
        return int80(rest);
    if (!strcmp(what, "fds"))
        return fds();
    if (!strcmp(what, "memory") && argc > 2)
        return memory(rest);
    if (!strcmp(what, "forks") && argc > 2)
        return forks(rest);
    if (!strcmp(what, "burn") && argc > 2)
        return burn(rest);
    if (!strcmp(what, "write"))
        return writable(argc - 2, rest);
    if (!strcmp(what, "node"))
        return node(argc - 2, rest);
    if (!strcmp(what, "flood"))
        return flood();
    if (!strcmp(what, "spy") && argc > 2)
        return spy(rest);
    if (!strcmp(what, "agent") && argc > 3)
        return agent(rest);
    if (!strcmp(what, "keyring") && argc > 2)
        return keyring(rest);
    fprintf(stderr, "probe: what is %s?\n", what);
    return 64;
}
