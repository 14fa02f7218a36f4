// SPDX-License-Identifier: Apache-2.0
// The agent's loop: one thread, which moves bytes between the port and the pipes of up to 16 commands, and never
// waits for one of them. What a stream may have on its way is bounded by its window, so a stream whose reader
// sleeps holds up nothing else.
#include "guest.h"
#include "out.h"
#include "place.h"
#include "session.h"

#define LONGEST_PAUSE 100 // ms between looks for the port

static byte in[HEADER_SIZE + MAX_PAYLOAD];
static uint32_t in_held;
static char spec[MAX_SPEC + 1];
static uint32_t spec_held;
static uint16_t spec_session;
static int spec_too_long;
static int port = -1;
static int wakes = -1;    // an epoll that hears, by edges, when the host comes; -1 when the kernel has none
static int children = -1; // a signalfd; -1 when the kernel has none
static int host_there;
static int host_known; // the kernel, too, knows that it is there: what it sends may come earlier
static int stalled; // a frame waits until the host has read more of what is on its way to it
static int lost; // not at a frame's beginning: nothing counts before the next HELLO

static void reset(void)
{
    sessions_drop();
    out_drop();
    in_held = spec_held = 0;
    spec_session = 0;
    spec_too_long = stalled = 0;
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
    byte *at = out_payload();
    memcpy(at, MAGIC, MAGIC_SIZE);
    memcpy(at + MAGIC_SIZE, nonce, NONCE_SIZE);
    store32(at + 24, PROTOCOL_VERSION);
    store32(at + 28, MAX_SESSIONS);
    store32(at + 32, INPUT_WINDOW);
    store32(at + 36, MAX_SPEC);
    out_frame(READY, 0, 0, 40);
}

static void credit(struct session *session, byte stream, uint32_t more)
{
    if (stream == 1 || stream == 2)
        session->window[stream - 1] += more;
}

static void add_spec(uint16_t id, const byte *payload, uint32_t length)
{
    if (spec_session != id) {
        spec_session = id;
        spec_held = 0;
        spec_too_long = 0;
    }
    if (length <= MAX_SPEC - spec_held) {
        memcpy(spec + spec_held, payload, length);
        spec_held += length;
    } else {
        spec_too_long = 1;
    }
}

static void start(uint16_t id, const byte *payload)
{
    if (session_find(id))
        ; // the host knows what it calls them
    else if (spec_session == id && spec_too_long)
        session_refuse(id, E2BIG);
    else
        session_start(id, payload, spec, spec_session == id ? spec_held : 0);
    spec_held = 0;
    spec_too_long = 0;
}

static void take_frame(byte type, byte stream, uint16_t id, const byte *payload, uint32_t length)
{
    struct session *session = session_find(id);
    if (type == HELLO)
        hello(payload, length);
    else if (type == POWEROFF)
        place_power_off();
    else if (type == SPEC)
        add_spec(id, payload, length);
    else if (type == START && length == START_SIZE && id)
        start(id, payload);
    else if (type == INPUT && session)
        session_input(session, payload, length);
    else if (type == CREDIT && session && length == 4)
        credit(session, stream, load32(payload));
    else if (type == SIGNAL && session && length == 4)
        session_signal(session, load32(payload));
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
    stalled = at[0] == START && out_room() < REFUSAL_SIZE;
    if (stalled)
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
        host_there = host_known = 1;
    } else if (count > 0) {
        host_there = 1;
        in_held += (uint32_t)count;
        take_frames();
    } else { // 0: the host is gone, or not known yet; an error: so is the port
        if (count < 0 || host_known) {
            reset();
            lost = 0;
        }
        host_there = host_known = 0;
        if (count < 0) {
            close_fd(&port);
            close_fd(&wakes);
        }
    }
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
    // Without a host, poll would return at once for ever. Edges tell when one comes: its data may have come before.
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET};
    if (sys(SYS_epoll_ctl, wakes, EPOLL_CTL_ADD, port, &event) < 0)
        close_fd(&wakes);
    read_port();
}

static void reap(void)
{
    byte ignored[sizeof(struct signalfd_siginfo)];
    while (sys(SYS_read, children, ignored, sizeof ignored) > 0)
        ;
    sessions_reap();
}

// poll ignores what is no descriptor.
static void want(struct pollfd *polls, int *count, int fd, int events)
{
    polls[(*count)++] = (struct pollfd){.fd = fd, .events = (short)events};
}

static void wait_for_events(void)
{
    struct pollfd polls[2 + 3 * MAX_SESSIONS];
    int count = 0;
    want(polls, &count, children, POLLIN);
    if (host_there)
        want(polls, &count, port, (stalled ? 0 : POLLIN) | (out_waiting() ? POLLOUT : 0));
    else
        want(polls, &count, wakes, POLLIN);
    for (int i = 0; i < MAX_SESSIONS; i++) {
        struct session *session = &sessions[i];
        if (!session->id)
            continue;
        if (session->held)
            want(polls, &count, session->input, POLLOUT);
        for (int j = 0; j < 2; j++)
            if (session_wants(session, j))
                want(polls, &count, session->output[j], POLLIN);
    }
    // What cannot be waited for is looked at now and then.
    int unheard_child = children < 0, unheard_host = !host_there && wakes < 0;
    struct timespec look = {0, LONGEST_PAUSE * 1000000};
    sys(SYS_ppoll, polls, count, unheard_child || unheard_host ? &look : 0, 0, 0);
    if (polls[0].revents || unheard_child)
        reap();
    if (host_there && polls[1].revents && !(polls[1].revents & POLLHUP))
        host_known = 1;
    if (polls[1].revents & ~POLLOUT || unheard_host) {
        struct epoll_event event;
        if (!host_there)
            sys(SYS_epoll_pwait, wakes, &event, 1, 0, 0, 0);
        read_port();
    }
}

_Noreturn void serve(void)
{
    int low;
    while ((low = (int)sys(SYS_openat, AT_FDCWD, "/", O_PATH)) >= 0 && low < 3)
        ; // descriptors that a command's may be copied to without a clash
    close_fd(&low);
    sessions_begin();
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
        sessions_work();
        out_flush(port);
        if (stalled)
            take_frames();
        if (port >= 0)
            wait_for_events();
    }
}
