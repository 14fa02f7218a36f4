/* SPDX-License-Identifier: Apache-2.0 */
/* What the guest programs share: dying with a reason, small files, checks, pseudo-random numbers. */
#ifndef COMMON_H
#define COMMON_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define UNUSED __attribute__((unused))

UNUSED static _Noreturn void die(const char *format, ...)
{
	int error = errno;
	va_list words;

	va_start(words, format);
	vfprintf(stderr, format, words);
	va_end(words);
	fprintf(stderr, error ? ": %s\n" : "\n", strerror(error));
	exit(2);
}

/* splitmix64: the next number of a sequence, and a good mix of any number. */
UNUSED static uint64_t next(uint64_t *state)
{
	uint64_t z = *state += 0x9E3779B97F4A7C15;

	z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
	z = (z ^ z >> 27) * 0x94D049BB133111EB;
	return z ^ z >> 31;
}

UNUSED static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

UNUSED static void pause_ms(long milliseconds)
{
	nanosleep(&(struct timespec){ milliseconds / 1000, milliseconds % 1000 * 1000000 }, NULL);
}

/* The first bytes of a file as text; empty when it cannot be read. */
UNUSED static void read_text(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? 0 : read(fd, text, size - 1);

	text[got > 0 ? got : 0] = 0;
	if (fd >= 0)
		close(fd);
}

UNUSED static int write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t done = fd < 0 ? -1 : write(fd, text, strlen(text));

	if (fd >= 0)
		close(fd);
	return done < 0 ? -1 : 0;
}

/* The physical address of a byte of ours that is in memory to stay; 0 when it cannot be known. */
UNUSED static uint64_t physical(const volatile void *address)
{
	uint64_t entry = 0, page = sysconf(_SC_PAGESIZE), at = (uintptr_t)address;
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	if (fd < 0 || pread(fd, &entry, 8, at / page * 8) != 8)
		entry = 0;
	if (fd >= 0)
		close(fd);
	return entry >> 63 ? (entry & ((1ULL << 55) - 1)) * page + at % page : 0;
}

/* Zeroed, locked memory in one piece. */
UNUSED static void *locked_page(void)
{
	void *page = mmap(NULL, sysconf(_SC_PAGESIZE), PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE | MAP_LOCKED, -1, 0);

	if (page == MAP_FAILED)
		die("memory");
	memset(page, 0, sysconf(_SC_PAGESIZE));
	return page;
}

#endif
