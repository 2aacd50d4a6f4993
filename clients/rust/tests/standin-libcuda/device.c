/* Devices, contexts, and what an address is. */
#define _GNU_SOURCE
#include "standin.h"
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

int initialised;
__thread int on_device;
static struct range ranges[MOST];
static uint64_t next_id = 1;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

void lock(void) { pthread_mutex_lock(&mutex); }
void unlock(void) { pthread_mutex_unlock(&mutex); }

const char *gpu_directory(void) { return getenv("ISORUN_STANDIN_CUDA"); }

int own_pid(void)
{
	const char *pid = getenv("ISORUN_STANDIN_PID");
	return pid ? atoi(pid) : getpid();
}

static const char *uuids(void)
{
	const char *text = getenv("ISORUN_STANDIN_UUIDS");
	return text && *text ? text : "a";
}

int devices(void) { return (int)strlen(uuids()); }

void device_uuid(int device, uuid16 *uuid)
{
	memcpy(uuid->bytes, "STAND-IN FOR GPU", 16);
	uuid->bytes[15] = (unsigned char)uuids()[device];
}

CALL cuInit(unsigned flags)
{
	const char *directory = gpu_directory();
	struct stat st;
	if (!directory || stat(directory, &st) || !S_ISDIR(st.st_mode))
		return NO_DEVICE;
	initialised = 1;
	return OK;
}

CALL cuDriverGetVersion(int *version) { *version = 12080; return OK; }
CALL cuDeviceGetCount(int *count) { if (!initialised) return NOT_INITIALIZED; *count = devices(); return OK; }

CALL cuDeviceGet(int *device, int ordinal)
{
	if (!initialised)
		return NOT_INITIALIZED;
	if (ordinal < 0 || ordinal >= devices())
		return INVALID_DEVICE;
	*device = ordinal;
	return OK;
}

CALL cuDeviceGetName(char *name, int length, int device)
{
	snprintf(name, (size_t)length, "Stand-in for tests%s", getenv("ISORUN_STANDIN_MIG") ? " MIG 1g.1gb" : "");
	return OK;
}

CALL cuDeviceGetUuid(uuid16 *uuid, int device)
{
	device_uuid(device, uuid);
	if (getenv("ISORUN_STANDIN_MIG"))
		uuid->bytes[0] = 'P'; /* the GPU that the instance is a part of */
	return OK;
}
CALL cuDeviceGetUuid_v2(uuid16 *uuid, int device) { device_uuid(device, uuid); return OK; }

CALL cuDeviceGetAttribute(int *value, int attribute, int device)
{
	switch (attribute) {
	case 102: /* virtual memory management */
	case 103: /* handles that are descriptors */
	case 115: /* pools */
		*value = 1;
		return OK;
	case 119: /* kinds of handles of a pool */
		*value = POSIX_FD;
		return OK;
	case 128: /* fabric handles */
		*value = getenv("ISORUN_STANDIN_IMEX") != NULL;
		return OK;
	}
	*value = 0;
	return OK;
}

CALL cuDevicePrimaryCtxRetain(void **context, int device)
{
	if (!initialised)
		return NOT_INITIALIZED;
	*context = (void *)(intptr_t)(device + 1);
	return OK;
}
CALL cuDevicePrimaryCtxRelease_v2(int device) { return OK; }
CALL cuCtxSetCurrent(void *context) { on_device = (int)(intptr_t)context; return OK; }
CALL cuCtxGetCurrent(void **context) { *context = (void *)(intptr_t)on_device; return OK; }
CALL cuCtxSynchronize(void) { drain_blocking(); return OK; }

