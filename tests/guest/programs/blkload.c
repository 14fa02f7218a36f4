// SPDX-License-Identifier: Apache-2.0
/*
 * Loads a block device with O_DIRECT.
 *
 *	blkload verify DEVICE MIB JOBS SEED	JOBS threads write MIB of pseudo-random data in pieces of 4 to
 *						128 KiB, in random order; then they read it back and compare
 *	blkload check DEVICE MIB JOBS SEED	only the second half: compare with what verify wrote
 *	blkload bench DEVICE KIND SIZE DEPTH SECONDS
 *						KIND randread, read or randwrite; SIZE bytes a request, DEPTH
 *						requests in flight: prints "KIND SIZE DEPTH: N ops/s M MiB/s"
 *
 * What a 4 KiB page holds follows from the seed and its place, so any reader can tell. Exits with 1 when data
 * is wrong, with 2 when a request failed.
 */
#include "common.h"
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

enum { PAGE = 4096, LARGEST = 128 << 10, MAX_JOBS = 64, MAX_DEPTH = 256 };

static int file;
static uint64_t pages, seed;
static unsigned jobs;

struct job {
	pthread_t thread;
	unsigned number;
	uint64_t wrong;		/* pages that hold something else */
	int error;		/* of the first request that failed */
	uint64_t where;		/* the page of that request, or the first wrong one */
};

static void *aligned(size_t size)
{
	void *found = NULL;

	if (posix_memalign(&found, PAGE, size))
		die("memory");
	memset(found, 0, size);
	return found;
}

static void fill(uint64_t *data, uint64_t page)
{
	uint64_t state = seed ^ page * 0xD1B54A32D192ED03;

	for (unsigned i = 0; i < PAGE / 8; i++)
		data[i] = next(&state);
}

/* All of one request, however the kernel splits it. */
static int transfer(int writing, void *data, size_t size, uint64_t offset)
{
	for (size_t done = 0; done < size;) {
		ssize_t now = writing ? pwrite(file, (char *)data + done, size - done, offset + done)
				      : pread(file, (char *)data + done, size - done, offset + done);
		if (now <= 0)
			return now ? errno : EIO;
		done += now;
	}
	return 0;
}

/* A job owns every jobs-th extent of LARGEST bytes, and cuts each into pieces of random sizes. */

struct piece { uint64_t page; unsigned pages; };

static struct piece *pieces_of(const struct job *job, size_t *count)
{
	const unsigned most = LARGEST / PAGE;
	struct piece *list = malloc((pages / jobs + 2 * most) * sizeof *list);
	uint64_t random = seed + job->number * 77 + 1;
	size_t n = 0;

	if (!list)
		die("memory");
	for (uint64_t extent = job->number; extent * most < pages; extent += jobs) {
		uint64_t at = extent * most, end = at + most < pages ? at + most : pages;

		while (at < end) {
			unsigned length = 1 + next(&random) % most;

			if (length > end - at)
				length = end - at;
			list[n++] = (struct piece){ at, length };
			at += length;
		}
	}
	for (size_t i = n; i > 1; i--) {
		size_t other = next(&random) % i;
		struct piece kept = list[i - 1];

		list[i - 1] = list[other];
		list[other] = kept;
	}
	*count = n;
	return list;
}

static void *write_all(void *argument)
{
	struct job *job = argument;
	uint64_t *data = aligned(LARGEST);
	size_t count;
	struct piece *list = pieces_of(job, &count);

	for (size_t i = 0; i < count && !job->error; i++) {
		for (unsigned k = 0; k < list[i].pages; k++)
			fill(data + k * (PAGE / 8), list[i].page + k);
		job->error = transfer(1, data, (size_t)list[i].pages * PAGE, list[i].page * PAGE);
		job->where = list[i].page;
	}
	free(list);
	free(data);
	return NULL;
}

static void *read_all(void *argument)
{
	struct job *job = argument;
	uint64_t *data = aligned(LARGEST), *wanted = aligned(PAGE);
	struct job other = { .number = (job->number + 1) % jobs };	/* not what this job wrote */
	size_t count;
	struct piece *list = pieces_of(&other, &count);

	for (size_t i = 0; i < count && !job->error; i++) {
		job->error = transfer(0, data, (size_t)list[i].pages * PAGE, list[i].page * PAGE);
		for (unsigned k = 0; k < list[i].pages && !job->error; k++) {
			fill(wanted, list[i].page + k);
			if (memcmp(wanted, data + k * (PAGE / 8), PAGE) && !job->wrong++)
				job->where = list[i].page + k;
		}
	}
	free(list);
	free(wanted);
	free(data);
	return NULL;
}

static void run(const char *what, void *(*work)(void *))
{
	static struct job list[MAX_JOBS];
	double begin = seconds();
	uint64_t wrong = 0;

	for (unsigned i = 0; i < jobs; i++) {
		list[i] = (struct job){ .number = i };
		if (pthread_create(&list[i].thread, NULL, work, &list[i]))
			die("a thread");
	}
	for (unsigned i = 0; i < jobs; i++)
		pthread_join(list[i].thread, NULL);
	for (unsigned i = 0; i < jobs; i++) {
		errno = list[i].error;
		if (list[i].error)
			die("blkload: %s FAILED at byte %llu", what, (unsigned long long)list[i].where * PAGE);
		if (list[i].wrong)
			printf("blkload: byte %llu and on is wrong\n", (unsigned long long)list[i].where * PAGE);
		wrong += list[i].wrong;
	}
	if (wrong) {
		printf("blkload: %s FAILED: %llu wrong pages\n", what, (unsigned long long)wrong);
		exit(1);
	}
	printf("blkload: %s %llu MiB ok, %.2f s\n", what, (unsigned long long)pages * PAGE >> 20, seconds() - begin);
	fflush(stdout);
}

