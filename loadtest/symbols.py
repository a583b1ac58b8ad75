"""Where a server spends its time, by perf: the symbols with the most samples of their own."""

import subprocess

from load import load
from rig import Rig
from tools import BUILT

SECONDS, TOP = 5, 40


def show(workload, name):
    """The listing; the recording stays in the folder of what is built."""
    recording = BUILT / "perf.data"
    with Rig(workload, [name]) as rig:
        [peer] = rig.peers
        load(peer, workload, 1)
        pids = ",".join(map(str, peer.pids()))
        command = ["perf", "record", "-q", "-g", "-F", "999", "-p", pids, "-o", recording, "--", "sleep", str(SECONDS)]
        perf = subprocess.Popen(command)
        load(peer, workload, SECONDS)
        perf.wait()
        command = ["perf", "report", "-i", recording, "--stdio", "--no-children", "-g", "none"]
        command += ["-F", "overhead,dso,symbol"]
        text = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout
    lines = [line.rstrip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return "\n".join(lines[:TOP])
