/* A stand-in for libcuda, for tests only: see README.md. Types as the driver's ABI has them. */
#ifndef ISORUN_STANDIN_H
#define ISORUN_STANDIN_H

#include <stddef.h>
#include <stdint.h>

typedef uint64_t ptr_t;
typedef struct { char bytes[64]; } handle64;
typedef struct { unsigned char bytes[16]; } uuid16;
typedef struct { int type, id; } location;
typedef struct {
	int type, handles;
	location where;
	void *win32;
	unsigned char flags[8];
} alloc_prop;
typedef struct {
	int type, handles;
	location where;
	void *win32;
	size_t most;
	unsigned char reserved[56];
} pool_prop;
typedef struct { location where; int flags; } access_desc;

enum {
	OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101,
	INVALID_CONTEXT = 201, MAP_FAILED_205 = 205, INVALID_HANDLE = 400, NOT_READY = 600, ILLEGAL_ADDRESS = 700,
	NOT_PERMITTED = 800, NOT_SUPPORTED = 801,
};
enum { POSIX_FD = 1, FABRIC = 8 };
enum { GRANULARITY = 2 << 20, POOL_SIZE = 256 << 20, MOST = 4096 };

/* What an address belongs to. */
enum kind { FREE_SLOT, PLAIN, OPENED, MAPPED, FROM_POOL, FROM_OPENED_POOL };
struct range {
	enum kind kind;
	ptr_t base;
	size_t size;
	int fd, device, opened;
	char name[96];
	struct chunk *chunk;
	struct pool *pool;
	uint64_t id;
};
/* Memory of cuMemCreate. */
struct chunk { int fd, device, handles, references; size_t size; char name[96]; };
struct pool { int fd, device, handles, mine; char *map; size_t used; };
/* The part of an event that other processes see. */
struct shared_event { volatile uint64_t recorded, done; };
struct event { struct shared_event *state; int shared, mine; char name[96]; };
struct stream;

extern int initialised;
extern __thread int on_device; /* ordinal + 1 of the device whose context is current */

const char *gpu_directory(void);
int own_pid(void);
int devices(void);
void device_uuid(int device, uuid16 *uuid);
int backing(char *name, size_t size, int *fd);
struct range *range_of(ptr_t address);
struct range *opened_as(const char *name);
struct range *new_range(enum kind kind, ptr_t base, size_t size, int fd);
int readable(ptr_t address, size_t size);
void lock(void);
void unlock(void);
void drain_blocking(void);

#define CALL __attribute__((visibility("default"))) int
#define CHECK_CONTEXT do { if (!initialised) return NOT_INITIALIZED; if (!on_device) return INVALID_CONTEXT; } while (0)
#endif
