// What a container's program sees, as one JSON document on stdout: an object whose values are strings or
// lists of strings. It judges nothing and normalises nothing; that is the driver's part (facts.py).
//
//   probe [--stat PATH]... [--cat PATH]... [--call NUMBER[,ARGUMENT...]]... [--call32 NUMBER]...
//   probe --out FILE ...          the same, into FILE
//   probe hook FILE NAME          as a hook: appends its surroundings and the state it was given to FILE
//   probe wait FILE               a hook that hangs, longer than its timeout, then says so in FILE
//   probe sit NAME                prints "ready NAME" and waits; SIGTERM ends it with 3, SIGUSR1 with 4
//   probe exit STATUS             does nothing else
//   probe fresh COMMAND...        runs COMMAND with no signal ignored
//   probe pty ROWS COLUMNS COMMAND...     runs COMMAND on a new terminal, copies what it writes
//   probe console SOCKET          takes a terminal from a console socket, copies what comes from it
//   probe listener SOCKET         takes a seccomp listener, tells the state, lets each call go on
//   probe hold DIR                new namespaces, kept alive, bound at DIR/<kind>; prints "ready"
//
// Static, so that it needs nothing of the root it runs in.
#define _GNU_SOURCE
#include "probe.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/magic.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

extern char **environ;
static FILE *out;
static int first_member = 1, first_element;

static void quoted(const char *s, size_t n)
{
    fputc('"', out);
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];
        if (c == '"' || c == '\\')
            fprintf(out, "\\%c", c);
        else if (c < 32 || c > 126)
            fprintf(out, "\\u%04x", c);
        else
            fputc(c, out);
    }
    fputc('"', out);
}

static void key(const char *name)
{
    fputs(first_member ? "\n" : ",\n", out);
    first_member = 0;
    quoted(name, strlen(name));
    fputs(": ", out);
}

static void text(const char *name, const char *format, ...)
{
    char value[4096];
    va_list list;
    va_start(list, format);
    int n = vsnprintf(value, sizeof value, format, list);
    va_end(list);
    key(name);
    quoted(value, n < (int)sizeof value ? (size_t)n : sizeof value - 1);
}

static void begin(const char *name)
{
    key(name);
    fputc('[', out);
    first_element = 1;
}

static void element(const char *format, ...)
{
    char value[8192];
    va_list list;
    va_start(list, format);
    int n = vsnprintf(value, sizeof value, format, list);
    va_end(list);
    if (!first_element)
        fputc(',', out);
    first_element = 0;
    quoted(value, n < (int)sizeof value ? (size_t)n : sizeof value - 1);
}

static void end(void) { fputc(']', out); }

// A result, or the name of the error in its place.
static void answer(const char *name, long value)
{
    if (value == -1)
        text(name, "%s", strerrorname_np(errno));
    else
        text(name, "%ld", value);
}

// A file as a whole, or why it cannot be read.
static void file(const char *name, const char *path)
{
    static char data[1 << 18];
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    size_t n = 0;
    ssize_t got = 0;
    while (fd >= 0 && n < sizeof data && (got = read(fd, data + n, sizeof data - n)) > 0)
        n += (size_t)got;
    int error = errno;
    if (fd >= 0)
        close(fd);
    if (fd < 0 || (got < 0 && n == 0))
        text(name, "!%s", strerrorname_np(error));
    else {
        key(name);
        quoted(data, n);
    }
}

static const char *kind(mode_t mode)
{
    return S_ISREG(mode) ? "file" : S_ISDIR(mode) ? "dir" : S_ISCHR(mode) ? "char"
         : S_ISBLK(mode) ? "block" : S_ISFIFO(mode) ? "fifo" : S_ISLNK(mode) ? "link" : "socket";
}

