// SPDX-License-Identifier: Apache-2.0
// The guest's first process (rdinit=/pyvmm-agent): starts the agent, and gives way to the guest's own init.
//
// With an initramfs that has an /init, that is it. Without one, root= on the kernel's command line is mounted
// here, and its init= run. init=/pyvmm-agent asks for this program instead of another init: it mounts what every
// program expects, and only reaps from then on. An initramfs that mounts the root itself starts it again, there.
#include "guest.h"
#include "protocol.h"

#define SELF "/pyvmm-agent"
#define PATIENCE 10000 // ms for the root's device to appear
#define LOOK 20
#define HOST_NAME "guest"
#define P9_FLAGS "trans=virtio,version=9p2000.L,msize=512000"

static char line[4096]; // the kernel's command line, cut into words
static const char *root, *types, *flags, *init;
static int writable, drivers;

static void say(const char *what, const char *name, long error)
{
    char text[512] = "pyvmm-agent: ", digits[8] = "";
    append(text, sizeof text, what);
    append(text, sizeof text, name);
    if (error < 0) {
        int at = sizeof digits - 1;
        for (long rest = -error; rest && at; rest /= 10)
            digits[--at] = (char)('0' + rest % 10);
        append(text, sizeof text, ": error ");
        append(text, sizeof text, digits + at);
    }
    append(text, sizeof text, "\n");
    sys(SYS_write, 2, text, strlen(text));
}

static void read_word(const char *word)
{
    const char *value;
    if ((value = after(word, "root=")))
        root = value;
    else if ((value = after(word, "rootfstype=")))
        types = value;
    else if ((value = after(word, "rootflags=")))
        flags = value;
    else if ((value = after(word, "init=")))
        init = value;
    else if (same(word, "drivers=all"))
        drivers = 1;
    else if (same(word, "ro") || same(word, "rw"))
        writable = word[1] == 'w';
}

// Where commands are all that the guest is for, it ends quietly: a panic would hide what was said before.
_Noreturn static void give_up(void)
{
    sys(SYS_ioctl, 2, TCSBRK, 1); // tcdrain
    if (init && same(init, SELF))
        sys(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_POWER_OFF, 0);
    leave(1);
}

static void read_command_line(void)
{
    long size = read_file(guest_proc(), "cmdline", line, sizeof line);
    for (long at = 0; at < size;) {
        long end = at;
        while (end < size && line[end] != ' ')
            end++;
        line[end] = 0;
        if (same(line + at, "--"))
            return;
        read_word(line + at);
        at = end + 1;
    }
}

static long mount_type(const char *source, const char *type)
{
    char options[1024] = "";
    if (same(type, "9p"))
        append(options, sizeof options, P9_FLAGS);
    if (flags && *options)
        append(options, sizeof options, ",");
    if (flags && !append(options, sizeof options, flags))
        return -ENAMETOOLONG;
    return sys(SYS_mount, source, "/pyvmm-root", type, writable ? 0 : MS_RDONLY, options);
}

// Try each of the types in `list`, which is changed; entries of /proc/filesystems that need no device begin so.
static long mount_any(const char *source, char *list, char separator)
{
    long error = -ENODEV;
    for (char *at = list; *at && error < 0;) {
        char *end = at;
        while (*end && *end != separator)
            end++;
        char *next = *end ? end + 1 : end;
        *end = 0;
        if (*at == '\t')
            at++;
        if (!after(at, "nodev\t")) {
            long result = mount_type(source, at);
            if (result != -EINVAL && result != -ENODEV)
                error = result; // the others say only that it is not this type
            else if (error == -ENODEV)
                error = result;
        }
        at = next;
    }
    return error;
}

