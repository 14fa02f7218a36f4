// SPDX-License-Identifier: Apache-2.0
#include "command.h"
#include "place.h"
#include "protocol.h"

#define MAX_WORDS 8192
#define PIECE 65536

static char *arguments[MAX_WORDS + 2]; // room for a shell before a script
static char *environment[MAX_WORDS + 1];
static const char *directory;

_Noreturn static void fail(const struct command *command, byte stage, long error)
{
    command->failure->error = (uint32_t)-error;
    command->failure->stage = stage;
    leave(255);
}

static void check(const struct command *command, byte stage, long result)
{
    if (result < 0)
        fail(command, stage, result);
}

static void parse(const struct command *command)
{
    int words = 1, variables = 0;
    command->spec[command->size] = 0;
    for (uint32_t at = 0; at < command->size; at += (uint32_t)strlen(command->spec + at) + 1) {
        char *text = command->spec + at + 1;
        if (words > MAX_WORDS || variables == MAX_WORDS)
            fail(command, STAGE_RESOURCES, -E2BIG);
        if (text[-1] == 'a')
            arguments[words++] = text;
        else if (text[-1] == 'e')
            environment[variables++] = text;
        else if (text[-1] == 'd')
            directory = text;
    }
    if (words == 1)
        fail(command, STAGE_RESOURCES, -EINVAL);
}

static const char *search_path(void)
{
    for (char **variable = environment; *variable; variable++) {
        const char *path = after(*variable, "PATH=");
        if (path)
            return path;
    }
    return "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
}

static long execute(char *program)
{
    long error = sys(SYS_execve, program, arguments + 1, environment);
    if (error != -ENOEXEC)
        return error;
    arguments[0] = "/bin/sh"; // a script that does not say by what it is run
    arguments[1] = program;
    return sys(SYS_execve, arguments[0], arguments, environment);
}

// Look `name` up in the search path. The most telling error counts: there, but not to be run.
static long execute_by_name(char *name)
{
    static char path[4096];
    long worst = -ENOENT;
    const char *at = search_path();
    while (*at) {
        size_t size = 0;
        while (at[size] && at[size] != ':')
            size++;
        if (size && size < sizeof path) {
            memcpy(path, at, size);
            path[size] = 0;
            if (append(path, sizeof path, "/") && append(path, sizeof path, name)) {
                long error = execute(path);
                if (error != -ENOENT && error != -ENOTDIR)
                    worst = error;
            }
        }
        at += size + (at[size] == ':');
    }
    return worst;
}

_Noreturn static void copy(const struct command *command, int from, int to)
{
    static byte buffer[PIECE];
    long count;
    while ((count = sys(SYS_read, from, buffer, sizeof buffer)) > 0)
        for (long done = 0; done < count;) {
            long written = sys(SYS_write, to, buffer + done, count - done);
            check(command, STAGE_FILE, written);
            done += written;
        }
    check(command, STAGE_FILE, count);
    check(command, STAGE_FILE, sys(SYS_close, to)); // some file systems tell only now that there was no room
    leave(0);
}

_Noreturn static void put(const struct command *command)
{
    long file = sys(SYS_openat, AT_FDCWD, arguments[1], O_WRONLY | O_CREAT | O_TRUNC, command->mode);
    check(command, STAGE_FILE, file);
    check(command, STAGE_FILE, sys(SYS_fchmod, file, command->mode));
    copy(command, 0, (int)file);
}

_Noreturn static void get(const struct command *command)
{
    long file = sys(SYS_openat, AT_FDCWD, arguments[1], O_RDONLY);
    check(command, STAGE_FILE, file);
    copy(command, (int)file, 1);
}

_Noreturn static void become(const struct command *command, const int *ends, const int *inherited, int count)
{
    sys(SYS_setsid);
    for (int i = 0; i < 3; i++)
        sys(SYS_dup3, ends[i], i, 0);
    for (int i = 0; i < count; i++)
        if (inherited[i] >= 0)
            sys(SYS_close, inherited[i]);
    uint64_t none = 0;
    sys(SYS_rt_sigprocmask, SIG_SETMASK, &none, 0, sizeof none);
    sys(SYS_umask, 022);
    parse(command);
    check(command, STAGE_ROOT, place_enter(command->new_root));
    check(command, STAGE_DIRECTORY, sys(SYS_chdir, directory ? directory : "/"));
    if (command->kind == KIND_PUT)
        put(command);
    if (command->kind == KIND_GET)
        get(command);
    const char *name = arguments[1];
    while (*name && *name != '/')
        name++;
    fail(command, STAGE_PROGRAM, *name ? execute(arguments[1]) : execute_by_name(arguments[1]));
}

static void close_all(const int *fds, int count)
{
    for (int i = 0; i < count; i++)
        if (fds[i] >= 0)
            sys(SYS_close, fds[i]);
}

long command_start(const struct command *command, const int *inherited, int count, int *input, int output[2])
{
    int fds[6] = {-1, -1, -1, -1, -1, -1}; // readers at even places
    long error = 0;
    for (int i = 0; i < 3 && error >= 0; i++)
        error = sys(SYS_pipe2, fds + 2 * i, O_CLOEXEC);
    int ours[] = {fds[1], fds[2], fds[4]}, theirs[] = {fds[0], fds[3], fds[5]};
    if (error >= 0)
        error = sys(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (!error) {
        close_all(ours, 3);
        become(command, theirs, inherited, count);
    }
    if (error < 0) {
        close_all(fds, 6);
        return error;
    }
    close_all(theirs, 3);
    for (int i = 0; i < 3; i++)
        sys(SYS_fcntl, ours[i], F_SETFL, O_NONBLOCK | (i ? O_RDONLY : O_WRONLY));
    *input = ours[0];
    output[0] = ours[1];
    output[1] = ours[2];
    return error;
}