// Kind, mode, owner, numbers and target of a path, in one element.
static void described(const char *path)
{
    struct stat st;
    char link[4096] = "";
    if (lstat(path, &st)) {
        element("%s !%s", path, strerrorname_np(errno));
        return;
    }
    if (S_ISLNK(st.st_mode)) {
        ssize_t n = readlink(path, link, sizeof link - 1);
        link[n > 0 ? n : 0] = 0;
        element("%s link %d:%d -> %s", path, st.st_uid, st.st_gid, link);
    } else if (S_ISCHR(st.st_mode) || S_ISBLK(st.st_mode))
        element("%s %s %o %d:%d %u:%u", path, kind(st.st_mode), st.st_mode & 07777, st.st_uid, st.st_gid,
                major(st.st_rdev), minor(st.st_rdev));
    else
        element("%s %s %o %d:%d", path, kind(st.st_mode), st.st_mode & 07777, st.st_uid, st.st_gid);
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

// Whether a procfs is mounted there: what is in it, by pids, comes and goes.
static int of_processes(const char *path)
{
    struct statfs fs;
    return !statfs(path, &fs) && fs.f_type == PROC_SUPER_MAGIC;
}

static void tree(const char *path, int depth)
{
    struct dirent **list;
    int n = scandir(path, &list, NULL, by_name);
    for (int i = 0; i < n; i++) {
        char below[4096];
        struct stat st;
        if (strcmp(list[i]->d_name, ".") && strcmp(list[i]->d_name, "..")) {
            snprintf(below, sizeof below, "%s/%s", strcmp(path, "/") ? path : "", list[i]->d_name);
            described(below);
            if (depth > 1 && !lstat(below, &st) && S_ISDIR(st.st_mode) && !of_processes(below))
                tree(below, depth - 1);
        }
        free(list[i]);
    }
    if (n >= 0)
        free(list);
}

// Every descriptor but those of this loop: what it is, its flags, and its place.
static void descriptors(void)
{
    begin("fds");
    for (int fd = 0; fd < 1024; fd++) {
        char name[64], link[4096];
        struct stat st;
        int flags = fcntl(fd, F_GETFL);
        if (flags < 0 || fd == fileno(out) || fstat(fd, &st))
            continue;
        snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
        ssize_t n = readlink(name, link, sizeof link - 1);
        link[n > 0 ? n : 0] = 0;
        element("%d %s %s mode=%o owner=%d:%d flags=%o%s", fd, kind(st.st_mode), link, st.st_mode & 07777,
                st.st_uid, st.st_gid, flags, isatty(fd) ? " tty" : "");
    }
    end();
}

static void identity(void)
{
    uid_t r, e, s;
    gid_t list[128];
    getresuid(&r, &e, &s);
    text("uids", "%d %d %d %d", r, e, s, setfsuid(-1));
    getresgid(&r, &e, &s);
    text("gids", "%d %d %d %d", r, e, s, setfsgid(-1));
    int n = getgroups(128, list);
    begin("groups");
    for (int i = 0; i < n; i++)
        element("%d", list[i]);
    end();
    text("pid", "%d", getpid());
    text("parent", "%d", getppid());
    text("session", "%s", getsid(0) == getpid() ? "leader" : getsid(0) == 0 ? "outside" : "other");
    text("process group", "%s", getpgrp() == getpid() ? "leader" : getpgrp() == 0 ? "outside" : "other");
    mode_t mask = umask(0);
    umask(mask);
    text("umask", "%04o", mask);
    char cwd[4096];
    long got = syscall(SYS_getcwd, cwd, sizeof cwd);
    text("cwd", "%s", got < 0 ? strerrorname_np(errno) : cwd);
    struct utsname name;
    uname(&name);
    text("hostname", "%s", name.nodename);
    text("domainname", "%s", name.domainname);
    text("machine", "%s", name.machine);
}

static void process(void)
{
    answer("personality", syscall(SYS_personality, 0xffffffffUL));
    answer("no_new_privs", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    answer("dumpable", prctl(PR_GET_DUMPABLE, 0, 0, 0, 0));
    answer("keepcaps", prctl(PR_GET_KEEPCAPS, 0, 0, 0, 0));
    answer("securebits", prctl(PR_GET_SECUREBITS, 0, 0, 0, 0));
    answer("timer slack", prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0));
    answer("thp disabled", prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0));
    int value = -1;
    prctl(PR_GET_PDEATHSIG, &value, 0, 0, 0);
    text("death signal", "%d", value);
    value = -1;
    prctl(PR_GET_CHILD_SUBREAPER, &value, 0, 0, 0);
    text("subreaper", "%d", value);
    answer("io priority", syscall(SYS_ioprio_get, 1, 0));
    struct { uint32_t size, policy; uint64_t flags; int32_t nice; uint32_t priority;
             uint64_t runtime, deadline, period; uint32_t min, max; } a = {0};
    if (syscall(SYS_sched_getattr, 0, &a, sizeof a, 0))
        text("scheduler", "!%s", strerrorname_np(errno));
    else
        text("scheduler", "policy=%u flags=%lu nice=%d priority=%u runtime=%lu deadline=%lu period=%lu",
             a.policy, a.flags, a.nice, a.priority, a.policy == 6 ? a.runtime : 0, a.deadline, a.period);
    cpu_set_t set;
    CPU_ZERO(&set);
    begin("affinity");
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        for (int i = 0; i < 64; i++)
            if (CPU_ISSET(i, &set))
                element("%d", i);
    end();
    int mode = -1;
    unsigned long nodes[16] = {0};
    if (syscall(SYS_get_mempolicy, &mode, nodes, 1024, 0, 0))
        text("memory policy", "!%s", strerrorname_np(errno));
    else
        text("memory policy", "mode=%d nodes=%lx", mode, nodes[0]);
    char description[512];
    long id = syscall(SYS_keyctl, 0, -3, 0, 0, 0);
    long n = id < 0 ? -1 : syscall(SYS_keyctl, 6, id, description, sizeof description - 1, 0);
    if (n < 0)
        text("session keyring", "!%s", strerrorname_np(errno));
    else
        text("session keyring", "%.*s", (int)n, description);
}

