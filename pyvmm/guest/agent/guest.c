// SPDX-License-Identifier: Apache-2.0
// The place: a Linux guest. The agent asks nothing of the guest's files. It has a proc and a sysfs of its own,
// which are mounted nowhere, so that no init can take them away, and makes the port's device node itself.
#include "guest.h"
#include "place.h"
#include "protocol.h"

#define SETUP_PATIENCE 3000 // ms for an init that does not say when it is done
#define LOOK 10

struct entry { // linux_dirent64
    uint64_t inode;
    int64_t offset;
    uint16_t length;
    byte type;
    char name[];
};

static int proc = -1;
static int sysfs = -1;
static uint32_t first_root[2];
static int setup_told; // the initramfs has SETUP
static struct timespec began;

// A new file system of this type that is mounted nowhere: a directory descriptor, or -errno.
static int detached(const char *type)
{
    long context = sys(SYS_fsopen, type, FSOPEN_CLOEXEC);
    if (context < 0)
        return (int)context;
    long result = sys(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, 0, 0, 0);
    if (result >= 0)
        result = sys(SYS_fsmount, context, FSMOUNT_CLOEXEC, 0);
    sys(SYS_close, context);
    return (int)result;
}

static int root_device(const char *path, int directory, uint32_t device[2])
{
    struct statx status;
    if (sys(SYS_statx, directory, path, 0, STATX_BASIC_STATS, &status) < 0)
        return 0;
    device[0] = status.stx_dev_major;
    device[1] = status.stx_dev_minor;
    return 1;
}

void guest_begin(void)
{
    root_device("/", AT_FDCWD, first_root);
    setup_told = !sys(SYS_faccessat, AT_FDCWD, SETUP, 0 /* F_OK */);
    sys(SYS_clock_gettime, CLOCK_MONOTONIC, &began);
    proc = detached("proc");
    sysfs = detached("sysfs");
}

int guest_proc(void)
{
    return proc;
}

void place_begin(void)
{
    sys(SYS_prctl, PR_SET_NAME, "pyvmm-agent");
    write_file(proc, "self/oom_score_adj", "-1000");
}

long device_number(const char *directory, const char *name)
{
    char path[128] = "", text[32];
    if (!append(path, sizeof path, directory) || !append(path, sizeof path, name) ||
        !append(path, sizeof path, "/dev"))
        return -ENAMETOOLONG;
    long count = read_file(sysfs, path, text, sizeof text);
    if (count < 0)
        return count;
    uint32_t number[2] = {0, 0};
    for (int part = 0, i = 0; text[i]; i++) {
        if (text[i] == ':')
            part = 1;
        else
            number[part] = number[part] * 10 + (uint32_t)(text[i] - '0');
    }
    return (number[1] & 0xff) | number[0] << 8 | (number[1] & ~0xffU) << 12;
}

// The device node lives in a file system of its own: the guest may have no /dev yet.
static int open_port(const char *name)
{
    long device = device_number("class/virtio-ports/", name);
    if (device < 0)
        return -1;
    long nodes = detached("ramfs");
    long fd = sys(SYS_mknodat, nodes, "port", S_IFCHR | 0600, device);
    if (fd >= 0)
        fd = sys(SYS_openat, nodes, "port", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    sys(SYS_close, nodes);
    return fd < 0 ? -1 : (int)fd;
}

static int is_ours(int ports, const char *name)
{
    char path[64] = "", text[64];
    return append(path, sizeof path, name) && append(path, sizeof path, "/name") &&
           read_file(ports, path, text, sizeof text) > 0 && same(text, PORT_NAME);
}

// Whether what process 1 sees has this path.
static int there(const char *path)
{
    char below[64] = "1/root";
    return append(below, sizeof below, path) && !sys(SYS_faccessat, proc, below, 0 /* F_OK */);
}

// Not while process 1 is on its way from one root to the next.
static int init_runs(void)
{
    char name[32];
    return read_file(proc, "1/comm", name, sizeof name) >= 0 && !same(name, "switch_root") &&
           !same(name, "pyvmm-agent");
}

// Whether the guest's init has made the guest what commands expect. It is not done for it: an init may take it
// for its own failure that something is mounted already.
static int is_set_up(void)
{
    struct timespec now;
    if (setup_told)
        return !there(SETUP) && init_runs();
    sys(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
    long waited = (now.tv_sec - began.tv_sec) * 1000 + (now.tv_nsec - began.tv_nsec) / 1000000;
    return waited >= SETUP_PATIENCE || (there("/proc/self") && there("/sys/class") && there("/dev/null"));
}

int place_port(void)
{
    static int set_up;
    if (!set_up && !(set_up = is_set_up()))
        return -1;
    static _Alignas(8) char buffer[4096];
    long ports = sys(SYS_openat, sysfs, "class/virtio-ports", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (ports < 0)
        return -1;
    int found = -1;
    long size;
    while (found < 0 && (size = sys(SYS_getdents64, ports, buffer, sizeof buffer)) > 0)
        for (long at = 0; at < size && found < 0; at += ((struct entry *)(buffer + at))->length) {
            const char *name = ((struct entry *)(buffer + at))->name;
            if (name[0] != '.' && is_ours((int)ports, name))
                found = open_port(name);
        }
    sys(SYS_close, ports);
    return found;
}

static int root_is_new(void)
{
    uint32_t now[2];
    return root_device("1/root", proc, now) && (now[0] != first_root[0] || now[1] != first_root[1]) && init_runs();
}

long place_enter(int new_root)
{
    write_file(proc, "self/oom_score_adj", "0");
    while (new_root && !root_is_new())
        pause_ms(LOOK);
    long root = sys(SYS_openat, proc, "1/root", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root < 0)
        return root;
    long result = sys(SYS_fchdir, root);
    if (result >= 0)
        result = sys(SYS_chroot, ".");
    sys(SYS_close, root);
    return result;
}

_Noreturn void place_power_off(void)
{
    sys(SYS_kill, -1, SIGKILL); // all but init and this process
    sys(SYS_sync);
    if (place_enter(0) >= 0)
        sys(SYS_mount, 0, "/", 0, MS_REMOUNT | MS_RDONLY, 0); // a file system that is left clean
    sys(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_POWER_OFF, 0);
    leave(1);
}
