/* Streams that really are asynchronous, events, copies. */
#define _GNU_SOURCE
#include "standin.h"
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum what { SET, COPY, RECORD, WAIT };
struct job {
	enum what what;
	ptr_t to;
	const void *from;
	size_t size;
	unsigned char value;
	struct shared_event *event;
	uint64_t number;
	struct job *next;
};
struct stream {
	pthread_mutex_t mutex;
	pthread_cond_t changed;
	struct job *first, **last;
	int busy, non_blocking, ending;
	pthread_t thread;
	struct stream *next;
};

static struct stream *all;
static struct stream *null_stream;
static pthread_mutex_t list = PTHREAD_MUTEX_INITIALIZER;

static void run(struct job *job)
{
	const char *delay = getenv("ISORUN_STANDIN_DELAY_MS");
	switch (job->what) {
	case SET:
		if (delay)
			usleep((useconds_t)atoi(delay) * 1000);
		memset((void *)job->to, job->value, job->size);
		break;
	case COPY:
		memcpy((void *)job->to, job->from, job->size);
		break;
	case RECORD:
		__atomic_store_n(&job->event->done, job->number, __ATOMIC_SEQ_CST);
		break;
	case WAIT:
		while (__atomic_load_n(&job->event->done, __ATOMIC_SEQ_CST) < job->number)
			usleep(200);
		break;
	}
}

static void *work(void *argument)
{
	struct stream *stream = argument;
	pthread_mutex_lock(&stream->mutex);
	for (;;) {
		while (!stream->first && !stream->ending)
			pthread_cond_wait(&stream->changed, &stream->mutex);
		struct job *job = stream->first;
		if (!job)
			break;
		stream->first = job->next;
		if (!stream->first)
			stream->last = &stream->first;
		stream->busy = 1;
		pthread_mutex_unlock(&stream->mutex);
		run(job);
		free(job);
		pthread_mutex_lock(&stream->mutex);
		stream->busy = 0;
		pthread_cond_broadcast(&stream->changed);
	}
	pthread_mutex_unlock(&stream->mutex);
	return NULL;
}

static struct stream *make(int non_blocking)
{
	struct stream *stream = calloc(1, sizeof *stream);
	pthread_mutex_init(&stream->mutex, NULL);
	pthread_cond_init(&stream->changed, NULL);
	stream->last = &stream->first;
	stream->non_blocking = non_blocking;
	pthread_create(&stream->thread, NULL, work, stream);
	pthread_mutex_lock(&list);
	stream->next = all;
	all = stream;
	pthread_mutex_unlock(&list);
	return stream;
}

static struct stream *real(struct stream *stream)
{
	if (stream)
		return stream;
	lock();
	if (!null_stream)
		null_stream = make(0);
	unlock();
	return null_stream;
}

static int push(struct stream *stream, struct job job)
{
	struct job *mine = malloc(sizeof *mine);
	*mine = job;
	mine->next = NULL;
	stream = real(stream);
	pthread_mutex_lock(&stream->mutex);
	*stream->last = mine;
	stream->last = &mine->next;
	pthread_cond_broadcast(&stream->changed);
	pthread_mutex_unlock(&stream->mutex);
	return OK;
}

static void drain(struct stream *stream)
{
	pthread_mutex_lock(&stream->mutex);
	while (stream->first || stream->busy)
		pthread_cond_wait(&stream->changed, &stream->mutex);
	pthread_mutex_unlock(&stream->mutex);
}

void drain_blocking(void)
{
	pthread_mutex_lock(&list);
	struct stream *stream = all;
	pthread_mutex_unlock(&list);
	for (; stream; stream = stream->next)
		if (!stream->non_blocking)
			drain(stream);
}

CALL cuStreamCreate(struct stream **stream, unsigned flags) { CHECK_CONTEXT; *stream = make(flags & 1); return OK; }
CALL cuStreamDestroy_v2(struct stream *stream) { drain(stream); return OK; } /* kept: it is a test */
CALL cuStreamSynchronize(struct stream *stream) { CHECK_CONTEXT; drain(real(stream)); return OK; }

CALL cuStreamQuery(struct stream *stream)
{
	CHECK_CONTEXT;
	stream = real(stream);
	pthread_mutex_lock(&stream->mutex);
	int busy = stream->first || stream->busy;
	pthread_mutex_unlock(&stream->mutex);
	return busy ? NOT_READY : OK;
}

static const char *shm(void)
{
	const char *directory = getenv("ISORUN_STANDIN_SHM");
	return directory ? directory : "/dev/shm";
}

