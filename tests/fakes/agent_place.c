// SPDX-License-Identifier: Apache-2.0
// The agent on the machine that runs the tests: its port is its standard input, a socket; it stays
// where it is.
// Its arguments signalfd and epoll are something that this machine's kernel was built without; close says
// that files are on a disk that is full, which is told when they are closed.
#include "guest.h"
#include "place.h"
#include <linux/filter.h>
#include <linux/seccomp.h>

static int disk_is_full;

static void refuse(uint32_t number, uint32_t error)
{
    struct sock_filter rules[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0), // the system call's number
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof rules / sizeof *rules, rules};
    if (sys(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1) < 0 || sys(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) < 0)
        leave(43);
}

int guest_proc(void)
{
    return AT_FDCWD;
}

void place_begin(void)
{
}

int place_port(void)
{
    long port = sys(SYS_fcntl, 0, F_DUPFD_CLOEXEC, 3);
    sys(SYS_fcntl, port, F_SETFL, O_RDWR | O_NONBLOCK);
    return (int)port;
}

long place_enter(int new_root)
{
    while (new_root)
        pause_ms(10);
    if (disk_is_full)
        refuse(SYS_close, ENOSPC);
    return 0;
}

_Noreturn void place_power_off(void)
{
    leave(42);
}

_Noreturn void run(int argc, char **argv, char **envp)
{
    (void)envp;
    for (int i = 1; i < argc; i++)
        if (same(argv[i], "close"))
            disk_is_full = 1;
        else
            refuse(same(argv[i], "signalfd") ? SYS_signalfd4 : SYS_epoll_create1, ENOSYS);
    serve();
}