static void limits(void)
{
    static const char *const names[] = {"CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE",
        "MEMLOCK", "AS", "LOCKS", "SIGPENDING", "MSGQUEUE", "NICE", "RTPRIO", "RTTIME"};
    for (int i = 0; i < 16; i++) {
        struct rlimit l;
        char name[64];
        snprintf(name, sizeof name, "rlimit %s", names[i]);
        getrlimit(i, &l);
        text(name, "%ld %ld", (long)l.rlim_cur, (long)l.rlim_max);
    }
}

static void terminal(void)
{
    struct winsize size;
    if (ioctl(0, TIOCGWINSZ, &size) == 0)
        text("window", "%d rows %d columns", size.ws_row, size.ws_col);
    else
        text("window", "!%s", strerrorname_np(errno));
    int fd = open("/dev/tty", O_RDWR | O_CLOEXEC | O_NOCTTY);
    text("controlling terminal", "%s", fd >= 0 ? "yes" : strerrorname_np(errno));
    if (fd >= 0)
        text("foreground", "%s", tcgetpgrp(fd) == getpgrp() ? "yes" : "no");
    if (fd >= 0)
        close(fd);
    struct termios mode;
    if (tcgetattr(0, &mode) == 0)
        text("terminal mode", "i=%o o=%o c=%o l=%o", mode.c_iflag, mode.c_oflag, mode.c_cflag, mode.c_lflag);
}

static void network(void)
{
    begin("interfaces");
    int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct if_nameindex *list = s < 0 ? NULL : if_nameindex();
    for (struct if_nameindex *at = list; at && at->if_name; at++) {
        struct ifreq request = {0};
        strncpy(request.ifr_name, at->if_name, sizeof request.ifr_name - 1);
        if (ioctl(s, SIOCGIFFLAGS, &request) == 0)
            element("%s %s", at->if_name, request.ifr_flags & IFF_UP ? "up" : "down");
    }
    end();
    if (list)
        if_freenameindex(list);
    if (s >= 0)
        close(s);
}