static struct shared_event *map_event(const char *name, int flags)
{
	char path[512];
	snprintf(path, sizeof path, "%s/%s", shm(), name);
	int fd = open(path, O_RDWR | O_CLOEXEC | flags, 0666);
	if (fd < 0)
		return NULL;
	void *map = MAP_FAILED;
	if (ftruncate(fd, 64) == 0)
		map = mmap(NULL, 64, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	return map == MAP_FAILED ? NULL : map;
}

CALL cuEventCreate(struct event **out, unsigned flags)
{
	static int serial;
	CHECK_CONTEXT;
	struct event *event = calloc(1, sizeof *event);
	event->mine = 1;
	if (flags & 4) { /* for other processes; then it must have no times */
		if (!(flags & 2))
			return free(event), INVALID_VALUE;
		event->shared = 1;
		/* Others may have the same pid, in another namespace. */
		struct timespec now;
		clock_gettime(CLOCK_MONOTONIC, &now);
		snprintf(event->name, sizeof event->name, "isorun-standin-event-%d-%d-%lx%lx", getpid(),
			 __atomic_add_fetch(&serial, 1, __ATOMIC_RELAXED), (long)now.tv_sec, now.tv_nsec);
		event->state = map_event(event->name, O_CREAT | O_EXCL);
	} else {
		event->state = calloc(1, sizeof *event->state);
	}
	if (!event->state)
		return free(event), OUT_OF_MEMORY;
	*out = event;
	return OK;
}

CALL cuEventDestroy_v2(struct event *event)
{
	char path[512];
	if (event->shared && event->mine) {
		snprintf(path, sizeof path, "%s/%s", shm(), event->name);
		unlink(path);
	}
	/* Jobs may still point to the state: it stays. */
	free(event);
	return OK;
}

CALL cuEventRecord(struct event *event, struct stream *stream)
{
	CHECK_CONTEXT;
	uint64_t number = __atomic_add_fetch(&event->state->recorded, 1, __ATOMIC_SEQ_CST);
	return push(stream, (struct job){.what = RECORD, .event = event->state, .number = number});
}

CALL cuEventQuery(struct event *event)
{
	CHECK_CONTEXT;
	return event->state->done >= event->state->recorded ? OK : NOT_READY;
}

CALL cuEventSynchronize(struct event *event)
{
	CHECK_CONTEXT;
	while (event->state->done < event->state->recorded)
		usleep(200);
	return OK;
}

CALL cuStreamWaitEvent(struct stream *stream, struct event *event, unsigned flags)
{
	CHECK_CONTEXT;
	return push(stream, (struct job){.what = WAIT, .event = event->state, .number = event->state->recorded});
}

CALL cuIpcGetEventHandle(handle64 *handle, struct event *event)
{
	CHECK_CONTEXT;
	if (!event->shared)
		return INVALID_HANDLE;
	memset(handle, 0, sizeof *handle);
	snprintf(handle->bytes, sizeof handle->bytes, "%.63s", event->name);
	return OK;
}

CALL cuIpcOpenEventHandle(struct event **out, handle64 handle)
{
	CHECK_CONTEXT;
	handle.bytes[63] = 0;
	if (strncmp(handle.bytes, "isorun-standin-event-", 21) || strchr(handle.bytes, '/'))
		return INVALID_VALUE;
	struct shared_event *state = map_event(handle.bytes, 0);
	if (!state)
		return MAP_FAILED_205;
	struct event *event = calloc(1, sizeof *event);
	event->state = state;
	event->shared = 1;
	*out = event;
	return OK;
}

CALL cuMemcpyHtoD_v2(ptr_t to, const void *from, size_t size)
{
	CHECK_CONTEXT;
	drain_blocking();
	int answer = readable(to, size);
	if (answer == OK)
		memcpy((void *)to, from, size);
	return answer;
}

CALL cuMemcpyDtoH_v2(void *to, ptr_t from, size_t size)
{
	CHECK_CONTEXT;
	drain_blocking();
	int answer = readable(from, size);
	if (answer == OK)
		memcpy(to, (void *)from, size);
	return answer;
}

CALL cuMemcpyDtoD_v2(ptr_t to, ptr_t from, size_t size)
{
	CHECK_CONTEXT;
	int answer = readable(to, size);
	if (answer == OK)
		answer = readable(from, size);
	if (answer == OK)
		answer = push(NULL, (struct job){.what = COPY, .to = to, .from = (void *)from, .size = size});
	return answer;
}

CALL cuMemcpyDtoHAsync_v2(void *to, ptr_t from, size_t size, struct stream *stream)
{
	CHECK_CONTEXT;
	int answer = readable(from, size);
	if (answer == OK)
		answer = push(stream, (struct job){.what = COPY, .to = (ptr_t)to, .from = (void *)from, .size = size});
	return answer;
}

CALL cuMemcpyHtoDAsync_v2(ptr_t to, const void *from, size_t size, struct stream *stream)
{
	CHECK_CONTEXT;
	int answer = readable(to, size);
	if (answer == OK)
		answer = push(stream, (struct job){.what = COPY, .to = to, .from = from, .size = size});
	return answer;
}

CALL cuMemsetD8Async(ptr_t to, unsigned char value, size_t size, struct stream *stream)
{
	CHECK_CONTEXT;
	int answer = readable(to, size);
	if (answer == OK)
		answer = push(stream, (struct job){.what = SET, .to = to, .value = value, .size = size});
	return answer;
}
