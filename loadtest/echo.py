#!/usr/bin/env -S python3 -B
"""WebSockets by the thousand, both ends of them: of RFC 6455 what short messages need.

  echo.py serve                    prints its port, then sends back each message until its stdin ends
  echo.py hold COUNT ADDRESS...    opens so many, in turn at HOST:PORT and tls:HOST:PORT, and prints "ready"; for each line
                                   on stdin it sends a message over each that is left, and prints what came of it as JSON
"""

import asyncio
import base64
import hashlib
import json
import os
import resource
import ssl
import sys

PATH, GUID = "/echo", "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
AT_ONCE, ANSWER_SECONDS = 100, 30
TEXT, FINAL, MASKED = 0x1, 0x80, 0x80


def frame(message, mask=None):
    """A text of less than 126 bytes; from a client with a mask."""
    if mask is None:
        return bytes([FINAL | TEXT, len(message)]) + message
    masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(message))
    return bytes([FINAL | TEXT, MASKED | len(message)]) + mask + masked


async def read(stream):
    """The next message; None at the end."""
    kind, length = await stream.readexactly(2)
    if kind != FINAL | TEXT:
        return None
    mask = await stream.readexactly(4) if length & MASKED else bytes(4)
    message = await stream.readexactly(length & ~MASKED)
    return bytes(byte ^ mask[at % 4] for at, byte in enumerate(message))


def accept(key):
    return base64.b64encode(hashlib.sha1((key + GUID).encode()).digest()).decode()


async def serve():
    async def answer(reader, writer):
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head.split("\r\n"))}
            writer.write(("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                          f"Sec-WebSocket-Accept: {accept(fields['sec-websocket-key'])}\r\n\r\n").encode())
            while (message := await read(reader)) is not None:
                writer.write(frame(message))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.buffer.read)


class Socket:
    """One WebSocket of a client's."""

    async def open(self, address):
        host, port = address.removeprefix("tls:").rsplit(":", 1)
        tls = ssl._create_unverified_context() if address.startswith("tls:") else None
        self.reader, self.writer = await asyncio.open_connection(host, int(port), ssl=tls)
        key = base64.b64encode(os.urandom(16)).decode()
        self.writer.write((f"GET {PATH} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                           f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n").encode())
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        if not head.startswith("HTTP/1.1 101 ") or accept(key) not in head:
            raise ConnectionError(head)
        self.came = asyncio.Queue()
        self.reading = asyncio.create_task(self.read())

    async def read(self):
        """Notices the end whenever it comes."""
        try:
            while (message := await read(self.reader)) is not None:
                self.came.put_nowait(message)
        except (OSError, asyncio.IncompleteReadError):
            pass

    async def echoes(self, message):
        """Whether it comes back, and nothing else before it."""
        if self.reading.done():
            return False
        self.writer.write(frame(message, os.urandom(4)))
        try:
            return await asyncio.wait_for(self.came.get(), ANSWER_SECONDS) == message
        except TimeoutError:
            return False


async def hold(count, addresses):
    sockets = [Socket() for _ in range(count)]
    for start in range(0, count, AT_ONCE):
        some = range(start, min(start + AT_ONCE, count))
        await asyncio.gather(*(sockets[at].open(addresses[at % len(addresses)]) for at in some))
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.buffer.readline):
        echoed = await asyncio.gather(*(socket.echoes(b"%s %d" % (line.strip(), at)) for at, socket in enumerate(sockets)))
        closed = sum(socket.reading.done() for socket in sockets)
        print(json.dumps({"open": count, "closed": closed, "echoed": sum(echoed)}), flush=True)


if __name__ == "__main__":
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    match sys.argv[1:]:
        case ["serve"]:
            asyncio.run(serve())
        case ["hold", count, *addresses] if addresses:
            asyncio.run(hold(int(count), addresses))
        case _:
            sys.exit(__doc__)
