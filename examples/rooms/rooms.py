#!/usr/bin/env python3
"""A chat server with rooms in memory, each at one server at a time, fenced by epoch. Python's standard library alone.

    protoplex up
    protoplex handler add rooms --path '/room/{room}/{*rest}' --key 'room:{room}' --pool rooms
    protoplex enrol rooms-1 --token "$(protoplex join-token create --kind backend --pool rooms)"
    ./rooms.py --listen 127.0.0.1:3000 --name a &
    ./rooms.py --listen 127.0.0.1:3001 --name b &
    curl -d hello http://localhost:8080/room/42/messages     # say something
    curl http://localhost:8080/room/42/messages              # what was said
    curl -N http://localhost:8080/room/42/stream             # and what will be, as server-sent events

Rooms live in memory, so a request touches the store only to write. Two things keep a room from having two histories:

1. `protoplex.Member` says whether this server owns the room at the epoch that the request names, and whether its lease runs.
   That is a check *before* the work: a process may be stopped right behind it, for longer than any lease.
2. `Store` takes a write only from the newest epoch that has claimed the room. That is a check *with* the write. What a
   stopped server still had on its way when it goes on is refused there (a fencing token, after Kleppmann's "How to do
   distributed locking").
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sqlite3
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Optional

import protoplex

MAX_MESSAGE_BYTES = 64 << 10
# What is kept of a room in memory, and shown; the store has all.
MAX_HISTORY = 1000
# An empty comment shows a stream's client, and this server, that the other is still there.
STREAM_PAUSE_S = 10.0
# After the last room is given up, proxies that don't know yet are still told so.
LINGER_S = 1.0


class Fenced(Exception):
    """A later epoch has claimed the room: this server owns it no more, whatever it believes."""


class Store:
    """Rooms on disk, with the newest epoch that has claimed each. A SQLite file that servers of one machine share.

    On many machines this is your database: what matters is that it compares the epoch in the transaction that writes.
    """

    def __init__(self, path: str) -> None:
        self._one_at_a_time = threading.Lock()
        self._database = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
        with self._one_at_a_time, self._database:
            self._database.execute("CREATE TABLE IF NOT EXISTS rooms (key TEXT PRIMARY KEY, epoch INTEGER NOT NULL)")
            self._database.execute("CREATE TABLE IF NOT EXISTS messages (key TEXT, sequence INTEGER, text TEXT NOT NULL,"
                                   " PRIMARY KEY (key, sequence)) WITHOUT ROWID")

    def claim(self, key: str, epoch: int) -> tuple[int, list[tuple[int, str]]]:
        """From now on only this epoch, and later ones, write. The epoch before (0: none), and what was said last."""
        with self._one_at_a_time, self._database:
            self._database.execute("BEGIN IMMEDIATE")
            before = self._epoch(key)
            if before > epoch:
                raise Fenced(f"{key} is at epoch {before}, this server at {epoch}")
            self._database.execute("INSERT INTO rooms VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET epoch = excluded.epoch",
                                   (key, epoch))
            last = self._database.execute("SELECT sequence, text FROM messages WHERE key = ? ORDER BY sequence DESC LIMIT ?",
                                          (key, MAX_HISTORY)).fetchall()
            return before, last[::-1]

    def append(self, key: str, epoch: int, sequence: int, text: str) -> None:
        """Writes one message, or raises `Fenced`, and then nothing is written."""
        with self._one_at_a_time, self._database:
            self._database.execute("BEGIN IMMEDIATE")
            newest = self._epoch(key)
            if newest != epoch:
                raise Fenced(f"{key} is at epoch {newest}, this server at {epoch}")
            self._database.execute("INSERT INTO messages VALUES (?, ?, ?)", (key, sequence, text))

    def _epoch(self, key: str) -> int:
        row = self._database.execute("SELECT epoch FROM rooms WHERE key = ?", (key,)).fetchone()
        return row[0] if row else 0


class Room:
    """A room that this server owns."""

    def __init__(self) -> None:
        # Guards what follows; told of each message, and of the end.
        self.changed = threading.Condition()
        self.epoch = 0
        self.messages: list[tuple[int, str]] = []
        self.watchers = 0
        self.closed = False


class Rooms:
    """All of them: what `protoplex.Member` tells of keys is done here."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._rooms: dict[str, Room] = {}

    def at(self, key: str, epoch: int) -> Room:
        """The room, with all that was said before this epoch. Raises `Fenced`."""
        while True:
            with self._lock:
                room = self._rooms.setdefault(key, Room())
            with room.changed:
                if room.closed:
                    # Lost at an earlier epoch, this very moment: it is not found here again.
                    continue
                if room.epoch != epoch:
                    before, messages = self._store.claim(key, epoch)
                    # Nobody has had it in between where the last claim is this room's own.
                    if before != room.epoch or not before:
                        room.messages = messages
                    room.epoch = epoch
                return room

    def say(self, key: str, room: Room, epoch: int, text: str) -> int:
        """Adds a message, and returns its number. Raises `Fenced`."""
        with room.changed:
            sequence = room.messages[-1][0] + 1 if room.messages else 1
            # First: what nobody can lose is what others see.
            self._store.append(key, epoch, sequence, text)
            room.messages = [*room.messages[-MAX_HISTORY + 1:], (sequence, text)]
            room.changed.notify_all()
            return sequence

    def in_use(self, key: str) -> bool:
        with self._lock:
            room = self._rooms.get(key)
        return room is not None and room.watchers > 0

    def lost(self, key: str, epoch: int) -> None:
        with self._lock:
            room = self._rooms.get(key)
        if room is None:
            return
        with room.changed:
            if room.epoch > epoch:
                # It is this server's again already.
                return
            with self._lock:
                self._rooms.pop(key, None)
            room.closed = True
            room.changed.notify_all()


