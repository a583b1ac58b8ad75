"""Membership of a Protoplex pool, for servers that own keys. Nothing beyond Python's standard library.

    cluster = Cluster(["127.0.0.1:8050"], "rooms-1")  # the folder that `protoplex enrol rooms-1` has made
    member = Member(cluster, "rooms", "127.0.0.1:3000", rooms)
    member.start()
    ...
    with member.serving(key, epoch) as owned:     # the headers Protoplex-Key and Protoplex-Epoch of a request
        ...                                       # owned: serve it; else answer 421 with Protoplex-Misdirected

docs/registration.md of Protoplex tells the protocol and its rules. Those that matter most stand here as code:

- A key is served at the epoch at which it was assigned, and only while the lease runs.
- The lease counts from when its renewal was *sent*, and nine tenths of it: the seed counts the whole, from the receipt.
- A key is given up only after nothing of it is served any more, and then the seed is told.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import queue
import random
import socket
import ssl
import threading
import time
from contextlib import contextmanager
from typing import Any, Iterator, Optional, Protocol, Sequence
from urllib.parse import urlsplit

# The name in every node's certificate, whatever address the node has.
SERVER_NAME = "service.protoplex.internal"
CONNECT_TIMEOUT_S = 1.0
# A seed that takes the connection has so long to welcome a member.
WELCOME_TIMEOUT_S = 3.0
# From one round through all seeds to the next, at first and at most; each a random part of it.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 2.0
# The request for a key may be here before the word that it is this member's.
ASSIGNMENT_TIMEOUT_S = 0.5
# What is being served of a key that is given up has so long to end.
END_TIMEOUT_S = 5.0
# From one batch of a drain to the next.
BATCH_PAUSE_S = 0.1

log = logging.getLogger("protoplex")


def boot_time() -> float:
    """Seconds that no wall clock moves, and that go on while the machine is suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Keys(Protocol):
    """What the server does with its keys. Called by one thread, one call after the other."""

    def in_use(self, key: str) -> bool:
        """Nobody has asked for the key for long: is it in use all the same?"""

    def lost(self, key: str, epoch: int) -> None:
        """The key is no more this member's at this epoch (it may be at a later one). Ends what lasts of it, streams say."""


class Cluster:
    """Where the seeds are, and how both know each other: by `ca.pem`, `cert.pem` and `key.pem`."""

    def __init__(self, seeds: Sequence[str], credentials: str, *, renew_after_s: float = 8 * 3600) -> None:
        """Certificates last a day (`seed.certificate_life_s`): they are renewed after a third of it."""
        self.seeds, self.renew_after_s = list(seeds), renew_after_s
        self._ca, self._certificate, self._key = (
            os.path.join(credentials, name) for name in ("ca.pem", "cert.pem", "key.pem"))
        self._tls()  # What is missing is told at once.

    def _tls(self) -> ssl.SSLContext:
        """With the certificate as it is now: another process may have renewed it."""
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.load_verify_locations(self._ca)
        tls.load_cert_chain(self._certificate, self._key)
        return tls

    def connect(self, seed: str) -> http.client.HTTPConnection:
        """A connection to the seed at "host:port", whose certificate is this cluster's."""
        host, _, port = seed.rpartition(":")
        raw = socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = http.client.HTTPConnection(seed)
        # One that has ended is not opened again behind our back, without TLS.
        connection.auto_open = 0
        connection.sock = self._tls().wrap_socket(raw, server_hostname=SERVER_NAME)
        return connection

    def post(self, connection: http.client.HTTPConnection, path: str, body: bytes) -> http.client.HTTPResponse:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        return connection.getresponse()

    def renew(self) -> bool:
        """Has any seed make the next certificate for the same key, where it is time. True if there is a new one."""
        if time.time() - os.stat(self._certificate).st_mtime < self.renew_after_s:
            return False
        for seed in self.seeds:
            connection = None
            try:
                connection = self.connect(seed)
                connection.sock.settimeout(WELCOME_TIMEOUT_S)
                answer = self.post(connection, "/v1/certificate", b"")
                text = answer.read().decode()
                if answer.status != 200:
                    raise Elsewhere(text)
                with open(self._certificate + ".new", "w", encoding="ascii") as file:
                    file.write(text)
                os.replace(file.name, self._certificate)
                return True
            except (OSError, http.client.HTTPException, Elsewhere) as error:
                log.info("%s: the certificate is not renewed: %s", seed, error)
            finally:
                if connection:
                    connection.close()
        return False


