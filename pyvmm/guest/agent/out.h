// SPDX-License-Identifier: Apache-2.0
// What is on its way to the host. A frame is made in place: first its payload, then out_frame.
#pragma once
#include "base.h"

#define RESERVE 4096 // bytes, for everything but commands' output

// Bytes that a frame made now may have, header included. Moves what is there: ask before out_payload.
uint32_t out_room(void);
// Where the payload of the next frame belongs.
byte *out_payload(void);
void out_frame(byte type, byte stream, uint16_t session, uint32_t length);
int out_waiting(void);
// Write what the port takes.
void out_flush(int port);
void out_drop(void);
