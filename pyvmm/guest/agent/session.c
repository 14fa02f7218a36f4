// SPDX-License-Identifier: Apache-2.0
#include "session.h"
#include "command.h"
#include "out.h"

struct session sessions[MAX_SESSIONS];

static struct failure *failures; // written by the commands' processes, before they have become the command

void sessions_begin(void)
{
    failures = (void *)sys(SYS_mmap, 0, sizeof *failures * MAX_SESSIONS, PROT_READ | PROT_WRITE,
                           MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

static void exit_frame(uint16_t id, uint32_t how, uint32_t value)
{
    store32(out_payload(), how);
    store32(out_payload() + 4, value);
    out_frame(EXIT, 0, id, 8);
}

void session_refuse(uint16_t id, uint32_t error)
{
    exit_frame(id, HOW_FAILED | STAGE_RESOURCES << 8, error);
}

struct session *session_find(uint16_t id)
{
    for (int i = 0; id && i < MAX_SESSIONS; i++)
        if (sessions[i].id == id)
            return &sessions[i];
    return 0;
}

static void release(struct session *session)
{
    close_fd(&session->input);
    close_fd(&session->output[0]);
    close_fd(&session->output[1]);
    session->id = 0;
}

void session_signal(struct session *session, long number)
{
    // It may not have made its group yet.
    if (session->pid && sys(SYS_kill, -session->pid, number) < 0)
        sys(SYS_kill, session->pid, number);
}

void sessions_drop(void)
{
    for (int i = 0; i < MAX_SESSIONS; i++)
        if (sessions[i].id) {
            session_signal(&sessions[i], SIGKILL);
            release(&sessions[i]);
        }
}

static void failed(struct session *session, byte stage, long error)
{
    session->how = HOW_FAILED;
    session->value = (uint32_t)error | (uint32_t)stage << 16;
}

void session_start(uint16_t id, const byte *payload, char *spec, uint32_t size)
{
    struct session *session = 0;
    for (int i = 0; i < MAX_SESSIONS && !session; i++)
        if (!sessions[i].id && !sessions[i].pid)
            session = &sessions[i];
    if (!session) {
        session_refuse(id, EAGAIN);
        return;
    }
    struct command command = {
        .kind = payload[0],
        .new_root = payload[1] & FLAG_NEW_ROOT,
        .mode = load32(payload + 4),
        .spec = spec,
        .size = size,
        .failure = &failures[session - sessions],
    };
    memset(command.failure, 0, sizeof *command.failure);
    session->id = id;
    session->how = 0;
    session->input_ended = 0;
    session->head = session->held = session->taken = 0;
    session->input = session->output[0] = session->output[1] = -1;
    for (int i = 0; i < 2; i++) {
        session->window[i] = load32(payload + 8 + 4 * i);
        session->state[i] = OPEN;
        session->rest[i] = -1;
    }
    int inherited[3 * MAX_SESSIONS], count = 0;
    for (int i = 0; i < MAX_SESSIONS; i++)
        if (sessions[i].id) {
            inherited[count++] = sessions[i].input;
            inherited[count++] = sessions[i].output[0];
            inherited[count++] = sessions[i].output[1];
        }
    long pid = command_start(&command, inherited, count, &session->input, session->output);
    session->pid = pid > 0 ? pid : 0;
    if (pid < 0) {
        failed(session, STAGE_RESOURCES, -pid);
        session->state[0] = session->state[1] = ENDED;
    }
}

void sessions_reap(void)
{
    int status;
    long pid;
    while ((pid = sys(SYS_wait4, -1, &status, WNOHANG, 0)) > 0)
        for (int i = 0; i < MAX_SESSIONS; i++) {
            struct session *session = &sessions[i];
            if (session->pid != pid)
                continue;
            session->pid = 0;
            if (!session->id)
                break; // reset meanwhile
            session->how = WIFSIGNALED(status) ? HOW_KILLED : HOW_EXITED;
            session->value = (uint32_t)(WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
            if (failures[i].stage)
                failed(session, failures[i].stage, failures[i].error);
            close_fd(&session->input);
            session->held = 0;
            // What it left running does not keep the session open, but what it wrote itself is passed on.
            for (int j = 0; j < 2; j++)
                if (session->state[j] == OPEN && sys(SYS_ioctl, session->output[j], FIONREAD, &session->rest[j]) < 0)
                    session->rest[j] = 0;
        }
}

void session_input(struct session *session, const byte *data, uint32_t length)
{
    if (!length)
        session->input_ended = 1;
    if (session->input < 0) {
        session->taken += length; // nobody reads it any more
        return;
    }
    for (; length && session->held < INPUT_WINDOW; length--, session->held++)
        session->buffer[(session->head + session->held) % INPUT_WINDOW] = *data++;
}

// Between commands and buffers

static void feed(struct session *session)
{
    while (session->input >= 0 && session->held) {
        uint32_t size = INPUT_WINDOW - session->head;
        if (size > session->held)
            size = session->held;
        long count = sys(SYS_write, session->input, session->buffer + session->head, size);
        if (count == -EAGAIN)
            return;
        if (count < 0) { // it reads no more; neither will anybody miss the rest
            session->taken += session->held;
            session->held = 0;
            close_fd(&session->input);
            return;
        }
        session->head = (session->head + (uint32_t)count) % INPUT_WINDOW;
        session->held -= (uint32_t)count;
        session->taken += (uint32_t)count;
    }
    if (session->input_ended)
        close_fd(&session->input);
}

uint32_t session_wants(const struct session *session, int i)
{
    if (session->state[i] != OPEN || out_room() < RESERVE + HEADER_SIZE)
        return 0;
    uint32_t most = out_room() - RESERVE - HEADER_SIZE;
    if (most > MAX_PAYLOAD)
        most = MAX_PAYLOAD;
    if (most > session->window[i])
        most = session->window[i];
    if (session->rest[i] >= 0 && most > (uint32_t)session->rest[i])
        most = (uint32_t)session->rest[i];
    return most;
}

static void drain(struct session *session, int i)
{
    uint32_t most = session_wants(session, i);
    if (most) {
        long count = sys(SYS_read, session->output[i], out_payload(), most);
        if (count == -EAGAIN && session->rest[i] < 0)
            return;
        if (count > 0) {
            out_frame(OUTPUT, (byte)(i + 1), session->id, (uint32_t)count);
            session->window[i] -= (uint32_t)count;
            if (session->rest[i] > 0)
                session->rest[i] -= (int)count;
        } else {
            session->state[i] = ENDED;
        }
    }
    if (session->state[i] == OPEN && !session->rest[i])
        session->state[i] = ENDED;
}

static void report(struct session *session)
{
    for (int i = 0; i < 2; i++)
        if (session->state[i] == ENDED && out_room() >= HEADER_SIZE) {
            out_frame(OUTPUT, (byte)(i + 1), session->id, 0);
            session->state[i] = TOLD;
            close_fd(&session->output[i]);
        }
    if (session->taken && out_room() >= HEADER_SIZE + 4) {
        store32(out_payload(), session->taken);
        out_frame(TAKEN, 0, session->id, 4);
        session->taken = 0;
    }
    if (!session->pid && session->state[0] == TOLD && session->state[1] == TOLD && out_room() >= HEADER_SIZE + 8) {
        exit_frame(session->id, session->how | session->value >> 16 << 8, session->value & 0xffff);
        release(session);
    }
}

void sessions_work(void)
{
    static unsigned first; // wraps
    for (int i = 0; i < MAX_SESSIONS; i++) {
        struct session *session = &sessions[(first + i) % MAX_SESSIONS];
        if (!session->id)
            continue;
        feed(session);
        drain(session, 0);
        drain(session, 1);
        report(session);
    }
    first++;
}
