"""Resident memory of idle connections, plain and TLS, each after one proxied request."""

import ctypes
import resource
import subprocess
import sys
import time

from peer import CLIENT_CPU
from process import resident_kib
from rig import Rig
from table import table
from tools import CLIENT
from workload import WORKLOADS

CONNECTIONS = 10_000
AT_MOST_KIB = {"plain": 1.5, "tls": 6.0}
# Access log lines are written within a second.
SETTLE_SECONDS = 2
PR_SET_THP_DISABLE = 41


def measure(names):
    """KiB a connection, by peer and scheme."""
    # Huge pages would hide what a connection takes; everything that is started from here has none.
    ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < CONNECTIONS + 1000:
        sys.exit(f"{CONNECTIONS} connections need more files than {most} (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return {(name, scheme): kib_each(name, scheme) for name in names for scheme in AT_MOST_KIB}


def kib_each(name, scheme):
    print(f"idle: {name}, {scheme}", file=sys.stderr)
    # A new server each time: memory that was used once mostly stays.
    with Rig(WORKLOADS["h1-proxy"], [name]) as rig:
        [peer] = rig.peers
        one, many = (resident(peer, scheme, connections) for connections in (1, CONNECTIONS))
    return (many - one) / (CONNECTIONS - 1)


def resident(peer, scheme, connections):
    """KiB with so many idle connections."""
    address = f"127.0.0.1:{peer.port(scheme == 'tls')}"
    command = ["taskset", "-c", str(CLIENT_CPU), CLIENT, "idle", address, str(connections), "/", scheme]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        if client.stdout.readline() != "ready\n":
            raise RuntimeError(f"{peer.name}: not all of {connections} connections")
        time.sleep(SETTLE_SECONDS)
        return resident_kib(peer.pids())


def show(kib):
    """The table, in Markdown."""
    peers = dict.fromkeys(peer for peer, _ in kib)
    lines = [("KiB a connection", "at most", *peers)]
    for scheme, at_most in AT_MOST_KIB.items():
        lines.append((scheme, at_most, *(f"{kib[peer, scheme]:.2f}" for peer in peers)))
    return f"### idle: {CONNECTIONS:,} connections after one request each\n\n{table(lines)}\n"
