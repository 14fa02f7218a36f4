// SPDX-License-Identifier: Apache-2.0
// What the agent and the first process share about the guest.
#pragma once
#include "base.h"

// What process 1 is called once it is a minimal init, and has mounted what commands expect.
#define INIT_NAME "pyvmm-init"
// A file that an initramfs may have, and its init removes once commands may run.
#define SETUP "/pyvmm-setup"

// Called once, before the root changes.
void guest_begin(void);
// A directory descriptor of a proc of our own.
int guest_proc(void);
// The number of the device called `name` in this directory of sysfs, for mknod; -errno.
long device_number(const char *directory, const char *name);
// Serve the port; with nothing from the guest's files.
_Noreturn void serve(void);