CALL cuGetErrorName(int error, const char **text)
{
	static const struct { int code; const char *name; } names[] = {
		{OK, "CUDA_SUCCESS"}, {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"}, {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
		{NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED"}, {NO_DEVICE, "CUDA_ERROR_NO_DEVICE"},
		{INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE"}, {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT"},
		{MAP_FAILED_205, "CUDA_ERROR_MAP_FAILED"}, {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE"},
		{NOT_READY, "CUDA_ERROR_NOT_READY"}, {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS"},
		{NOT_PERMITTED, "CUDA_ERROR_NOT_PERMITTED"}, {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED"},
	};
	for (size_t i = 0; i < sizeof names / sizeof *names; i++)
		if (names[i].code == error) {
			*text = names[i].name;
			return OK;
		}
	return INVALID_VALUE;
}

/* A file that stands for memory of the GPU. Its maker holds a lock: who can take it knows that the maker is dead. */
int backing(char *name, size_t size, int *fd)
{
	static int serial;
	snprintf(name, 96, "mem-%d-%d-%lx", getpid(), __atomic_add_fetch(&serial, 1, __ATOMIC_RELAXED),
		 (unsigned long)(uintptr_t)&serial);
	int directory = open(gpu_directory(), O_PATH | O_DIRECTORY | O_CLOEXEC);
	*fd = openat(directory, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
	close(directory);
	if (*fd < 0)
		return OUT_OF_MEMORY;
	if (ftruncate(*fd, (off_t)size) || flock(*fd, LOCK_EX | LOCK_NB)) {
		close(*fd);
		return OUT_OF_MEMORY;
	}
	return OK;
}

/* With the lock held. */
struct range *range_of(ptr_t address)
{
	for (int i = 0; i < MOST; i++)
		if (ranges[i].kind && address >= ranges[i].base && address < ranges[i].base + ranges[i].size)
			return &ranges[i];
	return NULL;
}

/* What was opened by a legacy handle already. */
struct range *opened_as(const char *name)
{
	for (int i = 0; i < MOST; i++)
		if (ranges[i].kind == OPENED && !strcmp(ranges[i].name, name))
			return &ranges[i];
	return NULL;
}

struct range *new_range(enum kind kind, ptr_t base, size_t size, int fd)
{
	for (int i = 0; i < MOST; i++)
		if (!ranges[i].kind) {
			ranges[i] = (struct range){.kind = kind, .base = base, .size = size, .fd = fd, .device = on_device - 1,
						   .id = next_id++};
			return &ranges[i];
		}
	return NULL;
}

/* Whether the whole of it can be read: a sanitizer that a GPU does not have. */
int readable(ptr_t address, size_t size)
{
	int answer = OK;
	lock();
	while (size && answer == OK) {
		struct range *range = range_of(address);
		struct stat st;
		if (!range)
			answer = INVALID_VALUE;
		else if (range->kind == OPENED && (fstat(range->fd, &st) || st.st_nlink == 0))
			answer = ILLEGAL_ADDRESS;
		else {
			size_t here = range->base + range->size - address;
			here = here < size ? here : size;
			address += here;
			size -= here;
		}
	}
	unlock();
	return answer;
}

CALL cuMemGetAddressRange_v2(ptr_t *base, size_t *size, ptr_t address)
{
	CHECK_CONTEXT;
	lock();
	struct range *range = range_of(address);
	if (range) {
		if (base)
			*base = range->base;
		if (size)
			*size = range->size;
	}
	unlock();
	return range ? OK : INVALID_VALUE;
}

CALL cuPointerGetAttribute(void *data, int attribute, ptr_t address)
{
	if (!initialised)
		return NOT_INITIALIZED;
	lock();
	struct range *range = range_of(address);
	int answer = range ? OK : INVALID_VALUE;
	if (range)
		switch (attribute) {
		case 2: *(unsigned *)data = 2; break; /* on a device */
		case 7: *(uint64_t *)data = range->id; break;
		case 9: *(int *)data = range->device; break;
		case 10: *(char *)data = range->kind == PLAIN; break;
		case 11: *(ptr_t *)data = range->base; break;
		case 12: *(size_t *)data = range->size; break;
		case 13: *(char *)data = 1; break;
		case 14:
			*(uint64_t *)data = range->chunk ? (uint64_t)range->chunk->handles
				: range->pool ? (uint64_t)range->pool->handles : 0;
			break;
		case 17: *(void **)data = range->kind == FROM_POOL ? range->pool : NULL; break;
		default: answer = INVALID_VALUE;
		}
	unlock();
	return answer;
}
