// SPDX-License-Identifier: Apache-2.0
#include "base.h"

#if defined(__riscv)
__asm__(".globl _start\n"
        "_start:\n"
        ".option push\n"
        ".option norelax\n"
        "lla gp, __global_pointer$\n"
        ".option pop\n"
        "mv a0, sp\n"
        "andi sp, sp, -16\n"
        "call start\n");
#elif defined(__x86_64__)
__asm__(".globl _start\n"
        "_start:\n"
        "mov %rsp, %rdi\n"
        "and $-16, %rsp\n"
        "call start\n");
#endif

__attribute__((used)) _Noreturn static void start(long *stack) __asm__("start");

_Noreturn static void start(long *stack)
{
    char **argv = (char **)(stack + 1);
    run((int)stack[0], argv, argv + stack[0] + 1);
}

void *memcpy(void *to, const void *from, size_t size)
{
    byte *target = to;
    const byte *source = from;
    while (size--)
        *target++ = *source++;
    return to;
}

void *memmove(void *to, const void *from, size_t size)
{
    byte *target = to;
    const byte *source = from;
    if (target <= source)
        return memcpy(to, from, size);
    while (size--)
        target[size] = source[size];
    return to;
}

void *memset(void *to, int value, size_t size)
{
    for (byte *target = to; size--; target++)
        *target = (byte)value;
    return to;
}

int memcmp(const void *one, const void *other, size_t size)
{
    const byte *a = one, *b = other;
    for (; size--; a++, b++)
        if (*a != *b)
            return *a - *b;
    return 0;
}

size_t strlen(const char *text)
{
    size_t size = 0;
    while (text[size])
        size++;
    return size;
}

int same(const char *one, const char *other)
{
    const char *rest = after(one, other);
    return rest && !*rest;
}

const char *after(const char *text, const char *prefix)
{
    for (; *prefix; prefix++, text++)
        if (*text != *prefix)
            return 0;
    return text;
}

int append(char *to, size_t size, const char *text)
{
    size_t used = strlen(to), length = strlen(text);
    if (used + length >= size)
        return 0;
    memcpy(to + used, text, length + 1);
    return 1;
}

uint32_t load32(const byte *from)
{
    return from[0] | from[1] << 8 | from[2] << 16 | (uint32_t)from[3] << 24;
}

void store32(byte *to, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        to[i] = (byte)(value >> 8 * i);
}

void close_fd(int *fd)
{
    if (*fd >= 0)
        sys(SYS_close, *fd);
    *fd = -1;
}

void pause_ms(long milliseconds)
{
    struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    sys(SYS_nanosleep, &time, 0);
}

long read_file(int directory, const char *path, char *buffer, size_t size)
{
    long fd = sys(SYS_openat, directory, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return fd;
    long count = sys(SYS_read, fd, buffer, size - 1);
    sys(SYS_close, fd);
    if (count < 0)
        return count;
    if (count && buffer[count - 1] == '\n')
        count--;
    buffer[count] = 0;
    return count;
}

void write_file(int directory, const char *path, const char *text)
{
    long fd = sys(SYS_openat, directory, path, O_WRONLY | O_CLOEXEC);
    if (fd >= 0) {
        sys(SYS_write, fd, text, strlen(text));
        sys(SYS_close, fd);
    }
}

_Noreturn void leave(int status)
{
    for (;;)
        sys(SYS_exit_group, status);
}
