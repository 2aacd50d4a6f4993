/* Memory: plain with legacy handles, cuMemCreate's, pools. */
#define _GNU_SOURCE
#include "standin.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static void *map_at(void *where, size_t size, int fd, int protection)
{
	void *map = mmap(where, size, protection, MAP_SHARED | (where ? MAP_FIXED : 0), fd, 0);
	return map == MAP_FAILED ? NULL : map;
}

static void forget(const char *name)
{
	int directory = open(gpu_directory(), O_PATH | O_DIRECTORY | O_CLOEXEC);
	unlinkat(directory, name, 0);
	close(directory);
}

/* ---- plain */

CALL cuMemAlloc_v2(ptr_t *out, size_t size)
{
	CHECK_CONTEXT;
	char name[96];
	int fd;
	if (!size)
		return INVALID_VALUE;
	if (backing(name, size, &fd))
		return OUT_OF_MEMORY;
	void *map = map_at(NULL, size, fd, PROT_READ | PROT_WRITE);
	lock();
	struct range *range = new_range(PLAIN, (ptr_t)map, size, fd);
	memcpy(range->name, name, sizeof name);
	unlock();
	*out = (ptr_t)map;
	return OK;
}

CALL cuMemFree_v2(ptr_t address)
{
	CHECK_CONTEXT;
	drain_blocking();
	lock();
	struct range *range = range_of(address);
	int answer = OK;
	if (!range || range->base != address)
		answer = INVALID_VALUE;
	else if (range->kind == PLAIN) {
		forget(range->name);
		munmap((void *)range->base, range->size);
		close(range->fd);
		range->kind = FREE_SLOT;
	} else if (range->kind == FROM_POOL || range->kind == FROM_OPENED_POOL)
		range->kind = FREE_SLOT;
	else
		answer = INVALID_VALUE;
	unlock();
	return answer;
}

CALL cuMemAllocHost_v2(void **out, size_t size) { CHECK_CONTEXT; *out = malloc(size); return *out ? OK : OUT_OF_MEMORY; }
CALL cuMemFreeHost(void *memory) { free(memory); return OK; }

struct legacy { char magic[4]; int pid; char name[48]; char letter; };

CALL cuIpcGetMemHandle(handle64 *handle, ptr_t address)
{
	CHECK_CONTEXT;
	if (getenv("ISORUN_STANDIN_MIG"))
		return NOT_SUPPORTED;
	lock();
	struct range *range = range_of(address);
	int answer = range && range->kind == PLAIN ? OK : INVALID_VALUE;
	if (answer == OK) {
		struct legacy legacy = {.magic = "SIPC", .pid = own_pid()};
		uuid16 uuid;
		device_uuid(range->device, &uuid);
		legacy.letter = (char)uuid.bytes[15];
		memcpy(legacy.name, range->name, sizeof legacy.name - 1);
		memset(handle, 0, sizeof *handle);
		memcpy(handle->bytes, &legacy, sizeof legacy);
	}
	unlock();
	return answer;
}