class Elsewhere(Exception):
    """This seed can't welcome the member; perhaps it says which can."""

    def __init__(self, reason: str, leader: Optional[str] = None) -> None:
        super().__init__(reason)
        self.leader = leader


class Member:
    """One member of a pool: its link, its lease, its keys."""

    def __init__(self, cluster: Cluster, pool: str, address: str, keys: Keys, *, id: Optional[str] = None,
                 zone: str = "", capacity: int = 1) -> None:
        self._cluster, self._keys = cluster, keys
        # Left out, the id is the name that the certificate is for, and the address.
        self._who = {"pool": pool, **({"id": id} if id else {}), "address": address, "zone": zone,
                     "capacity": capacity, "movable": True, "instance": os.urandom(16).hex()}
        # Guards what follows; told whenever that changes.
        self._changed = threading.Condition()
        self._owned: dict[str, int] = {}
        self._serving: dict[str, int] = {}
        self._ends: Optional[float] = None
        self._newest = 0
        self._incarnation, self._attempt = time.time_ns(), 0
        self._sent: dict[int, float] = {}
        self._sequence = 0
        self._lease_s = self._heartbeat_s = 0.0
        self._session: Optional[str] = None
        self._left = False
        # One at a time speaks, so that what is said keeps its order.
        self._speaking = threading.Lock()
        self._mouth: Optional[http.client.HTTPConnection] = None
        self._ear: Optional[http.client.HTTPConnection] = None
        self._seeds = list(cluster.seeds)
        self._events: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()

    def start(self) -> None:
        """Joins, and stays a member until `leave`, whatever becomes of the seeds."""
        for work in (self._stay, self._renew, self._act, self._stay_known):
            threading.Thread(target=work, name=f"protoplex {work.__name__}", daemon=True).start()

    # ---- for requests ----

    @contextmanager
    def serving(self, key: str, epoch: int) -> Iterator[bool]:
        """May a request for this key at this epoch be served? The key is not given up before the block ends."""
        with self._changed:
            until = boot_time() + ASSIGNMENT_TIMEOUT_S
            # Epochs grow along the link: one that is newer than any may be on its way.
            while (self._owned.get(key) != epoch and self._session is not None and epoch > self._newest
                   and boot_time() < until):
                self._changed.wait(until - boot_time())
            self._expire()
            owned = self._owned.get(key) == epoch
            if owned:
                self._serving[key] = self._serving.get(key, 0) + 1
        try:
            yield owned
        finally:
            if owned:
                with self._changed:
                    self._serving[key] -= 1
                    if not self._serving[key]:
                        del self._serving[key]
                    self._changed.notify_all()

    def owned(self) -> dict[str, int]:
        """The keys that are served now, with their epochs."""
        with self._changed:
            self._expire()
            return dict(self._owned)

    # ---- for the end ----

    def leave(self, over_s: float) -> None:
        """Gives up all keys, bit by bit over this time, so that their users don't come to others all at once."""
        until = boot_time() + over_s
        self._say({"draining": {}})
        while self.owned() and boot_time() < until:
            time.sleep(BATCH_PAUSE_S)
            keys = list(self.owned().items())
            random.shuffle(keys)
            batches = max(1, int((until - boot_time()) / BATCH_PAUSE_S))
            self._events.put(("yield", {"keys": [{"key": key, "epoch": epoch} for key, epoch
                                                 in keys[:-(-len(keys) // batches)]], "idle": False}))
        with self._changed:
            self._left = True
            self._start_over()
        done = threading.Event()
        self._events.put(("done", done))
        # Only once nothing is served any more.
        done.wait(2 * END_TIMEOUT_S)
        self._say({"leave": {}})
        self._hang_up()

    def _stay_known(self) -> None:
        """Keeps the certificate from expiring."""
        while not self._left:
            time.sleep(min(60.0, self._cluster.renew_after_s))
            if self._cluster.renew():
                log.info("the certificate is renewed")

    # ---- the link: one thread ----

    def _stay(self) -> None:
        pause = FIRST_PAUSE_S
        while not self._left:
            seeds = list(self._seeds)
            tried: set[str] = set()
            while seeds and not self._left:
                seed = seeds.pop(0)
                tried.add(seed)
                try:
                    self._converse(seed)
                    pause = FIRST_PAUSE_S
                    break
                except Elsewhere as why:
                    log.info("%s: %s", seed, why)
                    if why.leader and why.leader not in tried:
                        seeds.insert(0, why.leader)
                except Exception as error:  # Whatever it was, another seed may do.
                    log.info("%s: %r", seed, error)
                finally:
                    self._closed()
            time.sleep(random.uniform(0, pause))
            # While there is a lease there is no time to lose.
            pause = FIRST_PAUSE_S if self._ends is not None else min(2 * pause, LONGEST_PAUSE_S)

    def _converse(self, seed: str) -> None:
        """Joins at this seed, and takes in what it says until the link ends. Raises where it wasn't welcomed."""
        ear = self._ear = self._cluster.connect(seed)
        ear.sock.settimeout(WELCOME_TIMEOUT_S)
        with self._changed:
            self._expire()
            self._attempt += 1
            self._sent.clear()
            hello = {**self._who, "incarnation": self._incarnation, "attempt": self._attempt,
                     "owned": [{"key": key, "epoch": epoch} for key, epoch in self._owned.items()]}
            sent_at = boot_time()
        lines = self._cluster.post(ear, "/v1/members", json.dumps(hello).encode())
        if lines.status != 200:
            location = urlsplit(lines.headers.get("Location", "")).netloc
            raise Elsewhere(json.loads(lines.read())["detail"], location or None)
        welcome = json.loads(lines.readline())["welcome"]
        mouth = self._cluster.connect(seed)
        with self._changed:
            self._expire()
            if self._incarnation != hello["incarnation"] or self._left:
                raise Elsewhere("the lease ended while the seed was asked")
            self._lease_s, self._heartbeat_s = welcome["lease_ms"] / 1000, welcome["heartbeat_ms"] / 1000
            self._session, self._mouth = welcome["session"], mouth
            self._extend(sent_at)
        # A seed that is silent for this long is taken for dead, while there is lease left to find another one.
        ear.sock.settimeout(self._lease_s * 2 / 5)
        mouth.sock.settimeout(self._lease_s * 2 / 5)
        log.info("a member of %s at %s, in its term %s", self._who["pool"], seed, welcome["term"])
        try:
            for line in lines:
                for what, it in json.loads(line).items():
                    self._told(what, it)
        except (OSError, http.client.HTTPException, ValueError) as error:
            log.info("%s: the link is lost: %s", seed, error)

    def _closed(self) -> None:
        """The link is gone. Keys and lease go on."""
        with self._changed:
            self._session = None
            self._changed.notify_all()
        _cut(self._ear)
        _cut(self._mouth)
        with self._speaking:
            for connection in (self._ear, self._mouth):
                if connection:
                    connection.close()
            self._ear = self._mouth = None

    def _hang_up(self) -> None:
        """Ends the link from any thread: its reader finds the end."""
        _cut(self._ear)

    def _told(self, what: str, it: Any) -> None:
        with self._changed:
            self._expire()
            if self._session is None:
                return
            if what == "assigned":
                self._newest = max(self._newest, it["epoch"])
                self._owned[it["key"]] = max(self._owned.get(it["key"], 0), it["epoch"])
            elif what == "renewed":
                if it["sequence"] in self._sent:
                    self._extend(self._sent.pop(it["sequence"]))
            elif what == "revoked":
                for key in it["keys"]:
                    if self._owned.get(key["key"]) == key["epoch"]:
                        del self._owned[key["key"]]
                        self._events.put(("lost", {key["key"]: key["epoch"]}))
            elif what == "yield":
                self._events.put(("yield", it))
            elif what == "lease_lost":
                self._start_over()
            elif what == "seeds":
                self._seeds = list(dict.fromkeys([*it["addresses"], *self._cluster.seeds]))
            elif what == "closed":
                log.info("the seed ends the link: %s", it["reason"])
                if it["leader"]:
                    self._seeds = list(dict.fromkeys([it["leader"], *self._seeds]))
            # What this client is too old to know is none of its business.
            self._changed.notify_all()

    # ---- the lease ----

    def _extend(self, sent_at: float) -> None:
        self._ends = max(self._ends or 0.0, sent_at + self._lease_s * 9 / 10)

    def _expire(self) -> None:
        if self._ends is not None and boot_time() >= self._ends:
            log.warning("the lease is over: no key is served until some are assigned anew")
            self._start_over()

    def _start_over(self) -> None:
        """No lease and no key; the next hello is another incarnation's."""
        self._incarnation = max(time.time_ns(), self._incarnation + 1)
        self._ends = None
        self._events.put(("lost", self._owned))
        self._owned = {}
        if not self._left:
            self._session = None
            self._hang_up()
        self._changed.notify_all()

    def _renew(self) -> None:
        """One thread: renews the lease, and notices its end."""
        while not self._left:
            with self._changed:
                self._expire()
                joined = self._session is not None
                if joined:
                    self._sequence += 1
                    sequence = self._sequence
                    self._sent[sequence] = boot_time()
                    # Those that were never granted are worth nothing by now.
                    self._sent.pop(sequence - 16, None)
            if joined:
                self._say({"renew": {"sequence": sequence}})
            with self._changed:
                pause = self._heartbeat_s or FIRST_PAUSE_S
                if self._ends is not None:
                    pause = min(pause, max(0.0, self._ends - boot_time()))
                self._changed.wait_for(lambda: (self._session is not None) != joined, pause)

    def _say(self, message: dict[str, Any]) -> bool:
        """Says it on the present link. One on which it can't be said is given up: the next hello says all."""
        with self._speaking:
            session, mouth = self._session, self._mouth
            if session is None or mouth is None:
                return False
            try:
                answer = self._cluster.post(mouth, f"/v1/members/{session}", json.dumps(message).encode())
                problem = answer.read()
                if answer.status == 204:
                    return True
                log.info("the seed does not take what this member says: %s", problem.decode(errors="replace"))
            except Exception as error:  # Whatever it was, the lease has to be renewed on another link.
                log.info("the seed can't be told: %r", error)
        self._hang_up()
        return False

    # ---- keys that go: one thread, so that no seed's word waits for a request ----

    def _act(self) -> None:
        while True:
            what, it = self._events.get()
            if what == "lost":
                for key, epoch in it.items():
                    self._keys.lost(key, epoch)
            elif what == "yield":
                self._give_up(it["keys"], it["idle"])
            elif what == "done":
                self._ended(None)
                it.set()

    def _give_up(self, keys: list[dict[str, Any]], idle: bool) -> None:
        given_up, kept = [], []
        for it in keys:
            key, epoch = it["key"], it["epoch"]
            if idle and self._keys.in_use(key):
                kept.append(it)
                continue
            with self._changed:
                if self._owned.get(key) != epoch:
                    continue
                del self._owned[key]
            self._keys.lost(key, epoch)
            # One whose requests don't end is not released: the seed gives it to this member anew, or waits for the lease.
            if self._ended(key):
                given_up.append(it)
        if given_up or kept:
            self._say({"released": {"keys": given_up, "kept": kept}})

    def _ended(self, key: Optional[str]) -> bool:
        """Waits until nothing of the key (None: of any) is served any more."""
        with self._changed:
            return self._changed.wait_for(lambda: not (key in self._serving if key else self._serving), END_TIMEOUT_S)


def _cut(connection: Optional[http.client.HTTPConnection]) -> None:
    """Ends the connection for whoever reads or writes it in another thread."""
    sock = connection and connection.sock
    if sock:
        try:
            # Below TLS, which is that thread's.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
        except OSError:
            pass
