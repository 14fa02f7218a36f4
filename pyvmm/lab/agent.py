# SPDX-License-Identifier: Apache-2.0
"""The agent inside the lab host: kills what a vanished client left, and powers an unused host off.

It runs in the lab (Python 3.13, standard library only), is started by init, and is told the process id of
every session through a FIFO. A session's standard output is the end of a pipe, socket or terminal whose other
end sshd closes when the client is gone; so a hang-up there, and not an end of file on standard input (which a
client may close at any time), means that nobody is listening any more.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import time

WATCH = "/run/lab/watch"
GROUPS = "/sys/fs/cgroup"
GRACE = 1.0  # seconds between asking the session's leader to stop and killing all of it
TICK = 5.0  # seconds between looks at idleness and left-over groups
READY = "pyvmm-lab: ready\n"
SSH_PORT = ":0016"
ESTABLISHED, LISTEN = "01", "0A"
_SYS_PIDFD_GETFD = 438


class Session:
    """One watched command: a pidfd of its leader, our duplicate of its standard output, its control group."""

    __slots__ = ("deadline", "group", "leader", "output")

    def __init__(self, pid: int) -> None:
        self.group = f"{GROUPS}/session.{pid}"
        self.leader = os.pidfd_open(pid)
        self.output = _duplicate(self.leader, 1)
        self.deadline = 0.0  # when to kill, once the client is gone

    def hang_up(self, now: float) -> None:
        """The client is gone: let the leader clean up, and set the time by which all must be over."""
        signal.pidfd_send_signal(self.leader, signal.SIGHUP)
        self.deadline = now + GRACE

    def kill(self) -> None:
        """Kill every process of the session, also those that left its process group or made a new session."""
        _write(f"{self.group}/cgroup.kill", "1")

    def close(self) -> None:
        os.close(self.leader)
        os.close(self.output)


class Agent:
    """The event loop over all sessions."""

    def __init__(self, idle_limit: float) -> None:
        self._poll = select.epoll()
        self._watch = os.open(WATCH, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._poll.register(self._watch, select.EPOLLIN)
        self._sessions: dict[int, Session] = {}  # by each of its two descriptors
        self._idle_limit = idle_limit
        self._used = time.monotonic()

    def run(self) -> None:
        """Serve until power-off."""
        while True:
            for fd, events in self._poll.poll(self._timeout()):
                if fd == self._watch:
                    self._admit()
                elif fd in self._sessions:
                    self._on_event(self._sessions[fd], fd, events)
            self._tick(time.monotonic())

    def _timeout(self) -> float:
        deadlines = [s.deadline for s in self._sessions.values() if s.deadline]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else TICK

    def _admit(self) -> None:
        for word in os.read(self._watch, 65536).split():
            try:
                session = Session(int(word))
            except OSError:
                continue  # over already
            self._sessions[session.leader] = self._sessions[session.output] = session
            self._poll.register(session.leader, select.EPOLLIN)
            try:
                self._poll.register(session.output, 0)  # hang-up and error are always reported
            except PermissionError:
                pass  # standard output is a file: nothing to watch there

    def _on_event(self, session: Session, fd: int, events: int) -> None:
        if fd == session.leader:
            self._forget(session)
        elif events & (select.EPOLLHUP | select.EPOLLERR):
            self._poll.unregister(session.output)
            session.hang_up(time.monotonic())

    def _forget(self, session: Session) -> None:
        if session.deadline:
            session.kill()
        del self._sessions[session.leader], self._sessions[session.output]
        session.close()
        _remove_group(session.group)

    def _tick(self, now: float) -> None:
        for session in {s for s in self._sessions.values() if s.deadline and s.deadline <= now}:
            session.kill()
            session.deadline = now + TICK
        if connections(ESTABLISHED):
            self._used = now
        elif now - self._used > self._idle_limit:
            os.sync()
            os.system("poweroff -f")
        for name in os.listdir(GROUPS):
            if name.startswith("session.") and not os.path.exists(f"/proc/{name[8:]}"):
                _remove_group(f"{GROUPS}/{name}")


def connections(state: str) -> int:
    """How many sockets of our ssh port are in ``state`` (numbers as in /proc/net/tcp)."""
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table]
    return sum(1 for row in rows if row[1].endswith(SSH_PORT) and row[3] == state)


def _duplicate(pidfd: int, fd: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result = int(libc.syscall(_SYS_PIDFD_GETFD, pidfd, fd, 0))
    if result < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    return result


def _remove_group(path: str) -> None:
    try:
        os.rmdir(path)
    except OSError:
        pass  # processes that outlive their leader keep it; a later tick tries again


def _write(path: str, text: str) -> None:
    try:
        with open(path, "w") as file:
            file.write(text)
    except OSError:
        pass  # the group is gone, and everything in it


def _idle_limit() -> float:
    with open("/proc/cmdline") as file:
        words = dict(word.partition("=")[::2] for word in file.read().split())
    return float(words.get("lab.idle", "60"))


def _announce() -> None:
    """Say on the console, where whoever started the host waits for it, that ssh is being served."""
    while not connections(LISTEN):
        time.sleep(0.05)
    with open("/dev/console", "w") as console:
        console.write(READY)


if __name__ == "__main__":
    agent = Agent(_idle_limit())
    _announce()
    agent.run()
