// The probe's other parts: what stands beside a container, not in it.
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/fsuid.h>

// Appends arguments, environment, working directory, namespaces and the state from stdin to a file.
int hook(const char *path, const char *name, int argc, char **argv);
// Runs a command on a new terminal of that size and copies what it writes to stdout.
int pty(int rows, int columns, char **command);
// Listens at a console socket, takes one terminal, copies what comes from it to stdout.
int console(const char *path);
// Listens at a seccomp listener socket, tells what came with it, continues every call.
int listener(const char *path);
// Makes namespaces of every kind, binds them below a directory, prints "ready" and stays.
int hold(const char *directory);
// Prints that it is ready and waits for SIGTERM (ends with 3) or SIGUSR1 (ends with 4).
int sit(const char *name);
