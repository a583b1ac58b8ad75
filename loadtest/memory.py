"""Resident memory of a proxy's child before, during and after a burst of connections: what it gives back."""

import sys
import time

from idle import CONNECTIONS, holding, raise_files
from process import family, resident_kib
from rig import Rig
from table import table
from workload import WORKLOADS

AT_MOST = 1.10
# After the last connection.
LOOKS = (1, 5, 15, 30)


def measure():
    """KiB by scheme: at the start, with all connections, and at each look."""
    raise_files()
    return {scheme: burst(scheme) for scheme in ("plain", "tls")}


def burst(scheme):
    print(f"memory: {scheme}", file=sys.stderr)
    with Rig(WORKLOADS["h1-proxy"], ["protoplex"]) as rig:
        [proxy] = rig.peers
        [child] = family(proxy.server.pid)[1:]
        # What is needed for the first one of all is no connection's.
        with holding(proxy, scheme, 1):
            pass
        seen = [resident_kib([child])]
        with holding(proxy, scheme, CONNECTIONS):
            seen.append(resident_kib([child]))
        end = time.monotonic()
        for look in LOOKS:
            time.sleep(max(0, end + look - time.monotonic()))
            seen.append(resident_kib([child]))
        return seen


def show(results):
    """The table, in Markdown."""
    heads = [f"{look} s after" for look in LOOKS]
    lines = [("MiB of the child", "before", f"with {CONNECTIONS:,}", *heads, f"to before, at most {AT_MOST}")]
    for scheme, seen in results.items():
        lines.append((scheme, *(f"{kib / 1024:.1f}" for kib in seen), f"{seen[-1] / seen[0]:.2f}"))
    return f"### memory: a burst of {CONNECTIONS:,} connections, a request each\n\n{table(lines)}\n"
