"""Interleaved slices: all peers up at once, two seconds of load for each in turn, some rounds.

A shared machine's speed changes by the minute, so what counts is a peer's CPU time a request as a ratio to nginx's in
the same round, and of the rounds the quieter half."""

import os
import resource
import sys
import time
from statistics import median

from load import load
from process import cpu, machine
from rig import Rig
from table import table

ROUNDS = int(os.environ.get("ROUNDS", "5"))
PATIENCE_SECONDS = float(os.environ.get("PATIENCE", "0"))
SECONDS, WARM_UP_SECONDS = 2, 1
# Other programs may take this much of one processor in a quiet machine.
QUIET = 0.1
HEADS = ("peer", "CPU µs a request", "user", "system", "× nginx", "lowest to highest", "× limit", "requests/s",
         "p50 ms", "p99 ms", "busy", "errors")


def measure(workload, names):
    """One row a slice."""
    rows = []
    with Rig(workload, names) as rig:
        for peer in rig.peers:
            load(peer, workload, WARM_UP_SECONDS)
        for number in range(ROUNDS):
            print(f"{workload.name}: round {number + 1} of {ROUNDS}", file=sys.stderr)
            await_quiet()
            for peer in rig.peers:
                rows.append({"peer": peer.name, "round": number, **slice_of(rig, peer)})
    return quiet(rows)


def await_quiet():
    """Waits while other programs are at work, for as long as patience lasts."""
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        before = sum(machine())
        time.sleep(SECONDS)
        if sum(machine()) - before < QUIET * SECONDS:
            return


def quiet(rows):
    """The half of the rounds in which other programs took the least."""
    taken = {}
    for row in rows:
        taken[row["round"]] = taken.get(row["round"], 0) + row["foreign"] + row["stolen"]
    kept = sorted(taken, key=taken.get)[:(len(taken) + 1) // 2]
    return [row for row in rows if row["round"] in kept]


def slice_of(rig, peer):
    before = snapshot(rig, peer)
    done = load(peer, rig.workload, SECONDS)
    spent = [after - earlier for after, earlier in zip(snapshot(rig, peer), before)]
    user, system, origin, client, busy, stolen, seconds = spent
    requests = max(done["requests"], 1)
    each = lambda cpu_seconds: cpu_seconds / requests * 1e6
    return {**done, "us": each(user + system), "user_us": each(user), "system_us": each(system),
            "origin_us": each(origin), "client_us": each(client), "rate": requests / done["seconds"],
            "busy": (user + system) / seconds, "stolen": stolen / seconds,
            "foreign": max(0, busy - user - system - origin - client) / seconds}


def snapshot(rig, peer):
    client = resource.getrusage(resource.RUSAGE_CHILDREN)
    origin = sum(cpu([rig.origin.pid]))
    return (*cpu(peer.pids()), origin, client.ru_utime + client.ru_stime, *machine(), time.monotonic())


def ratios(rows, peer, base):
    """The peer's CPU time a request to another's, round by round."""
    us = lambda name: {row["round"]: row["us"] for row in rows if row["peer"] == name}
    own, others = us(peer), us(base)
    return [own[number] / others[number] for number in own if others.get(number)]


def show(workload, rows):
    """The table of one workload, in Markdown."""
    lines = [HEADS]
    for peer in dict.fromkeys(row["peer"] for row in rows):
        own = [row for row in rows if row["peer"] == peer]
        mid = lambda name: median(row[name] for row in own)
        to_nginx, to_limit = ratios(rows, peer, "nginx"), ratios(rows, peer, "limit")
        lines.append((
            peer, f"{mid('us'):.1f}", f"{mid('user_us'):.1f}", f"{mid('system_us'):.1f}",
            f"{median(to_nginx):.2f}" if to_nginx else "-",
            f"{min(to_nginx):.2f} to {max(to_nginx):.2f}" if to_nginx else "-",
            f"{median(to_limit):.2f}" if to_limit else "-",
            f"{mid('rate'):,.0f}", f"{mid('p50_us') / 1e3:.2f}", f"{mid('p99_us') / 1e3:.2f}",
            f"{mid('busy'):.0%}", sum(row["errors"] for row in own),
        ))
    mid = lambda name: median(row[name] for row in rows)
    limit = f"; at most {workload.at_most:.2f} × nginx" if workload.at_most else ""
    return (f"### {workload.name}: {workload.title}{limit}\n\n{table(lines)}\n\n"
            f"A request costs the origin {mid('origin_us'):.1f} µs and the client {mid('client_us'):.1f} µs. "
            f"Others kept {mid('foreign'):.0%} of one processor busy; {mid('stolen'):.0%} of one was stolen.\n")


def summary(results):
    """All workloads in one table, as ratios to nginx."""
    peers = ("protoplex", "haproxy", "haproxy-splice", "limit")
    lines = [("workload", "at most", *peers, "nginx µs")]
    for workload, rows in results:
        cell = lambda peer: f"{median(found):.2f}" if (found := ratios(rows, peer, "nginx")) else "-"
        at_most = f"{workload.at_most:.2f}" if workload.at_most else "-"
        nginx = median(row["us"] for row in rows if row["peer"] == "nginx")
        lines.append((f"{workload.name}: {workload.title}", at_most, *map(cell, peers), f"{nginx:.1f}"))
    return table(lines)