class Handler(BaseHTTPRequestHandler):
    """Requests for rooms. What the proxy says of them stands in `Protoplex-Key` and `Protoplex-Epoch`."""

    protocol_version = "HTTP/1.1"
    # Head and body are written one after the other.
    disable_nagle_algorithm = True
    server: Server

    def do_GET(self) -> None:
        self._serve(None)

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            self.close_connection = True
            return self._answer(411, {"error": "a message comes with its Content-Length"})
        if int(length) > MAX_MESSAGE_BYTES:
            self.close_connection = True
            return self._answer(413, {"error": f"a message has at most {MAX_MESSAGE_BYTES} bytes"})
        self._serve(int(length))

    def _serve(self, length: Optional[int]) -> None:
        # UTF-8, which http.server takes for Latin-1.
        key = self.headers.get("Protoplex-Key", "").encode("latin-1").decode(errors="replace")
        epoch = self.headers.get("Protoplex-Epoch", "")
        if not key or not epoch.isdecimal():
            self.close_connection = True
            return self._answer(400, {"error": "this server is reached through Protoplex"})
        what = self.path.split("?")[0].rpartition("/")[2]
        if (what, self.command) == ("stream", "GET"):
            return self._stream(key, int(epoch))
        with self.server.member.serving(key, int(epoch)) as owned:
            # In any case, since another request may follow on this connection.
            text = self.rfile.read(length).decode(errors="replace") if length else ""
            if not owned:
                return self._misdirected("not owned")
            try:
                room = self.server.rooms.at(key, int(epoch))
                if what != "messages":
                    self._answer(404, {"error": "a room has messages, and a stream"})
                elif self.command == "POST":
                    self._answer(201, {"sequence": self.server.rooms.say(key, room, int(epoch), text)}, epoch)
                else:
                    messages = [{"sequence": number, "text": text} for number, text in room.messages]
                    self._answer(200, {"room": key, "messages": messages}, epoch)
            except Fenced as why:
                logging.warning("%s", why)
                self._misdirected("fenced")

    def _stream(self, key: str, epoch: int) -> None:
        last = self.headers.get("Last-Event-ID", "0")
        seen = int(last) if last.isdecimal() else 0
        with self.server.member.serving(key, epoch) as owned:
            if not owned:
                return self._misdirected("not owned")
            try:
                room = self.server.rooms.at(key, epoch)
            except Fenced:
                return self._misdirected("fenced")
        # Not within `serving`: a stream would keep the room for ever. It ends when the room is lost.
        self.close_connection = True
        self._head(200, str(epoch), [("Content-Type", "text/event-stream"), ("Cache-Control", "no-store"),
                                     ("Connection", "close")])
        with room.changed:
            room.watchers += 1
        try:
            while True:
                with room.changed:
                    room.changed.wait_for(lambda: room.closed or any(number > seen for number, _ in room.messages),
                                          STREAM_PAUSE_S)
                    new = [it for it in room.messages if it[0] > seen]
                    closed = room.closed
                events = "".join(f"id: {number}\ndata: {json.dumps(text)}\n\n" for number, text in new)
                self.wfile.write((events or ":\n\n").encode())
                seen = new[-1][0] if new else seen
                if closed:
                    return
        except OSError:
            # The client has gone.
            pass
        finally:
            with room.changed:
                room.watchers -= 1

    def _misdirected(self, why: str) -> None:
        """The proxy asks who owns the room now, and sends the same request there."""
        self._answer(421, {"error": why}, more=[("Protoplex-Misdirected", why.replace(" ", "-"))])

    def _answer(self, status: int, answer: dict[str, object], epoch: str = "",
                more: Optional[list[tuple[str, str]]] = None) -> None:
        body = json.dumps(answer).encode() + b"\n"
        self._head(status, epoch, [("Content-Type", "application/json"), ("Content-Length", str(len(body))), *(more or [])])
        self.wfile.write(body)

    def _head(self, status: int, epoch: str, fields: list[tuple[str, str]]) -> None:
        self.send_response(status)
        for name, value in [*fields, ("Room-Server", self.server.name), ("Room-Epoch", epoch)]:
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        logging.debug(format, *args)


