// SPDX-License-Identifier: Apache-2.0
// One command, from its description to its process.
#pragma once
#include "guest.h"

// What kept a command from being run, or a file from being copied. `stage` is 0 when nothing did.
struct failure {
    byte stage;
    uint32_t error;
};

struct command {
    byte kind;
    int new_root;
    uint32_t mode;
    char *spec; // strings that end in NUL: 'a' and an argument, 'e' and NAME=VALUE, 'd' and the directory
    uint32_t size;
    struct failure *failure; // shared with the process
};

// Start it, with a session and process group of its own: the process's id, or -errno. `input` and `output` become
// our ends of its pipes, which do not block. `inherited` are descriptors that it must not hold (-1: none).
long command_start(const struct command *command, const int *inherited, int count, int *input, int output[2]);
