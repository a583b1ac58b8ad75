"""What the load tests run: the programs of this folder, built when their source is newer, and Debian packages."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BUILT = ROOT / "target" / "loadtest"
BARE = BUILT / "bare"
CLIENT = BUILT / "client" / "release" / "client"
PROTOPLEX = Path(os.environ.get("PROTOPLEX", ROOT / "target" / "release" / "protoplex")).absolute()

PACKAGES = {
    "gcc": "gcc", "h2load": "nghttp2-client", "haproxy": "haproxy", "nginx": "nginx-light", "openssl": "openssl",
    "perf": "linux-perf", "strace": "strace", "wrk": "wrk",
}


def prepare():
    """Ends the run with what to do, where something is missing."""
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    missing = [package for command, package in PACKAGES.items() if not shutil.which(command)]
    if missing:
        sys.exit("missing; apt-get install " + " ".join(missing))
    if not PROTOPLEX.exists():
        sys.exit(f"no {PROTOPLEX}: cargo build --release --locked, or name another binary in PROTOPLEX")
    BUILT.mkdir(parents=True, exist_ok=True)
    if is_older(BARE, HERE / "bare.c"):
        subprocess.run(["gcc", "-O2", "-Wall", "-o", BARE, HERE / "bare.c"], check=True)
    if is_older(CLIENT, *(HERE / "client").rglob("*.*")):
        command = ["cargo", "build", "--release", "--locked", "--target-dir", BUILT / "client"]
        subprocess.run(command, cwd=HERE / "client", check=True)
        CLIENT.touch()


def is_older(program, *sources):
    return not program.exists() or program.stat().st_mtime < max(source.stat().st_mtime for source in sources)
