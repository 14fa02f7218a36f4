// SPDX-License-Identifier: Apache-2.0
// Commands that run, or that the host has still to hear of: up to MAX_SESSIONS.
#pragma once
#include "base.h"
#include "protocol.h"

#define REFUSAL_SIZE (HEADER_SIZE + 8)

enum { OPEN, ENDED, TOLD };

struct session {
    uint16_t id; // 0: the slot is free
    long pid;    // 0: reaped
    byte how;
    uint32_t value; // of EXIT
    int input;      // our end of the pipe; -1 when it is closed
    int input_ended;
    uint32_t head, held; // the ring in `buffer`
    uint32_t taken;      // bytes of input that the host was not yet told of
    int output[2];       // stdout, stderr
    byte state[2];       // OPEN, ENDED: the host is to hear of it, TOLD
    uint32_t window[2];  // bytes that the host takes
    int rest[2];         // after the command's end, what is still in the pipe; else -1
    byte buffer[INPUT_WINDOW];
};

extern struct session sessions[MAX_SESSIONS];

// Called once.
void sessions_begin(void);
// Null when there is none.
struct session *session_find(uint16_t id);
// Begin a command: START's payload, and its description, which is changed.
void session_start(uint16_t id, const byte *payload, char *spec, uint32_t size);
// Tell the host that a command is not begun. There must be room for it (REFUSAL_SIZE).
void session_refuse(uint16_t id, uint32_t error);
void session_signal(struct session *session, long number);
// Keep what the host sent as input; nothing is the end of it.
void session_input(struct session *session, const byte *data, uint32_t length);
// How much of an output (0, 1) may be read now.
uint32_t session_wants(const struct session *session, int output);
// Move what can be moved, of all of them in turn, between the commands and what goes to the host.
void sessions_work(void);
// Note which commands have ended.
void sessions_reap(void);
// Nobody waits for these commands any more.
void sessions_drop(void);
