"""One origin and some peers, all up at once for one workload."""

import os
import subprocess
import tempfile
from pathlib import Path

from peer import CLIENT_CPU, Haproxy, Limit, Nginx, free_ports, stop, until
from protoplex import Protoplex
from tools import BARE, BUILT
from workload import KIB, MIB

PEERS = {"nginx": Nginx, "haproxy": Haproxy, "haproxy-splice": Haproxy, "limit": Limit, "protoplex": Protoplex}


class Rig:
    """Use it in a `with`; at its end everything ends, and nothing is left."""

    def __init__(self, workload, names):
        self.workload, self.names, self.peers, self.origin = workload, names, [], None

    def __enter__(self):
        self.temporary = tempfile.TemporaryDirectory(prefix="run-", dir=BUILT)
        folder = Path(self.temporary.name)
        content = folder / "content"
        make_content(content)
        [port] = free_ports(1)
        try:
            command = ["taskset", "-c", str(CLIENT_CPU), BARE, "fixed", str(port), str(self.workload.size)]
            self.origin = subprocess.Popen(command, stdin=subprocess.DEVNULL)
            for name in self.names:
                self.peers.append(PEERS[name](name, self.workload, port, folder, content))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for peer in self.peers:
            peer.stop()
        if self.origin:
            stop(self.origin)
        self.temporary.cleanup()


def make_content(folder):
    """The files that are served, and a certificate for all peers."""
    for name in ["app", "build/app", "files"]:
        (folder / name).mkdir(parents=True)
    small = (b"The quick brown fox jumps over the lazy dog. 0123456789 abcdef\n" * 17)[:KIB]
    for name in ["app", "build/app"]:
        (folder / name / "1k.txt").write_bytes(small)
    (folder / "files/10m.bin").write_bytes(os.urandom(MIB) * 10)
    make_certificate(folder)


def make_certificate(folder):
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                    "-keyout", key, "-out", certificate, "-days", "30", "-subj", "/CN=localhost",
                    "-addext", "subjectAltName=DNS:localhost"], check=True, stderr=subprocess.DEVNULL)
    (folder / "both.pem").write_text(certificate.read_text() + key.read_text())
