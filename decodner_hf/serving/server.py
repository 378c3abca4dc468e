"""Runs the service on a port until it is told to stop.

In: an application and a listening socket. Out: nothing; it returns once the requests under way are answered.
Knows nothing of what the application does.
"""

import errno
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

try:
    import uvicorn
except ImportError as error:
    raise ImportError('serving needs uvicorn: pip install "decodner-hf[serve]".') from error

BACKLOG = 1024  # connections that the system keeps while the service is busy, or while the model is loaded


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens already: what connects from now on is answered once the service runs.

    Args:
        host: a name or an address of this machine; "0.0.0.0" for all.
        port: 0 for a free one.

    Raises:
        OSError: a port in use, or a host that is none of this machine's; the message says what to do.
    """
    place = f"port {port} of {host}"
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        # Where the protocol is not named, asyncio leaves TCP_NODELAY off, and every answer takes 40 ms longer.
        listener = socket.socket(family, kind, socket.IPPROTO_TCP)
        try:
            if os.name == "posix":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart need not wait
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
        return listener
    except (socket.gaierror, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "this is no name of a host"
        raise OSError(f"there is no host {host!r}: {reason}.") from error
    except PermissionError as error:
        raise OSError(f"{place} needs more rights than this process has: choose a port from 1024 on.") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise OSError(f"{place} is in use: end the program that uses it, or choose another port.") from error
        raise OSError(f"cannot listen on {place}: {error.strerror}.") from error


class _Server(uvicorn.Server):
    """A server that says when it answers."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self.ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready()


def run_until_stopped(
    app: Any, listener: socket.socket, shutdown_seconds: int, ready: Callable[[], None] = lambda: None
) -> None:
    """Serves until SIGINT (Ctrl-C) or SIGTERM, and answers what is under way; a second SIGINT ends it at once.

    Args:
        app: an ASGI application.
        listener: from `listen`.
        shutdown_seconds: longest time for what is under way.
        ready: is called once requests are answered, and signals too.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=shutdown_seconds,
    )
    with _uvicorn_alone_handles_signals():
        _Server(config, ready).run(sockets=[listener])


@contextmanager
def _uvicorn_alone_handles_signals() -> Iterator[None]:
    """Ignores the signals that uvicorn raises again once it has shut down: they have had their effect."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ignore(_: int, __: FrameType | None) -> None:
        return

    before = {number: signal.signal(number, ignore) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