static int open_legacy(ptr_t *out, const struct legacy *legacy)
{
	uuid16 uuid;
	device_uuid(on_device - 1, &uuid);
	if (memcmp(legacy->magic, "SIPC", 4) || strchr(legacy->name, '/'))
		return INVALID_VALUE;
	if (legacy->pid == own_pid())
		return INVALID_CONTEXT; /* taken for a handle of this very process */
	if (legacy->letter != (char)uuid.bytes[15])
		return INVALID_DEVICE;
	int directory = open(gpu_directory(), O_PATH | O_DIRECTORY | O_CLOEXEC);
	int fd = openat(directory, legacy->name, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
	close(directory);
	if (fd < 0)
		return INVALID_HANDLE; /* freed */
	if (flock(fd, LOCK_SH | LOCK_NB) == 0) {
		close(fd);
		return INVALID_HANDLE; /* whoever made it is dead */
	}
	struct stat st;
	fstat(fd, &st);
	void *map = map_at(NULL, (size_t)st.st_size, fd, PROT_READ | PROT_WRITE);
	struct range *range = new_range(OPENED, (ptr_t)map, (size_t)st.st_size, fd);
	memcpy(range->name, legacy->name, sizeof legacy->name);
	range->opened = 1;
	*out = range->base;
	return OK;
}

CALL cuIpcOpenMemHandle_v2(ptr_t *out, handle64 handle, unsigned flags)
{
	CHECK_CONTEXT;
	struct legacy legacy;
	memcpy(&legacy, handle.bytes, sizeof legacy);
	legacy.name[sizeof legacy.name - 1] = 0;
	if (flags != 1)
		return INVALID_VALUE;
	lock();
	struct range *range = opened_as(legacy.name);
	int answer = OK;
	if (range) {
		range->opened++;
		*out = range->base;
	} else
		answer = open_legacy(out, &legacy);
	unlock();
	return answer;
}

CALL cuIpcCloseMemHandle(ptr_t address)
{
	CHECK_CONTEXT;
	drain_blocking();
	lock();
	struct range *range = range_of(address);
	int answer = range && range->kind == OPENED && range->base == address ? OK : INVALID_VALUE;
	if (answer == OK && --range->opened == 0) {
		munmap((void *)range->base, range->size);
		close(range->fd);
		range->kind = FREE_SLOT;
	}
	unlock();
	return answer;
}

/* ---- cuMemCreate */

CALL cuMemGetAllocationGranularity(size_t *size, const alloc_prop *prop, int option)
{
	*size = GRANULARITY;
	return OK;
}

CALL cuMemCreate(struct chunk **out, size_t size, const alloc_prop *prop, unsigned long long flags)
{
	CHECK_CONTEXT;
	if (!size || size % GRANULARITY || prop->where.id < 0 || prop->where.id >= devices())
		return INVALID_VALUE;
	if ((prop->handles & FABRIC) && !getenv("ISORUN_STANDIN_IMEX"))
		return NOT_PERMITTED;
	struct chunk *chunk = calloc(1, sizeof *chunk);
	if (backing(chunk->name, size, &chunk->fd))
		return free(chunk), OUT_OF_MEMORY;
	if (!(prop->handles & FABRIC))
		forget(chunk->name);
	chunk->device = prop->where.id;
	chunk->handles = prop->handles;
	chunk->size = size;
	chunk->references = 1;
	*out = chunk;
	return OK;
}

CALL cuMemRelease(struct chunk *chunk)
{
	lock();
	if (--chunk->references == 0) {
		if (chunk->handles & FABRIC && chunk->name[0])
			forget(chunk->name);
		close(chunk->fd);
		free(chunk);
	}
	unlock();
	return OK;
}

CALL cuMemAddressReserve(ptr_t *out, size_t size, size_t alignment, ptr_t wish, unsigned long long flags)
{
	CHECK_CONTEXT;
	if (size % GRANULARITY)
		return INVALID_VALUE;
	void *map = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (map == MAP_FAILED)
		return OUT_OF_MEMORY;
	*out = (ptr_t)map;
	return OK;
}
CALL cuMemAddressFree(ptr_t address, size_t size) { munmap((void *)address, size); return OK; }

CALL cuMemMap(ptr_t address, size_t size, size_t offset, struct chunk *chunk, unsigned long long flags)
{
	CHECK_CONTEXT;
	struct stat st;
	if (offset || size % GRANULARITY || fstat(chunk->fd, &st) || (size_t)st.st_size != size)
		return INVALID_VALUE;
	if (!map_at((void *)address, size, chunk->fd, PROT_NONE))
		return OUT_OF_MEMORY;
	lock();
	struct range *range = new_range(MAPPED, address, size, chunk->fd);
	range->chunk = chunk;
	range->device = chunk->device;
	chunk->references++;
	unlock();
	return OK;
}

CALL cuMemSetAccess(ptr_t address, size_t size, const access_desc *access, size_t count)
{
	int protection = access->flags == 3 ? PROT_READ | PROT_WRITE : access->flags == 1 ? PROT_READ : PROT_NONE;
	return mprotect((void *)address, size, protection) ? INVALID_VALUE : OK;
}

CALL cuMemUnmap(ptr_t address, size_t size)
{
	CHECK_CONTEXT;
	drain_blocking();
	lock();
	struct range *range = range_of(address);
	struct chunk *chunk = range && range->kind == MAPPED ? range->chunk : NULL;
	if (chunk) {
		mmap((void *)address, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
		range->kind = FREE_SLOT;
		range->chunk = NULL;
	}
	unlock();
	return chunk ? cuMemRelease(chunk) : INVALID_VALUE;
}

CALL cuMemRetainAllocationHandle(struct chunk **out, void *address)
{
	CHECK_CONTEXT;
	lock();
	struct range *range = range_of((ptr_t)address);
	struct chunk *chunk = range && range->kind == MAPPED ? range->chunk : NULL;
	if (chunk)
		chunk->references++;
	unlock();
	*out = chunk;
	return chunk ? OK : INVALID_VALUE;
}

CALL cuMemExportToShareableHandle(void *out, struct chunk *chunk, int kind, unsigned long long flags)
{
	CHECK_CONTEXT;
	if (!(chunk->handles & kind))
		return INVALID_VALUE;
	if (kind == POSIX_FD) {
		*(int *)out = fcntl(chunk->fd, F_DUPFD_CLOEXEC, 0);
	} else {
		memset(out, 0, 64);
		snprintf(out, 64, "SFAB%.59s", chunk->name);
	}
	return OK;
}

CALL cuMemImportFromShareableHandle(struct chunk **out, void *handle, int kind)
{
	CHECK_CONTEXT;
	int fd = -1;
	struct stat st;
	if (kind == POSIX_FD) {
		fd = fcntl((int)(intptr_t)handle, F_DUPFD_CLOEXEC, 0);
	} else if (kind == FABRIC && getenv("ISORUN_STANDIN_IMEX") && !memcmp(handle, "SFAB", 4)) {
		int directory = open(gpu_directory(), O_PATH | O_DIRECTORY | O_CLOEXEC);
		char name[64];
		snprintf(name, sizeof name, "%.59s", (char *)handle + 4);
		fd = strchr(name, '/') ? -1 : openat(directory, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
		close(directory);
	}
	if (fd < 0 || fstat(fd, &st) || !S_ISREG(st.st_mode) || st.st_size == 0 || st.st_size % GRANULARITY) {
		if (fd >= 0)
			close(fd);
		return INVALID_VALUE;
	}
	struct chunk *chunk = calloc(1, sizeof *chunk);
	*chunk = (struct chunk){.fd = fd, .device = on_device - 1, .handles = 0, .references = 1, .size = (size_t)st.st_size};
	*out = chunk;
	return OK;
}

/* ---- pools */

CALL cuMemPoolCreate(struct pool **out, const pool_prop *prop)
{
	CHECK_CONTEXT;
	char name[96];
	struct pool *pool = calloc(1, sizeof *pool);
	if (backing(name, POOL_SIZE, &pool->fd))
		return free(pool), OUT_OF_MEMORY;
	forget(name);
	pool->map = map_at(NULL, POOL_SIZE, pool->fd, PROT_READ | PROT_WRITE);
	pool->handles = prop->handles;
	pool->device = prop->where.id;
	pool->mine = 1;
	*out = pool;
	return OK;
}
CALL cuMemPoolDestroy(struct pool *pool) { munmap(pool->map, POOL_SIZE); close(pool->fd); free(pool); return OK; }
CALL cuMemPoolSetAccess(struct pool *pool, const access_desc *access, size_t count) { return OK; }

CALL cuMemAllocFromPoolAsync(ptr_t *out, size_t size, struct pool *pool, void *stream)
{
	CHECK_CONTEXT;
	size_t room = (size + 511) & ~(size_t)511;
	if (!pool->mine || pool->used + room > POOL_SIZE)
		return OUT_OF_MEMORY;
	lock();
	*out = (ptr_t)pool->map + pool->used;
	pool->used += room;
	new_range(FROM_POOL, *out, size, pool->fd)->pool = pool;
	unlock();
	return OK;
}
CALL cuMemFreeAsync(ptr_t address, void *stream) { return cuMemFree_v2(address); }

CALL cuMemPoolExportToShareableHandle(void *out, struct pool *pool, int kind, unsigned long long flags)
{
	CHECK_CONTEXT;
	if (kind != POSIX_FD || !(pool->handles & POSIX_FD))
		return INVALID_VALUE;
	*(int *)out = fcntl(pool->fd, F_DUPFD_CLOEXEC, 0);
	return OK;
}

CALL cuMemPoolImportFromShareableHandle(struct pool **out, void *handle, int kind, unsigned long long flags)
{
	CHECK_CONTEXT;
	struct stat st;
	int fd = kind == POSIX_FD ? fcntl((int)(intptr_t)handle, F_DUPFD_CLOEXEC, 0) : -1;
	if (fd < 0 || fstat(fd, &st) || !S_ISREG(st.st_mode) || st.st_size != POOL_SIZE) {
		if (fd >= 0)
			close(fd);
		return INVALID_VALUE;
	}
	struct pool *pool = calloc(1, sizeof *pool);
	pool->fd = fd;
	pool->device = on_device - 1;
	pool->map = map_at(NULL, POOL_SIZE, fd, PROT_READ | PROT_WRITE);
	*out = pool;
	return OK;
}

struct place { char magic[4]; uint64_t offset, size; };

CALL cuMemPoolExportPointer(handle64 *out, ptr_t address)
{
	CHECK_CONTEXT;
	lock();
	struct range *range = range_of(address);
	int answer = range && range->kind == FROM_POOL && range->base == address ? OK : INVALID_VALUE;
	if (answer == OK) {
		struct place place = {"SPTR", address - (ptr_t)range->pool->map, range->size};
		memset(out, 0, sizeof *out);
		memcpy(out->bytes, &place, sizeof place);
	}
	unlock();
	return answer;
}

CALL cuMemPoolImportPointer(ptr_t *out, struct pool *pool, handle64 *data)
{
	CHECK_CONTEXT;
	struct place place;
	memcpy(&place, data->bytes, sizeof place);
	if (memcmp(place.magic, "SPTR", 4) || place.offset > POOL_SIZE || place.size > POOL_SIZE - place.offset)
		return INVALID_VALUE;
	lock();
	*out = (ptr_t)pool->map + place.offset;
	new_range(FROM_OPENED_POOL, *out, place.size, pool->fd)->pool = pool;
	unlock();
	return OK;
}
