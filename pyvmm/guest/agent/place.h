// SPDX-License-Identifier: Apache-2.0
// Where the agent is: how it finds its port, and the file system that commands see.
#pragma once

// Called once, before anything else here.
void place_begin(void);
// A descriptor of the port, which does not block, or -1 while there is none, or the guest is being set up.
int place_port(void);
// In a command's process: become part of the guest's system. 0 or -errno. `new_root`: first wait until init has
// left the initramfs.
long place_enter(int new_root);
_Noreturn void place_power_off(void);
