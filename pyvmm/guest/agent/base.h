// SPDX-License-Identifier: Apache-2.0
// The ground that the agent stands on: system calls, and the little of a C library that it needs.
// Types and numbers come from the headers of Linux and musl; no code does.
#pragma once
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include <linux/mount.h>
#include <linux/reboot.h>

static inline long call6(long number, long a, long b, long c, long d, long e, long f)
{
#if defined(__riscv)
    register long a7 __asm__("a7") = number;
    register long a0 __asm__("a0") = a;
    register long a1 __asm__("a1") = b;
    register long a2 __asm__("a2") = c;
    register long a3 __asm__("a3") = d;
    register long a4 __asm__("a4") = e;
    register long a5 __asm__("a5") = f;
    __asm__ volatile("ecall" : "+r"(a0) : "r"(a7), "r"(a1), "r"(a2), "r"(a3), "r"(a4), "r"(a5) : "memory");
    return a0;
#elif defined(__x86_64__)
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "+a"(number)
                     : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return number;
#endif
}

// sys(SYS_read, fd, buffer, size): the kernel's answer, -errno when it refused.
#define sys_(n, a, b, c, d, e, f, ...) \
    call6(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define sys(n, ...) sys_(n, ##__VA_ARGS__, 0, 0, 0, 0, 0, 0, 0)

typedef unsigned char byte;

void *memcpy(void *to, const void *from, size_t size);
void *memmove(void *to, const void *from, size_t size);
void *memset(void *to, int value, size_t size);
int memcmp(const void *one, const void *other, size_t size);
size_t strlen(const char *text);
int same(const char *one, const char *other);
// What follows `prefix` in `text`, or null when it does not begin so.
const char *after(const char *text, const char *prefix);
// Append to the `size` bytes at `to`, which hold a string; whether it fitted.
int append(char *to, size_t size, const char *text);

uint32_t load32(const byte *from);
void store32(byte *to, uint32_t value);

// Close it, if it is a descriptor, and make it -1.
void close_fd(int *fd);
void pause_ms(long milliseconds);
// The text of a small file, without its last newline: its length, or -errno.
long read_file(int directory, const char *path, char *buffer, size_t size);
void write_file(int directory, const char *path, const char *text);
_Noreturn void leave(int status);

// The program: from its first instruction's stack.
_Noreturn void run(int argc, char **argv, char **envp);