// Which device numbers may be made and opened: what the cgroup's rules and CAP_MKNOD give.
static void device_rules(void)
{
    static const struct { char type; int major, minor; } table[] = {{'c', 1, 1}, {'c', 1, 3}, {'c', 1, 5},
        {'c', 1, 7}, {'c', 1, 8}, {'c', 1, 9}, {'c', 5, 0}, {'c', 5, 1}, {'c', 5, 2}, {'c', 4, 0},
        {'c', 10, 229}, {'c', 10, 200}, {'c', 136, 0}, {'c', 240, 7}, {'b', 7, 0}, {'b', 254, 0}, {'b', 8, 1}};
    begin("device rules");
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        const char *path = "/dev/.probe-device", *result[3];
        mode_t mode = (table[i].type == 'c' ? S_IFCHR : S_IFBLK) | 0600;
        result[0] = mknod(path, mode, makedev(table[i].major, table[i].minor)) ? strerrorname_np(errno) : "ok";
        for (int write = 0; write < 2; write++) {
            int fd = open(path, (write ? O_WRONLY : O_RDONLY) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
            result[1 + write] = fd >= 0 ? "ok" : strerrorname_np(errno);
            if (fd >= 0)
                close(fd);
        }
        element("%c %d:%d mknod=%s read=%s write=%s", table[i].type, table[i].major, table[i].minor, result[0],
                result[1], result[2]);
        unlink(path);
    }
    end();
}

// A path as a program meets it: what it is, and whether it can be read and written.
static void reach(const char *path)
{
    struct stat st;
    char name[4200], buffer[64];
    snprintf(name, sizeof name, "path %s", path);
    begin(name);
    described(path);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    element("open: %s", fd >= 0 ? "ok" : strerrorname_np(errno));
    if (fd >= 0 && !fstat(fd, &st) && S_ISDIR(st.st_mode)) {
        DIR *dir = fdopendir(fd);
        int n = -2;
        while (dir && readdir(dir))
            n++;
        element("entries: %s", n > 0 ? "some" : "none");
        closedir(dir);
    } else if (fd >= 0) {
        ssize_t n = read(fd, buffer, sizeof buffer);
        element("read: %s", n < 0 ? strerrorname_np(errno) : n ? "some" : "empty");
        close(fd);
    }
    element("access W: %s", access(path, W_OK) ? strerrorname_np(errno) : "ok");
    element("access X: %s", access(path, X_OK) ? strerrorname_np(errno) : "ok");
    end();
}

// A system call with harmless arguments, in a child: a filter may kill it.
static void call(const char *argument)
{
    char name[64];
    long a[4] = {0};
    char *rest;
    long number = strtol(argument, &rest, 10);
    for (int i = 0; i < 4 && *rest == ','; i++)
        a[i] = strtol(rest + 1, &rest, 0);
    snprintf(name, sizeof name, "call %s", argument);
    fflush(out);
    int status = 0;
    pid_t pid = (pid_t)syscall(SYS_fork);
    if (pid == 0) {
        long r = syscall(number, a[0], a[1], a[2], a[3]);
        _exit(r == -1 ? errno : 0);
    }
    if (pid < 0 || waitpid(pid, &status, 0) < 0)
        text(name, "!%s", strerrorname_np(errno));
    else if (WIFSIGNALED(status))
        text(name, "signal %d", WTERMSIG(status));
    else
        text(name, "%s", WEXITSTATUS(status) ? strerrorname_np(WEXITSTATUS(status)) : "ok");
}

// A call through the gate of 32-bit programs, which a filter's architectures are about.
static void call32(const char *argument)
{
    char name[64];
    int status = 0, result;
    snprintf(name, sizeof name, "call32 %s", argument);
    fflush(out);
    pid_t pid = (pid_t)syscall(SYS_fork);
    if (pid == 0) {
        __asm__ volatile("int $0x80" : "=a"(result) : "a"(atoi(argument)), "b"(0), "c"(0), "d"(0)
                         : "memory", "r8", "r9", "r10", "r11");
        _exit(result < 0 ? -result : 0);
    }
    if (pid < 0 || waitpid(pid, &status, 0) < 0)
        text(name, "!%s", strerrorname_np(errno));
    else if (WIFSIGNALED(status))
        text(name, "signal %d", WTERMSIG(status));
    else
        text(name, "%s", WEXITSTATUS(status) ? strerrorname_np(WEXITSTATUS(status)) : "ok");
}

