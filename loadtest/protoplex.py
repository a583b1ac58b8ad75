"""Protoplex as a peer: a whole cluster, of which the node that serves is measured."""

import json
import subprocess

from peer import CLIENT_CPU, SERVER_CPU, Peer, free_ports, until
from tools import PROTOPLEX


class Protoplex(Peer):
    def launch(self, workload, origin):
        seed, datastore = free_ports(2)
        self.config = self.render("protoplex.toml", SEED=seed, DATASTORE=datastore)
        self.node("datastore", CLIENT_CPU)
        # The datastore makes the identity that the others need there.
        until("the cluster has an identity", (self.folder / "data/cluster").exists)
        self.node("seed", CLIENT_CPU)
        return self.fileserver() if workload.is_static else self.proxy(origin)

    def proxy(self, origin):
        """A proxy whose every request goes to the origin, a member of a pool like any other."""
        server = self.node("proxy", SERVER_CPU)
        self.spawn(PROTOPLEX, "--config", self.config, "join", "--pool", "origin", "--backend",
                   f"http://127.0.0.1:{origin}", cpu=CLIENT_CPU)
        self.operate("handler", "add", "origin", "--path", "/{*rest}", "--pool", "origin", "--placement", "spread")
        return server

    def fileserver(self):
        """A fileserver with an app build, and an uploaded file that a live node would tell it the changes of."""
        self.node("live", CLIENT_CPU)
        server = self.node("fileserver", SERVER_CPU)
        for path, pool in [("/.well-known/mercure", "live"), ("/{*rest}", "files")]:
            self.operate("handler", "add", pool, "--path", path, "--pool", pool, "--key", "{path}")
        self.operate("deploy", self.content / "build")
        token = self.operate("token", "create", "--path", "/files/")["token"]
        self.operate("upload", "--token", token, self.content / "files/10m.bin", f"http://localhost:{self.http}/files/")
        return server

    def node(self, kind, cpu):
        """Starts a node; returns once its sockets are bound."""
        process = self.spawn(PROTOPLEX, "--config", self.config, kind, cpu=cpu)
        running = self.folder / f"data/run/{kind}-1.json"
        until(f"{kind} runs", lambda: self.is_up(process) and running.exists())
        return process

    def operate(self, *words):
        """One of the operator's commands, once it can be obeyed; returns its answer."""
        command = [PROTOPLEX, "--config", self.config, "--json", *map(str, words)]
        run = lambda: subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        answer = until(f"protoplex {words[0]}", lambda: (done := run()).returncode == 0 and done)
        return json.loads(answer.stdout)
