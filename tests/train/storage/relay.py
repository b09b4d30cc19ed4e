"""A wire between a client and a real server, which a test may cut, stall or slow down."""

import contextlib
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

CHUNK_BYTES = 16_384
BUFFER_BYTES = 65_536
KEPT_BYTES = 1 << 16
SLOW_DOWN = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\n\r\n"
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
NOT_IMPLEMENTED = (
    b"HTTP/1.1 501 Not Implemented\r\nContent-Type: application/xml\r\nConnection: close\r\n\r\n"
    b"<Error><Code>NotImplemented</Code><Message>A header you provided.</Message></Error>"
)


@dataclass(frozen=True)
class Fault:
    """What happens to one connection; nothing by default."""

    cut_after_bytes: int | None = None
    """Of the answer, then the connection is reset."""
    stall_after_bytes: int | None = None
    """Of the answer, then nothing comes any more, and the connection stays open."""
    bytes_per_second: float | None = None
    """Of the answer."""
    taken_per_second: float | None = None
    """Of the request."""
    held: threading.Event | None = None
    """Of the answer nothing comes before it is set."""
    answer: bytes | None = None
    """Said instead of what the server would say."""
    is_head_alone: bool = False
    """Of the request its head goes on, and the server hears that nothing more comes."""
    before_passing: Callable[[bytes], object] | None = None
    """Called with each piece of a request before it goes on; holds it back while it waits."""


@dataclass
class Relay:
    """Connections so far, and what went through them."""

    target: tuple[str, int]
    plan: Callable[[int], Fault]
    """Called with the number of each new connection, from 0."""
    requests: list[bytes] = field(default_factory=list)
    """The first bytes of each connection's request."""
    answered_bytes: int = 0
    taken_bytes: int = 0
    url: str = ""

    def serve(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                fault = self.plan(len(self.requests))
                self.requests.append(b"")
                number = len(self.requests) - 1
                threading.Thread(
                    target=self._connect, args=(connection, number, fault), daemon=True
                ).start()

    def _connect(self, client: socket.socket, number: int, fault: Fault) -> None:
        with client, socket.create_connection(self.target) as server:
            threading.Thread(
                target=self._forward, args=(client, server, number, fault), daemon=True
            ).start()
            with contextlib.suppress(OSError):
                if fault.answer is not None:
                    while b"\r\n\r\n" not in self.requests[number]:
                        time.sleep(0.001)
                    client.sendall(fault.answer)
                else:
                    self._answer(client, server, fault)
            # Closing alone does nothing while the other thread reads.
            for end in (client, server):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def _answer(self, client: socket.socket, server: socket.socket, fault: Fault) -> None:
        sent = 0
        limits = [each for each in (fault.cut_after_bytes, fault.stall_after_bytes)
                  if each is not None]  # fmt: skip
        while data := server.recv(CHUNK_BYTES):
            if fault.held is not None:
                fault.held.wait(120)
            if limits:
                data = data[: limits[0] - sent]
            if fault.bytes_per_second is not None:
                time.sleep(len(data) / fault.bytes_per_second)
            client.sendall(data)
            sent += len(data)
            self.answered_bytes += len(data)
            if fault.cut_after_bytes is not None and sent >= fault.cut_after_bytes:
                return
            if fault.stall_after_bytes is not None and sent >= fault.stall_after_bytes:
                # Until the client has had enough.
                while client.recv(1):
                    pass
                return

    def _forward(
        self, client: socket.socket, server: socket.socket, number: int, fault: Fault
    ) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(CHUNK_BYTES):
                self.taken_bytes += len(data)
                if len(self.requests[number]) < KEPT_BYTES:
                    self.requests[number] += data
                if fault.is_head_alone and b"\r\n\r\n" in data:
                    server.sendall(data.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
                    server.shutdown(socket.SHUT_WR)
                    return
                if fault.taken_per_second is not None:
                    time.sleep(len(data) / fault.taken_per_second)
                if fault.before_passing is not None:
                    fault.before_passing(data)
                server.sendall(data)


@contextlib.contextmanager
def relay(endpoint: str, plan: Callable[[int], Fault]) -> Generator[Relay]:
    """Listen, and connect to the endpoint for each connection that comes."""
    parts = urllib.parse.urlsplit(endpoint)
    assert parts.hostname is not None
    assert parts.port is not None
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        # What lies in buffers is sent, as far as a client knows, and still has to go through.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        wire = Relay((parts.hostname, parts.port), plan)
        wire.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        threading.Thread(target=wire.serve, args=(listener,), daemon=True).start()
        try:
            yield wire
        finally:
            listener.shutdown(socket.SHUT_RDWR)
