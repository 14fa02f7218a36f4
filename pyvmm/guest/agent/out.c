// SPDX-License-Identifier: Apache-2.0
#include "out.h"
#include "protocol.h"

#define OUT_SIZE (256 * 1024)
#define WRITE_SIZE 32768

static byte out[OUT_SIZE];
static uint32_t head, tail;

uint32_t out_room(void)
{
    if (head == tail)
        head = tail = 0;
    if (head > OUT_SIZE / 2) {
        memmove(out, out + head, tail - head);
        tail -= head;
        head = 0;
    }
    return OUT_SIZE - tail;
}

byte *out_payload(void)
{
    return out + tail + HEADER_SIZE;
}

void out_frame(byte type, byte stream, uint16_t session, uint32_t length)
{
    byte *at = out + tail;
    at[0] = type;
    at[1] = stream;
    at[2] = (byte)session;
    at[3] = (byte)(session >> 8);
    store32(at + 4, length);
    tail += HEADER_SIZE + length;
}

int out_waiting(void)
{
    return head < tail;
}

void out_flush(int port)
{
    while (head < tail) {
        uint32_t size = tail - head < WRITE_SIZE ? tail - head : WRITE_SIZE;
        long count = sys(SYS_write, port, out + head, size);
        if (count <= 0)
            return;
        head += (uint32_t)count;
    }
}

void out_drop(void)
{
    head = tail = 0;
}
