"""System calls a proxied request, counted by strace."""

import signal
import subprocess
import sys

from load import load
from peer import until
from process import status
from rig import Rig
from table import table
from workload import WORKLOADS

WORKLOAD, SECONDS = WORKLOADS["h1-proxy"], 4
SENDS = {"write", "writev", "sendto", "sendmsg", "sendfile"}
RECEIVES = {"read", "readv", "recvfrom", "recvmsg"}
WAITS = {"epoll_wait", "epoll_pwait", "epoll_pwait2", "poll"}


def measure(names):
    """Calls and failed calls a request, by peer and name of the call."""
    counted = {}
    for name in names:
        print(f"syscalls: {name}", file=sys.stderr)
        with Rig(WORKLOAD, [name]) as rig:
            [peer] = rig.peers
            load(peer, WORKLOAD, 1)
            counted[name] = count(peer)
    return counted


def count(peer):
    report, pids = peer.folder / "strace", peer.pids()
    command = ["strace", "-f", "-c", "-U", "calls,errors,name", "-o", report]
    command += [word for pid in pids for word in ("-p", str(pid))]
    strace = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    until("strace is attached", lambda: all(status(pid, "TracerPid") for pid in pids))
    requests = load(peer, WORKLOAD, SECONDS)["requests"]
    strace.send_signal(signal.SIGINT)
    strace.wait()
    # CALLS [ERRORS] NAME, between two rulers.
    lines = report.read_text().split("--\n")[1].splitlines()
    fields = [line.split() for line in lines if line and not line.startswith("-")]
    return {name: (int(calls) / requests, sum(map(int, errors)) / requests) for calls, *errors, name in fields}


def show(counted):
    """The table, in Markdown."""
    lines = [("peer", "sends", "receives", "waits", "others", "failed", "by name, from 0.01")]
    for peer, calls in counted.items():
        total = lambda names: f"{sum(times for name, (times, _) in calls.items() if name in names):.2f}"
        others = calls.keys() - SENDS - RECEIVES - WAITS
        failed = f"{sum(failed for _, failed in calls.values()):.2f}"
        by_name = ", ".join(f"{name} {times:.2f}" for name, (times, _) in calls.items() if times >= 0.01)
        lines.append((peer, total(SENDS), total(RECEIVES), total(WAITS), total(others), failed, by_name))
    return f"### syscalls: a request of {WORKLOAD.name}; at most 2 sends and 2 receives\n\n{table(lines)}\n"