static void namespaces(void)
{
    static const char *const kinds[] = {"cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time",
        "time_for_children", "user", "uts"};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        char path[64], name[64], link[128];
        snprintf(path, sizeof path, "/proc/self/ns/%s", kinds[i]);
        snprintf(name, sizeof name, "namespace %s", kinds[i]);
        ssize_t n = readlink(path, link, sizeof link - 1);
        if (n < 0)
            text(name, "!%s", strerrorname_np(errno));
        else
            text(name, "%.*s", (int)n, link);
    }
}

static void files(void)
{
    static const char *const self[] = {"mountinfo", "status", "cgroup", "uid_map", "gid_map", "setgroups",
        "oom_score_adj", "timens_offsets", "coredump_filter", "attr/current", "attr/exec", "attr/fscreate",
        "attr/keycreate", "attr/sockcreate", "attr/apparmor/current", "loginuid", "comm", "cmdline"};
    static const char *const sysctl[] = {"kernel/shm_rmid_forced", "kernel/msgmax", "kernel/sem",
        "net/ipv4/ip_forward", "net/ipv4/ping_group_range", "net/ipv4/ip_unprivileged_port_start",
        "fs/mqueue/msg_max"};
    char path[128];
    for (size_t i = 0; i < sizeof self / sizeof *self; i++) {
        snprintf(path, sizeof path, "/proc/self/%s", self[i]);
        file(self[i], path);
    }
    for (size_t i = 0; i < sizeof sysctl / sizeof *sysctl; i++) {
        snprintf(path, sizeof path, "/proc/sys/%s", sysctl[i]);
        file(sysctl[i], path);
    }
}

static int document(int argc, char **argv)
{
    out = stdout;
    int at = 1;
    if (argc > 2 && !strcmp(argv[1], "--out")) {
        out = fopen(argv[2], "we");
        at = 3;
    }
    if (!out) {
        perror("probe: the file for the document");
        return 90;
    }
    fputs("{", out);
    descriptors();
    identity();
    process();
    limits();
    terminal();
    network();
    namespaces();
    files();
    begin("environment");
    for (char **e = environ; *e; e++)
        element("%s", *e);
    end();
    begin("dev");
    tree("/dev", 3);
    end();
    begin("root");
    described("/");
    tree("/", 1);
    end();
    device_rules();
    for (; at + 1 < argc; at += 2) {
        char name[4200];
        snprintf(name, sizeof name, "file %s", argv[at + 1]);
        if (!strcmp(argv[at], "--stat"))
            reach(argv[at + 1]);
        else if (!strcmp(argv[at], "--cat"))
            file(name, argv[at + 1]);
        else if (!strcmp(argv[at], "--call"))
            call(argv[at + 1]);
        else if (!strcmp(argv[at], "--call32"))
            call32(argv[at + 1]);
    }
    fputs("\n}\n", out);
    return fflush(out) ? 91 : 0;
}

int main(int argc, char **argv)
{
    if (argc == 4 && !strcmp(argv[1], "hook"))
        return hook(argv[2], argv[3], argc, argv);
    if (argc == 3 && !strcmp(argv[1], "wait")) {
        sleep(3);
        FILE *log = fopen(argv[2], "ae");
        return log && fputs("hook waited\n", log) >= 0 && !fclose(log) ? 0 : 93;
    }
    if (argc == 3 && !strcmp(argv[1], "exit"))
        return atoi(argv[2]);
    if (argc == 3 && !strcmp(argv[1], "sit"))
        return sit(argv[2]);
    if (argc > 2 && !strcmp(argv[1], "fresh")) {
        // Not by the C library, which keeps two signals for itself.
        unsigned long handler[4] = {0};
        for (int n = 1; n < 65; n++)
            syscall(SYS_rt_sigaction, n, handler, NULL, 8);
        execvp(argv[2], argv + 2);
        perror(argv[2]);
        return 98;
    }
    if (argc > 4 && !strcmp(argv[1], "pty"))
        return pty(atoi(argv[2]), atoi(argv[3]), argv + 4);
    if (argc == 3 && !strcmp(argv[1], "console"))
        return console(argv[2]);
    if (argc == 3 && !strcmp(argv[1], "listener"))
        return listener(argv[2]);
    if (argc == 3 && !strcmp(argv[1], "hold"))
        return hold(argv[2]);
    return document(argc, argv);
}