static uint64_t device_size(void)
{
	struct stat info;
	uint64_t size = 0;

	if (fstat(file, &info))
		die("stat");
	if (S_ISBLK(info.st_mode) && ioctl(file, BLKGETSIZE64, &size))
		die("the size of the device");
	return S_ISBLK(info.st_mode) ? size : (uint64_t)info.st_size;
}

static void open_device(const char *path, int flags)
{
	file = open(path, flags | O_DIRECT | O_CLOEXEC);
	if (file < 0)
		die("%s", path);
}

static void verify(char **words, int writing)
{
	open_device(words[0], writing ? O_RDWR : O_RDONLY);
	pages = strtoull(words[1], NULL, 0) << 20 >> 12;
	jobs = strtoul(words[2], NULL, 0);
	seed = strtoull(words[3], NULL, 0);
	errno = 0;
	if (!pages || pages * PAGE > device_size())
		die("%s is smaller than %s MiB", words[0], words[1]);
	if (!jobs || jobs > MAX_JOBS)
		die("1 to %d jobs", MAX_JOBS);
	if (writing) {
		run("write", write_all);
		if (fsync(file))
			die("blkload: flush FAILED");
	}
	run("read", read_all);
}

struct bench {
	int writing, sequential;
	size_t size;
	unsigned depth;
	double time;
	uint64_t slots, at, random;
};

static void submit(aio_context_t context, const struct bench *bench, struct iocb *request)
{
	request->aio_lio_opcode = bench->writing ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
	request->aio_fildes = file;
	request->aio_nbytes = bench->size;
	if (syscall(SYS_io_submit, context, 1L, &request) != 1)
		die("io_submit");
}

static uint64_t next_offset(struct bench *bench)
{
	return (bench->sequential ? bench->at++ : next(&bench->random)) % bench->slots * bench->size;
}

static void measure(const char *kind, struct bench *bench)
{
	static struct iocb requests[MAX_DEPTH];
	static struct io_event events[MAX_DEPTH];
	aio_context_t context = 0;
	uint64_t done = 0;
	double begin, passed;

	if (syscall(SYS_io_setup, (long)bench->depth, &context))
		die("io_setup");
	begin = seconds();
	for (unsigned i = 0; i < bench->depth; i++) {
		requests[i].aio_buf = (uintptr_t)aligned(bench->size);
		requests[i].aio_offset = next_offset(bench);
		submit(context, bench, &requests[i]);
	}
	do {
		long got = syscall(SYS_io_getevents, context, 1L, (long)bench->depth, events, NULL);

		for (long i = 0; i < got; i++) {
			struct iocb *request = (struct iocb *)(uintptr_t)events[i].obj;

			if (events[i].res != (int64_t)bench->size) {
				errno = events[i].res < 0 ? -events[i].res : 0;
				die("blkload: %s FAILED at byte %lld", kind, (long long)request->aio_offset);
			}
			request->aio_offset = next_offset(bench);
			submit(context, bench, request);
		}
		done += got > 0 ? got : 0;
		passed = seconds() - begin;
	} while (passed < bench->time);
	printf("%s %zu %u: %.0f ops/s %.1f MiB/s\n", kind, bench->size, bench->depth, done / passed,
	       done * bench->size / passed / (1 << 20));
	exit(0); /* requests in flight end with the process */
}

static void bench(char **words)
{
	struct bench bench = {
		.writing = !strcmp(words[1], "randwrite"),
		.sequential = !strcmp(words[1], "read"),
		.size = strtoull(words[2], NULL, 0),
		.depth = strtoul(words[3], NULL, 0),
		.time = strtod(words[4], NULL),
		.random = 1,
	};

	errno = 0;
	if (!bench.size || bench.size % 512 || !bench.depth || bench.depth > MAX_DEPTH)
		die("SIZE must be a multiple of 512, DEPTH 1 to %d", MAX_DEPTH);
	if (!bench.writing && !bench.sequential && strcmp(words[1], "randread"))
		die("KIND is randread, read or randwrite");
	open_device(words[0], bench.writing ? O_RDWR : O_RDONLY);
	bench.slots = device_size() / bench.size;
	if (!bench.slots)
		die("%s is too small", words[0]);
	measure(words[1], &bench);
}

int main(int count, char **words)
{
	const char *mode = count > 1 ? words[1] : "";

	if (!strcmp(mode, "verify") && count == 6)
		verify(words + 2, 1);
	else if (!strcmp(mode, "check") && count == 6)
		verify(words + 2, 0);
	else if (!strcmp(mode, "bench") && count == 7)
		bench(words + 2);
	else {
		fputs("usage: blkload verify|check DEVICE MIB JOBS SEED\n"
		      "       blkload bench DEVICE randread|read|randwrite SIZE DEPTH SECONDS\n", stderr);
		return 2;
	}
	return 0;
}
