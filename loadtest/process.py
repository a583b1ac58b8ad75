"""What the kernel tells of processes and of the machine."""

import os
from glob import glob

TICKS = os.sysconf("SC_CLK_TCK")


def family(pid):
    """The process, its children, and theirs."""
    files = glob(f"/proc/{pid}/task/*/children")
    children = [int(child) for file in files for child in open(file).read().split()]
    return [pid] + [relative for child in children for relative in family(child)]


def cpu(pids):
    """User and system seconds so far."""
    fields = [open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split() for pid in pids]
    return sum(int(field[11]) for field in fields) / TICKS, sum(int(field[12]) for field in fields) / TICKS


def status(pid, name):
    """One number of /proc/PID/status."""
    return next(int(line.split()[1]) for line in open(f"/proc/{pid}/status") if line.startswith(name + ":"))


def resident_kib(pids):
    return sum(status(pid, "VmRSS") for pid in pids)


def machine():
    """Busy and stolen seconds of all processors so far."""
    fields = open("/proc/stat").readline().split()[1:9]
    user, nice, system, _, _, irq, softirq, steal = (int(ticks) / TICKS for ticks in fields)
    return user + nice + system + irq + softirq, steal
