// SPDX-License-Identifier: Apache-2.0
// The agent's loop: one thread, which moves bytes between the port and the pipes of up to 16 commands, and never
// waits for one of them. What a stream may have on its way is bounded by its window, so a stream whose reader
// sleeps holds up nothing else.
#include "command.h"
#include "place.h"
#include "protocol.h"

#define OUT_SIZE (256 * 1024)
#define RESERVE 4096 // of it, for everything but output
#define WRITE_SIZE 32768
#define LONGEST_PAUSE 100 // ms between looks for the port

enum { OPEN, ENDED, TOLD };

struct session {
    uint16_t id; // 0: the slot is free
    long pid;    // 0: reaped
    byte how;
    uint32_t value; // of EXIT
    int input;      // our end of the pipe; -1 when it is closed
    int input_ended;
    uint32_t head, held;   // the ring in `buffer`
    uint32_t taken;        // bytes of input that the host was not yet told of
    int output[2];         // stdout, stderr
    byte state[2];         // OPEN, ENDED: the host is to hear of it, TOLD
    uint32_t window[2];    // bytes that the host takes
    int rest[2];           // after the command's end, what is still in the pipe; else -1
    byte buffer[INPUT_WINDOW];
};

static struct session sessions[MAX_SESSIONS];
static struct failure *failures; // written by the commands' processes, before they have become the command
static byte in[HEADER_SIZE + MAX_PAYLOAD];
static uint32_t in_held;
static byte out[OUT_SIZE];
static uint32_t out_head, out_tail;
static char spec[MAX_SPEC + 1];
static uint32_t spec_held;
static uint16_t spec_session;
static int port = -1;
static int wakes = -1;   // an epoll that hears, by edges, when the host comes
static int children = -1; // a signalfd
static int host_there;
static int lost; // not at a frame's beginning: nothing counts before the next HELLO

// To the host

static uint32_t room(void)
{
    if (out_head == out_tail)
        out_head = out_tail = 0;
    if (out_head > OUT_SIZE / 2) {
        memmove(out, out + out_head, out_tail - out_head);
        out_tail -= out_head;
        out_head = 0;
    }
    return OUT_SIZE - out_tail;
}

static void header(byte type, byte stream, uint16_t session, uint32_t length)
{
    byte *at = out + out_tail;
    at[0] = type;
    at[1] = stream;
    at[2] = (byte)session;
    at[3] = (byte)(session >> 8);
    store32(at + 4, length);
    out_tail += HEADER_SIZE;
}

static void flush(void)
{
    while (out_head < out_tail) {
        uint32_t size = out_tail - out_head < WRITE_SIZE ? out_tail - out_head : WRITE_SIZE;
        long count = sys(SYS_write, port, out + out_head, size);
        if (count <= 0)
            return;
        out_head += (uint32_t)count;
    }
}

static void exit_frame(uint16_t id, uint32_t how, uint32_t value)
{
    if (room() < HEADER_SIZE + 8)
        return;
    header(EXIT, 0, id, 8);
    store32(out + out_tail, how);
    store32(out + out_tail + 4, value);
    out_tail += 8;
}

// Sessions

static struct session *find(uint16_t id)
{
    for (int i = 0; id && i < MAX_SESSIONS; i++)
        if (sessions[i].id == id)
            return &sessions[i];
    return 0;
}

static void close_fd(int *fd)
{
    if (*fd >= 0)
        sys(SYS_close, *fd);
    *fd = -1;
}

static void release(struct session *session)
{
    close_fd(&session->input);
    close_fd(&session->output[0]);
    close_fd(&session->output[1]);
    session->id = 0;
}

static void send_signal(struct session *session, long number)
{
    // It may not have made its group yet.
    if (session->pid && sys(SYS_kill, -session->pid, number) < 0)
        sys(SYS_kill, session->pid, number);
}

// Nobody waits for these commands any more.
static void reset(void)
{
    for (int i = 0; i < MAX_SESSIONS; i++)
        if (sessions[i].id) {
            send_signal(&sessions[i], SIGKILL);
            release(&sessions[i]);
        }
    in_held = out_head = out_tail = spec_held = 0;
    spec_session = 0;
}

static void failed(struct session *session, byte stage, long error)
{
    session->how = HOW_FAILED;
    session->value = (uint32_t)error | (uint32_t)stage << 16;
}

