"""How long a child takes from its parent's spawn until it is ready, by the parent's log."""

import json
import statistics
import sys

from peer import until
from rig import Rig
from table import table
from workload import WORKLOADS

RESTARTS, AT_MOST_MS = 20, 50
# Nodes by the workload that has them run.
NODES = {"h1-proxy": ["proxy-1"], "static-1k": ["fileserver-1", "live-1"]}


def measure():
    """Milliseconds of each start, by node."""
    results = {}
    for workload, nodes in NODES.items():
        with Rig(WORKLOADS[workload], ["protoplex"]) as rig:
            [peer] = rig.peers
            results |= {node: starts(peer, f"{node}:0") for node in nodes}
    return results


def starts(peer, child):
    print(f"starts: {child}", file=sys.stderr)
    before = len(told(peer, child))
    for _ in range(RESTARTS):
        peer.operate("restart", child)
    return until("all are told", lambda: len(all := told(peer, child)[before:]) >= RESTARTS and all)


def told(peer, child):
    """Of each time that it was ready: after how long."""
    lines = [line for line in (peer.folder / "log").read_text().splitlines() if '"ready"' in line]
    lines = [line for line in map(json.loads, lines) if line["message"] == "ready"]
    return [line["after_ms"] for line in lines if line["process"] == child]


def show(results):
    """The table, in Markdown."""
    lines = [("ms", "median", f"worst, at most {AT_MOST_MS}")]
    for node, times in results.items():
        lines.append((node, f"{statistics.median(times):.0f}", max(times)))
    return f"### starts: a child, from spawn to ready, {RESTARTS} restarts\n\n{table(lines)}\n"
