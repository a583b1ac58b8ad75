"""The workloads: what is asked for, by which client, of which peers, and what Protoplex may spend on it."""

from dataclasses import dataclass

KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Workload:
    name: str
    title: str
    client: str            # wrk, h2load, sink or handshake
    path: str              # below /app/ and /files/ the server's own content, else the origin's
    size: int              # of the body
    connections: int
    peers: tuple
    tls: bool = False
    at_most: float = None  # CPU a request, as a multiple of nginx's; None: no limit is set

    @property
    def is_static(self):
        return self.path != "/"


WORKLOADS = {workload.name: workload for workload in [
    Workload("h1-proxy", "proxy 1 KiB, 64 keep-alive connections", "wrk", "/", KIB, 64,
             ("nginx", "haproxy", "limit", "protoplex"), at_most=0.75),
    Workload("tls-proxy", "the same over TLS 1.3", "wrk", "/", KIB, 64,
             ("nginx", "haproxy", "protoplex"), tls=True, at_most=0.65),
    Workload("tls-handshake", "full TLS 1.3 handshake, one GET, close", "handshake", "/", KIB, 32,
             ("nginx", "haproxy", "protoplex"), tls=True, at_most=0.50),
    Workload("static-1k", "1 KiB app file from memory", "wrk", "/app/1k.txt", KIB, 64,
             ("nginx", "haproxy", "limit", "protoplex"), at_most=0.60),
    Workload("static-10m", "10 MiB from the disk cache, plain", "sink", "/files/10m.bin", 10 * MIB, 16,
             ("nginx", "limit", "protoplex"), at_most=1.10),
    Workload("proxy-1m", "1 MiB proxied, plain", "sink", "/", MIB, 16,
             ("nginx", "haproxy", "haproxy-splice", "limit", "protoplex"), at_most=0.30),
    Workload("h2-proxy", "HTTP/2 over TLS, 64 × 10 streams, proxied", "h2load", "/", KIB, 64,
             ("nginx", "haproxy", "protoplex"), tls=True),
]}