static void start(uint16_t id, const byte *payload)
{
    struct session *session = 0;
    for (int i = 0; i < MAX_SESSIONS && !session; i++)
        if (!sessions[i].id && !sessions[i].pid)
            session = &sessions[i];
    if (find(id))
        return; // the host knows what it calls them
    if (!session) {
        exit_frame(id, HOW_FAILED | STAGE_RESOURCES << 8, EAGAIN);
        return;
    }
    struct command command = {
        .kind = payload[0],
        .new_root = payload[1] & FLAG_NEW_ROOT,
        .mode = load32(payload + 4),
        .spec = spec,
        .size = spec_session == id ? spec_held : 0,
        .failure = &failures[session - sessions],
    };
    spec_held = 0;
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

static void reap(void)
{
    byte ignored[sizeof(struct signalfd_siginfo)];
    while (sys(SYS_read, children, ignored, sizeof ignored) > 0)
        ;
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

// From the host

static void hello(const byte *payload, uint32_t length)
{
    if (length < MAGIC_SIZE + NONCE_SIZE)
        return;
    byte nonce[NONCE_SIZE];
    memcpy(nonce, payload + MAGIC_SIZE, NONCE_SIZE);
    uint32_t held = in_held;
    reset();
    in_held = held; // it is being worked on
    header(READY, 0, 0, MAGIC_SIZE + NONCE_SIZE + 16);
    byte *at = out + out_tail;
    memcpy(at, MAGIC, MAGIC_SIZE);
    memcpy(at + MAGIC_SIZE, nonce, NONCE_SIZE);
    store32(at + 24, PROTOCOL_VERSION);
    store32(at + 28, MAX_SESSIONS);
    store32(at + 32, INPUT_WINDOW);
    store32(at + 36, MAX_SPEC);
    out_tail += 40;
}

static void keep_input(struct session *session, const byte *data, uint32_t length)
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

static void credit(struct session *session, byte stream, uint32_t more)
{
    if (stream == 1 || stream == 2)
        session->window[stream - 1] += more;
}

static void take_frame(byte type, byte stream, uint16_t id, const byte *payload, uint32_t length)
{
    struct session *session = find(id);
    if (type == HELLO)
        hello(payload, length);
    else if (type == POWEROFF)
        place_power_off();
    else if (type == SPEC && length <= MAX_SPEC - (spec_session == id ? spec_held : 0)) {
        spec_held = spec_session == id ? spec_held : 0;
        spec_session = id;
        memcpy(spec + spec_held, payload, length);
        spec_held += length;
    } else if (type == START && length == START_SIZE && id)
        start(id, payload);
    else if (type == INPUT && session)
        keep_input(session, payload, length);
    else if (type == CREDIT && session && length == 4)
        credit(session, stream, load32(payload));
    else if (type == SIGNAL && session && length == 4)
        send_signal(session, load32(payload));
}

static int is_hello(const byte *at)
{
    return at[0] == HELLO && load32(at + 4) <= MAX_PAYLOAD && !memcmp(at + HEADER_SIZE, MAGIC, MAGIC_SIZE);
}

// How many bytes the frame (or the filler) at `at` has; 0: not all of it is there.
static uint32_t take(const byte *at, uint32_t held)
{
    if (!at[0] || (lost && held >= HEADER_SIZE + MAGIC_SIZE && !is_hello(at)))
        return 1;
    if (held < HEADER_SIZE + (lost ? MAGIC_SIZE : 0))
        return 0;
    uint32_t length = load32(at + 4);
    if (at[0] > POWEROFF || length > MAX_PAYLOAD) {
        lost = 1;
        return 1;
    }
    if (held < HEADER_SIZE + length)
        return 0;
    lost = 0;
    take_frame(at[0], at[1], (uint16_t)(at[2] | at[3] << 8), at + HEADER_SIZE, length);
    return HEADER_SIZE + length;
}

static void take_frames(void)
{
    uint32_t at = 0, size;
    while (at < in_held && (size = take(in + at, in_held - at)))
        at += size;
    in_held -= at;
    memmove(in, in + at, in_held);
}

static void read_port(void)
{
    long count = sys(SYS_read, port, in + in_held, sizeof in - in_held);
    if (count == -EAGAIN || count == -EINTR) {
        host_there = 1;
    } else if (count > 0) {
        host_there = 1;
        in_held += (uint32_t)count;
        take_frames();
    } else { // 0: the host is gone, and may come back; an error: so is the port
        reset();
        lost = host_there = 0;
        if (count < 0) {
            close_fd(&port);
            close_fd(&wakes);
        }
    }
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

// How much of this output may be read now.
static uint32_t wanted(const struct session *session, int i)
{
    if (session->state[i] != OPEN || room() < RESERVE + HEADER_SIZE)
        return 0;
    uint32_t most = room() - RESERVE - HEADER_SIZE;
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
    uint32_t most = wanted(session, i);
    if (most) {
        long count = sys(SYS_read, session->output[i], out + out_tail + HEADER_SIZE, most);
        if (count == -EAGAIN && session->rest[i] < 0)
            return;
        if (count > 0) {
            header(OUTPUT, (byte)(i + 1), session->id, (uint32_t)count);
            out_tail += (uint32_t)count;
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
        if (session->state[i] == ENDED && room() >= HEADER_SIZE) {
            header(OUTPUT, (byte)(i + 1), session->id, 0);
            session->state[i] = TOLD;
            close_fd(&session->output[i]);
        }
    if (session->taken && room() >= HEADER_SIZE + 4) {
        header(TAKEN, 0, session->id, 4);
        store32(out + out_tail, session->taken);
        out_tail += 4;
        session->taken = 0;
    }
    if (!session->pid && session->state[0] == TOLD && session->state[1] == TOLD && room() >= HEADER_SIZE + 8) {
        exit_frame(session->id, session->how | session->value >> 16 << 8, session->value & 0xffff);
        release(session);
    }
}

static void work(void)
{
    static int first;
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
    flush();
}

// Waiting

static void open_port(void)
{
    static long delay = 1;
    port = place_port();
    if (port < 0) {
        pause_ms(delay);
        delay = delay * 2 < LONGEST_PAUSE ? delay * 2 : LONGEST_PAUSE;
        return;
    }
    delay = 1;
    wakes = (int)sys(SYS_epoll_create1, EPOLL_CLOEXEC);
    // Without a host, poll would return at once for ever. Edges tell when one comes.
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};
    sys(SYS_epoll_ctl, wakes, EPOLL_CTL_ADD, port, &event);
    read_port();
}

static void want(struct pollfd *polls, int *count, int fd, short events)
{
    if (fd >= 0)
        polls[(*count)++] = (struct pollfd){.fd = fd, .events = events};
}

static void wait_for_events(void)
{
    struct pollfd polls[2 + 3 * MAX_SESSIONS];
    int count = 0;
    want(polls, &count, children, POLLIN);
    if (host_there)
        want(polls, &count, port, (short)(POLLIN | (out_head < out_tail ? POLLOUT : 0)));
    else
        want(polls, &count, wakes, POLLIN);
    for (int i = 0; i < MAX_SESSIONS; i++) {
        struct session *session = &sessions[i];
        if (!session->id)
            continue;
        if (session->held)
            want(polls, &count, session->input, POLLOUT);
        for (int j = 0; j < 2; j++)
            if (wanted(session, j))
                want(polls, &count, session->output[j], POLLIN);
    }
    sys(SYS_ppoll, polls, count, 0, 0, 0);
    if (polls[0].revents)
        reap();
    if (polls[1].revents) {
        struct epoll_event event;
        if (!host_there)
            sys(SYS_epoll_pwait, wakes, &event, 1, 0, 0, 0);
        read_port();
    }
}

_Noreturn void serve(void)
{
    while ((wakes = (int)sys(SYS_epoll_create1, 0)) >= 0 && wakes < 3)
        ; // descriptors that a command's may be copied to without a clash
    close_fd(&wakes);
    failures = (void *)sys(SYS_mmap, 0, sizeof *failures * MAX_SESSIONS, PROT_READ | PROT_WRITE,
                           MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    uint64_t blocked = 1UL << (SIGCHLD - 1) | 1UL << (SIGPIPE - 1);
    sys(SYS_rt_sigprocmask, SIG_BLOCK, &blocked, 0, sizeof blocked);
    uint64_t child = 1UL << (SIGCHLD - 1);
    children = (int)sys(SYS_signalfd4, -1, &child, sizeof child, SFD_CLOEXEC | SFD_NONBLOCK);
    sys(SYS_setsid);
    place_begin();
    for (;;) {
        if (port < 0) {
            reap();
            open_port();
            continue;
        }
        work();
        if (port >= 0)
            wait_for_events();
    }
}