// Make the node `path`, which is /dev/`name`, once there is such a device.
static long make_node(const char *path, const char *name)
{
    long device = device_number("class/block/", name);
    for (long waited = 0; device < 0 && waited < PATIENCE; waited += LOOK) {
        pause_ms(LOOK);
        device = device_number("class/block/", name);
    }
    if (device < 0)
        return device;
    sys(SYS_mkdirat, AT_FDCWD, "/dev", 0755);
    long result = sys(SYS_mknodat, AT_FDCWD, path, S_IFBLK | 0600, device);
    return result == -EEXIST ? 0 : result;
}

static long mount_root(void)
{
    static char list[4096];
    const char *disk = after(root, "/dev/");
    sys(SYS_mkdirat, AT_FDCWD, "/pyvmm-root", 0700);
    if (disk) {
        long error = make_node(root, disk);
        if (error < 0)
            return error;
    } else if (!types) {
        types = "9p,virtiofs";
    }
    if (types)
        return append(list, sizeof list, types) ? mount_any(root, list, ',') : -ENAMETOOLONG;
    read_file(guest_proc(), "filesystems", list, sizeof list);
    return mount_any(root, list, '\n');
}

static void switch_root(void)
{
    sys(SYS_chdir, "/pyvmm-root");
    sys(SYS_mount, ".", "/", 0, MS_MOVE, 0);
    sys(SYS_chroot, ".");
    sys(SYS_chdir, "/");
    sys(SYS_mount, "dev", "/dev", "devtmpfs", 0, 0);
}

static void mount_at(const char *type, const char *directory, const char *options)
{
    sys(SYS_mkdirat, AT_FDCWD, directory, 0755);
    sys(SYS_mount, type, directory, type, 0, options);
}

// What every program may expect. `moved`: most of it came along from the initramfs.
static void mount_usual(int moved)
{
    if (!moved) {
        mount_at("proc", "/proc", 0);
        mount_at("sysfs", "/sys", 0);
        mount_at("devtmpfs", "/dev", 0);
        mount_at("devpts", "/dev/pts", "mode=620,ptmxmode=666");
        sys(SYS_sethostname, HOST_NAME, sizeof HOST_NAME - 1);
        write_file(guest_proc(), "sys/kernel/sysrq", "1"); // every key: it is the host that presses them
        sys(SYS_unlinkat, AT_FDCWD, SETUP, 0);
    }
    mount_at("tmpfs", "/run", "mode=755");
    mount_at("tmpfs", "/tmp", "mode=1777");
    sys(SYS_prctl, PR_SET_NAME, INIT_NAME); // that is done
}

_Noreturn static void reap_forever(void)
{
    for (;;)
        if (sys(SYS_wait4, -1, 0, 0, 0) < 0)
            pause_ms(100); // no child, for now
}

static void start_agent(void)
{
    if (!sys(SYS_clone, SIGCHLD, 0, 0, 0, 0))
        serve();
}

_Noreturn static void become(const char *program, char **argv, char **envp)
{
    argv[0] = (char *)program;
    say("cannot run ", program, sys(SYS_execve, program, argv, envp));
    leave(1);
}

_Noreturn void run(int argc, char **argv, char **envp)
{
    guest_begin();
    int second = argc && !same(argv[0], SELF);
    if (argc && argv[0][0] == '/')
        argv[0][0] = '@'; // systemd spares such processes when it changes the root
    if (sys(SYS_getpid) != 1)
        serve();
    if (second) {
        mount_usual(1);
        reap_forever();
    }
    read_command_line();
    int minimal = init && same(init, SELF);
    if ((root || drivers || !minimal) && !sys(SYS_faccessat, AT_FDCWD, "/init", 0 /* F_OK */)) {
        start_agent();
        become("/init", argv, envp);
    }
    if (root) {
        long error = mount_root();
        if (error < 0) {
            say("cannot mount root=", root, error);
            say("the kernel needs the drivers for it built in, or an initrd that has them", "", 0);
            give_up();
        }
        switch_root();
    }
    if (!root || minimal) {
        mount_usual(0);
        start_agent();
        reap_forever();
    }
    start_agent();
    become(init ? init : "/sbin/init", argv, envp);
}
