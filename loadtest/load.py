"""The load generators: each brings `requests`, `seconds`, `errors`, `p50_us` and `p99_us`."""

import json
import re
import subprocess

from peer import CLIENT_CPU
from tools import BARE, CLIENT

UNITS = {"us": 1, "ms": 1e3, "s": 1e6, "m": 6e7}


def load(peer, workload, seconds):
    """Whole seconds of load on one peer."""
    port = peer.port(workload.tls)
    url = f"{'https' if workload.tls else 'http'}://127.0.0.1:{port}{workload.path}"
    match workload.client:
        case "wrk":
            return wrk(url, workload, seconds)
        case "h2load":
            return h2load(url, workload, seconds, peer.folder / "h2load.log")
        case "sink":
            command = (BARE, "sink", port, workload.connections, seconds, workload.path)
            return json.loads(run(seconds, *command))
        case "handshake":
            command = (CLIENT, "handshake", f"127.0.0.1:{port}", workload.connections, seconds, workload.path)
            return json.loads(run(seconds, *command))


def run(seconds, *command):
    command = ["taskset", "-c", str(CLIENT_CPU), *map(str, command)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30)
    if done.returncode:
        raise RuntimeError(f"{command[3]}: {done.stdout[-500:]} {done.stderr[-500:]}")
    return done.stdout


def wrk(url, workload, seconds):
    connections = f"-c{workload.connections}"
    text = run(seconds, "wrk", "-t1", connections, f"-d{seconds}s", "--latency", "-H", "Host: localhost", url)
    took = re.search(r"(\d+) requests in ([\d.]+)(\w+)", text)
    percentile = lambda p: duration_us(re.search(rf"(?m)^ +{p}% +([\d.]+)(\w+)", text).groups())
    failed = re.findall(r"(?:connect|read|write|timeout|responses:?) (\d+)", text)
    return {"requests": int(took[1]), "errors": sum(map(int, failed)), "seconds": duration_us(took.groups()[1:]) / 1e6,
            "p50_us": percentile(50), "p99_us": percentile(99)}


def duration_us(value_and_unit):
    value, unit = value_and_unit
    return float(value) * UNITS[unit]


def h2load(url, workload, seconds, log):
    text = run(seconds, "h2load", "-t1", f"-c{workload.connections}", "-m10", "-D", seconds, "--log-file", log, url)
    latencies = sorted(int(line.split("\t")[2]) for line in log.open())
    log.unlink()
    if "Application protocol: h2" not in text:
        raise RuntimeError("no HTTP/2: " + text)
    counted = re.search(r"(\d+) succeeded, (\d+) failed", text)
    return {"requests": int(counted[1]), "errors": int(counted[2]), "seconds": float(seconds),
            "p50_us": latencies[len(latencies) // 2], "p99_us": latencies[len(latencies) * 99 // 100]}
