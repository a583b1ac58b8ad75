"""What changes of a running proxy cost its clients: failed requests, and latency, under full load."""

import os
import re
import signal
import subprocess
import time
from dataclasses import replace

from load import duration_us
from peer import CLIENT_CPU
from process import family
from rig import Rig
from table import table
from workload import WORKLOADS

CONNECTIONS, SECONDS, CHILDREN = 1000, 8, 2
# A change begins when the load has settled, and the next one when it has gone on for a while.
SETTLE_SECONDS, PAUSE_SECONDS = 2, 1
P99_AT_MOST = 4


def children(proxy):
    return family(proxy.server.pid)[1:]


def hang_up(proxy):
    os.kill(proxy.server.pid, signal.SIGHUP)


def restart(proxy):
    proxy.operate("restart", "proxy-1")


def upgrade(proxy):
    # The same program again: what is measured is the way.
    proxy.operate("upgrade", "proxy-1")


def stop_and_start(proxy):
    proxy.operate("stop", "proxy-1:1")
    time.sleep(PAUSE_SECONDS)
    proxy.operate("start", "proxy-1:1")


def kill(proxy):
    os.kill(children(proxy)[0], signal.SIGKILL)


# What is done, how often, and whether requests in flight may fail.
CHANGES = {
    "nothing": (lambda proxy: None, 1, False),
    "reload (SIGHUP), three times": (hang_up, 3, False),
    "restart of every child in turn": (restart, 1, False),
    "upgrade (as by SIGUSR2)": (upgrade, 1, False),
    "one child stopped and started": (stop_and_start, 1, False),
    "one child killed (SIGKILL)": (kill, 1, True),
}


def measure():
    """By change: requests, failed ones by kind, and p99 in microseconds."""
    os.environ["PROTOPLEX_PROXY__CHILDREN"] = str(CHILDREN)
    workload = replace(WORKLOADS["h1-proxy"], connections=CONNECTIONS)
    with Rig(workload, ["protoplex"]) as rig:
        [proxy] = rig.peers
        return {name: under_load(proxy, *change[:2]) for name, change in CHANGES.items()}


def under_load(proxy, change, times):
    url = f"http://127.0.0.1:{proxy.http}/"
    command = ["taskset", "-c", str(CLIENT_CPU), "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s", "--latency",
               "-H", "Host: localhost", url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as wrk:
        time.sleep(SETTLE_SECONDS)
        for _ in range(times):
            change(proxy)
            time.sleep(PAUSE_SECONDS)
        text = wrk.stdout.read()
    failed = {kind: int(count) for kind, count in re.findall(r"(connect|read|write|timeout|responses):? (\d+)", text)}
    p99 = duration_us(re.search(r"(?m)^ +99% +([\d.]+)(\w+)", text).groups())
    return {"requests": int(re.search(r"(\d+) requests in", text)[1]), "failed": failed, "p99_us": p99}


def show(results):
    """The table, in Markdown."""
    quiet = results["nothing"]["p99_us"]
    lines = [("change", "requests", "failed", "p99 ms", f"to the quiet one, at most {P99_AT_MOST}")]
    for name, result in results.items():
        failed = ", ".join(f"{count} {kind}" for kind, count in result["failed"].items() if count) or "0"
        allowed = " (those in flight in the child)" if CHANGES[name][2] else ""
        lines.append((name, f"{result['requests']:,}", failed + allowed, f"{result['p99_us'] / 1e3:.1f}",
                      f"{result['p99_us'] / quiet:.2f}"))
    heading = f"### changes: {CONNECTIONS:,} keep-alive connections at full load, {CHILDREN} children, {SECONDS} s each"
    return f"{heading}\n\n{table(lines)}\n"