class Server(ThreadingHTTPServer):
    """One server of the pool."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], name: str, rooms: Rooms) -> None:
        super().__init__(address, Handler)
        self.name, self.rooms = name, rooms
        self.member: protoplex.Member


def main() -> int:
    parser = argparse.ArgumentParser(description="A chat server with rooms, each at one server at a time.")
    parser.add_argument("--listen", default="127.0.0.1:3000", metavar="HOST:PORT", help="default: %(default)s")
    parser.add_argument("--name", default="rooms", help="told in the field Room-Server of each answer")
    parser.add_argument("--seed", action="append", metavar="HOST:PORT", help="again for each seed; default: 127.0.0.1:8050")
    parser.add_argument("--credentials", default="rooms-1", metavar="DIR",
                        help="with ca.pem, cert.pem and key.pem, as `protoplex enrol` makes it; default: %(default)s")
    parser.add_argument("--renew-after", type=float, default=8 * 3600, metavar="SECONDS",
                        help="how old the certificate may become; default: %(default)s")
    parser.add_argument("--pool", default="rooms", help="default: %(default)s")
    parser.add_argument("--store", default="rooms.sqlite", metavar="FILE", help="default: %(default)s")
    parser.add_argument("--drain", type=float, default=3.0, metavar="SECONDS", help="default: %(default)s")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s {options.name} %(name)s: %(message)s")

    host, _, port = options.listen.rpartition(":")
    if not (port.isdecimal() and int(port) < 1 << 16):
        sys.exit(f"rooms.py: --listen {options.listen}: write HOST:PORT")
    seeds = options.seed or ["127.0.0.1:8050"]
    try:
        cluster = protoplex.Cluster(seeds, options.credentials, renew_after_s=options.renew_after)
    except OSError as error:
        sys.exit(f"rooms.py: --credentials {options.credentials}: {error}; `protoplex enrol` makes some")
    rooms = Rooms(Store(options.store))
    try:
        server = Server((host, int(port)), options.name, rooms)
    except OSError as error:
        sys.exit(f"rooms.py: --listen {options.listen}: {error}")
    server.member = protoplex.Member(cluster, options.pool, options.listen, rooms)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # Not before there is somebody to answer: with the membership requests come.
    server.member.start()
    stop.wait()
    server.member.leave(options.drain)
    time.sleep(LINGER_S)
    server.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
