"""The seed's limits: examples of its crate, which print their figures, through real links or in the core alone."""

import resource
import subprocess

from tools import ROOT

EXAMPLES = {
    "scale": "a million keys: memory, assignments, repeat answers, a proxy's cache",
    "followers": "2,000 followers, and a member that dies with 100,000 keys",
    "takeover": "how long nothing is assigned when the leader dies, and when it hands over",
    "events": "events a second, by SQLite, PostgreSQL and NATS (scripts/install-test-tools installs them)",
}
FILES = 20_000  # a link has a descriptor at each end, and both ends are in one process


def measure(examples):
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = most == resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES if unlimited else min(FILES, most), most))
    command = ["cargo", "build", "--release", "--locked", "--workspace", "--examples"]
    subprocess.run(command, cwd=ROOT, check=True)
    for example in examples:
        print(f"### {example}: {EXAMPLES[example]}\n", flush=True)
        subprocess.run([ROOT / "target" / "release" / "examples" / example], cwd=ROOT, check=True)
        print(flush=True)
