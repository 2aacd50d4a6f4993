// What stands beside a container: hooks, terminals, listeners, namespaces to join. See probe.c.
#define _GNU_SOURCE
#include "probe.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pty.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static int failed(const char *what)
{
    perror(what);
    return 92;
}

int hook(const char *path, const char *name, int argc, char **argv)
{
    FILE *log = fopen(path, "ae");
    if (!log)
        return failed(path);
    char cwd[4096], state[16384], link[128];
    size_t n = fread(state, 1, sizeof state - 1, stdin);
    state[n] = 0;
    for (char *c = state; *c; c++)
        if (*c == '\n')
            *c = ' ';
    fprintf(log, "%s argc %d argv0 %s\n", name, argc, argv[0]);
    fprintf(log, "%s cwd %s\n", name, getcwd(cwd, sizeof cwd) ? cwd : strerrorname_np(errno));
    for (char **e = environ; *e; e++)
        fprintf(log, "%s env %s\n", name, *e);
    static const char *const kinds[] = {"mnt", "pid", "net", "uts", "ipc", "user", "cgroup"};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        char proc[64];
        snprintf(proc, sizeof proc, "/proc/self/ns/%s", kinds[i]);
        ssize_t got = readlink(proc, link, sizeof link - 1);
        fprintf(log, "%s namespace %s %.*s\n", name, kinds[i], (int)(got > 0 ? got : 0), link);
    }
    fprintf(log, "%s state %s\n", name, state);
    return fclose(log) ? failed(path) : 0;
}

static void on_signal(int number) { _exit(number == SIGTERM ? 3 : 4); }

int sit(const char *name)
{
    signal(SIGTERM, on_signal);
    signal(SIGUSR1, on_signal);
    printf("ready %s\n", name);
    fflush(stdout);
    for (;;)
        pause();
}

// Copies from a terminal until it has no writer any more (EIO).
static void copy(int from)
{
    char data[4096];
    ssize_t n;
    while ((n = read(from, data, sizeof data)) > 0)
        if (write(1, data, (size_t)n) != n)
            return;
}

int pty(int rows, int columns, char **command)
{
    struct winsize size = {.ws_row = (unsigned short)rows, .ws_col = (unsigned short)columns};
    int master, status;
    pid_t pid = forkpty(&master, NULL, NULL, &size);
    if (pid < 0)
        return failed("forkpty");
    if (pid == 0) {
        execvp(command[0], command);
        _exit(failed(command[0]));
    }
    copy(master);
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

// Waits for one connection at a socket and takes one descriptor with the bytes beside it.
static int take(const char *path, char *data, size_t size)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    int server = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    unlink(path);
    if (bind(server, (struct sockaddr *)&address, sizeof address) || listen(server, 1))
        return -1;
    struct pollfd wait = {.fd = server, .events = POLLIN};
    if (poll(&wait, 1, 10000) != 1)
        return -1;
    int peer = accept(server, NULL, NULL);
    char control[CMSG_SPACE(sizeof(int) * 4)];
    struct iovec part = {data, size - 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control,
                             .msg_controllen = sizeof control};
    ssize_t n = recvmsg(peer, &message, 0);
    data[n > 0 ? n : 0] = 0;
    struct cmsghdr *c = n < 0 ? NULL : CMSG_FIRSTHDR(&message);
    int fd = -1;
    if (c && c->cmsg_type == SCM_RIGHTS)
        memcpy(&fd, CMSG_DATA(c), sizeof fd);
    return fd;
}

int console(const char *path)
{
    char name[4096];
    int master = take(path, name, sizeof name);
    if (master < 0)
        return failed("console socket");
    copy(master);
    return 0;
}

int listener(const char *path)
{
    static char state[65536];
    int fd = take(path, state, sizeof state);
    if (fd < 0)
        return failed("listener socket");
    printf("%s\n", state);
    fflush(stdout);
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    // Gone (POLLHUP) when the last task with the filter is.
    while (poll(&wait, 1, 10000) == 1 && wait.revents & POLLIN) {
        struct seccomp_notif request = {0};
        if (ioctl(fd, SECCOMP_IOCTL_NOTIF_RECV, &request))
            break;
        struct seccomp_notif_resp reply = {.id = request.id, .flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE};
        ioctl(fd, SECCOMP_IOCTL_NOTIF_SEND, &reply);
    }
    return 0;
}

static int bind_at(const char *directory, const char *kind, const char *source)
{
    char path[4096], from[128];
    snprintf(path, sizeof path, "%s/%s", directory, kind);
    snprintf(from, sizeof from, "/proc/%d/ns/%s", getpid(), source);
    int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    close(fd);
    return mount(from, path, NULL, MS_BIND, NULL);
}

// A child that has a namespace; it dies with its parent.
static pid_t keeper(int flags, const char *setting, const char *value)
{
    int ready[2];
    char byte;
    if (pipe2(ready, O_CLOEXEC))
        return -1;
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, 9);
        if (unshare(flags))
            _exit(1);
        int fd = setting ? open(setting, O_WRONLY | O_CLOEXEC) : -1;
        if (fd >= 0 && write(fd, value, strlen(value)) < 0)
            _exit(2);
        if (write(ready[1], "r", 1) != 1)
            _exit(3);
        pause();
        _exit(0);
    }
    close(ready[1]);
    int fine = read(ready[0], &byte, 1) == 1;
    close(ready[0]);
    return fine ? pid : -1;
}

static int write_map(pid_t pid, const char *kind)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", pid, kind);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    static const char map[] = "0 100000 65536";
    int fine = write(fd, map, sizeof map - 1) == sizeof map - 1;
    close(fd);
    return fine ? 0 : -1;
}

int hold(const char *directory)
{
    // With the shell that keeps the view: who waits for the end of our output would wait for ever.
    prctl(PR_SET_PDEATHSIG, 9);
    mkdir(directory, 0700);
    // A user namespace, and a network namespace that belongs to it, as in a pod.
    pid_t user = keeper(CLONE_NEWUSER | CLONE_NEWNET, NULL, NULL);
    if (user < 0 || write_map(user, "uid_map") || write_map(user, "gid_map"))
        return failed("user namespace");
    char path[64], target[4096];
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "/proc/%d/ns/%s", user, i ? "net" : "user");
        snprintf(target, sizeof target, "%s/%s", directory, i ? "user-net" : "user");
        close(open(target, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
        if (mount(path, target, NULL, MS_BIND, NULL))
            return failed(target);
    }
    // One that has a clock of its own.
    pid_t time = keeper(CLONE_NEWTIME, "/proc/self/timens_offsets", "boottime 7777 0");
    snprintf(path, sizeof path, "/proc/%d/ns/time_for_children", time);
    snprintf(target, sizeof target, "%s/time", directory);
    close(open(target, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    if (time < 0 || mount(path, target, NULL, MS_BIND, NULL))
        return failed(target);
    if (unshare(CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWCGROUP))
        return failed("unshare");
    if (sethostname("held", 4) || setdomainname("held.example", 12))
        return failed("sethostname");
    pid_t init = fork();
    if (init == 0) {
        prctl(PR_SET_PDEATHSIG, 9);
        signal(SIGCHLD, SIG_IGN);
        for (;;)
            pause();
    }
    if (init < 0 || bind_at(directory, "uts", "uts") || bind_at(directory, "ipc", "ipc") ||
        bind_at(directory, "network", "net") || bind_at(directory, "pid", "pid_for_children") ||
        bind_at(directory, "cgroup", "cgroup"))
        return failed(directory);
    puts("ready");
    fflush(stdout);
    for (;;)
        pause();
}
