"""Resident memory of idle connections, plain and TLS, each after one proxied request."""

import ctypes
import resource
import subprocess
import sys
import time
from contextlib import contextmanager

from peer import CLIENT_CPU, until
from process import resident_kib
from rig import Rig
from table import table
from tools import CLIENT
from workload import WORKLOADS

CONNECTIONS = 10_000
AT_MOST_KIB = {"plain": 1.5, "tls": 6.0}
# Memory that was used once mostly stays, so each is measured of new processes.
CHANGES = {
    "at first": [],
    "after a restart of every child": [("restart",)],
    "after another restart and a reload": [("restart",), ("restart", "--reload")],
    "after an upgrade": [("upgrade",)],
}
# Access log lines are written within a second.
SETTLE_SECONDS = 2
PR_SET_THP_DISABLE = 41


def measure(names):
    """KiB a connection, by peer and scheme."""
    allow_many()
    return {(name, scheme): kib_each(name, scheme) for name in names for scheme in AT_MOST_KIB}


def allow_many():
    # Huge pages would hide what a connection takes; everything that is started from here has none.
    ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
    raise_files()


def raise_files():
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < CONNECTIONS + 1000:
        sys.exit(f"{CONNECTIONS} connections need more files than {most} (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def measure_changed():
    """KiB a connection of Protoplex, by what was done before and by scheme."""
    allow_many()
    results = {}
    for scheme in AT_MOST_KIB:
        with Rig(WORKLOADS["h1-proxy"], ["protoplex"]) as rig:
            [proxy] = rig.peers
            for name, commands in CHANGES.items():
                print(f"idle: {name}, {scheme}", file=sys.stderr)
                for command in commands:
                    proxy.operate(*command, "proxy-1")
                # A child that was replaced has left.
                until("its children", lambda: len(proxy.pids()) == 2)
                results[name, scheme] = of(proxy, scheme)
    return results


def kib_each(name, scheme):
    print(f"idle: {name}, {scheme}", file=sys.stderr)
    # A new server each time: memory that was used once mostly stays.
    with Rig(WORKLOADS["h1-proxy"], [name]) as rig:
        [peer] = rig.peers
        return of(peer, scheme)


def of(peer, scheme):
    one, many = (resident(peer, scheme, connections) for connections in (1, CONNECTIONS))
    return (many - one) / (CONNECTIONS - 1)


def resident(peer, scheme, connections):
    """KiB with so many idle connections."""
    with holding(peer, scheme, connections):
        return resident_kib(peer.pids())


@contextmanager
def holding(peer, scheme, connections):
    """Has so many idle connections open meanwhile."""
    address = f"127.0.0.1:{peer.port(scheme == 'tls')}"
    command = ["taskset", "-c", str(CLIENT_CPU), CLIENT, "idle", address, str(connections), "/", scheme]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        if client.stdout.readline() != "ready\n":
            raise RuntimeError(f"{peer.name}: not all of {connections} connections")
        time.sleep(SETTLE_SECONDS)
        yield


def show(kib):
    """The table, in Markdown."""
    peers = dict.fromkeys(peer for peer, _ in kib)
    lines = [("KiB a connection", "at most", *peers)]
    for scheme, at_most in AT_MOST_KIB.items():
        lines.append((scheme, at_most, *(f"{kib[peer, scheme]:.2f}" for peer in peers)))
    return f"### idle: {CONNECTIONS:,} connections after one request each\n\n{table(lines)}\n"


def show_changed(kib):
    """The table, in Markdown."""
    lines = [("KiB a connection", *AT_MOST_KIB)]
    for name in CHANGES:
        lines.append((name, *(f"{kib[name, scheme]:.2f}" for scheme in AT_MOST_KIB)))
    return f"### idle-changed: {CONNECTIONS:,} connections after one request each\n\n{table(lines)}\n"
