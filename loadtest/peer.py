"""A server under load, on processor 0 with one worker, behind ports and in a folder of its own."""

import http.client
import os
import signal
import socket
import ssl
import subprocess
import time

from process import family
from tools import BARE, HERE

SERVER_CPU, CLIENT_CPU = 0, 1
START_SECONDS, END_SECONDS = 30, 10


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [taken.getsockname()[1] for taken in sockets]
    for taken in sockets:
        taken.close()
    return ports


def until(what, condition):
    """Waits for a condition."""
    end = time.monotonic() + START_SECONDS
    while not (outcome := condition()):
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.02)
    return outcome


class Peer:
    """Subclasses launch their server; when this is made, it answers."""

    def __init__(self, name, workload, origin, folder, content):
        self.name, self.folder, self.content = name, folder / name, content
        self.folder.mkdir()
        self.http, self.https = free_ports(2)
        self.processes, self.log = [], open(self.folder / "log", "w")
        try:
            self.server = self.launch(workload, origin)
            until(f"an answer of {name}", lambda: self.answers(workload))
        except BaseException:
            self.stop()
            print((self.folder / "log").read_text()[-2000:])
            raise

    def launch(self, workload, origin):
        """Starts the server; returns the process that serves, with its children."""
        raise NotImplementedError

    def port(self, tls):
        return self.https if tls else self.http

    def pids(self):
        return family(self.server.pid)

    def spawn(self, *command, cpu=SERVER_CPU):
        process = subprocess.Popen(["taskset", "-c", str(cpu), *map(str, command)], cwd=self.folder,
                                   stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        self.processes.append(process)
        return process

    def render(self, template, **values):
        """Fills in one of this folder's *.in files."""
        values |= dict(DIR=self.folder, HTTP=self.http, HTTPS=self.https, CONTENT=self.content,
                       CERTIFICATE=self.content / "certificate.pem", KEY=self.content / "key.pem",
                       CERTIFICATE_AND_KEY=self.content / "both.pem")
        text = (HERE / (template + ".in")).read_text()
        for name, value in values.items():
            text = text.replace(f"@{name}@", str(value))
        file = self.folder / template
        file.write_text(text)
        return file

    def is_up(self, process):
        """Raises where it isn't."""
        if process.poll() is not None:
            raise RuntimeError(f"{self.name} has ended: {' '.join(process.args)}")
        return True

    def answers(self, workload):
        """Whether the whole body of the workload comes back."""
        self.is_up(self.server)
        if workload.tls:
            unchecked = ssl._create_unverified_context()
            connection = http.client.HTTPSConnection("127.0.0.1", self.https, timeout=5, context=unchecked)
        else:
            connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=5)
        try:
            connection.request("GET", workload.path, headers={"Host": "localhost"})
            answer = connection.getresponse()
            return answer.status == 200 and len(answer.read()) == workload.size
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def stop(self):
        for process in reversed(self.processes):
            stop(process)
        self.log.close()


def stop(process):
    """Asks a process to end, and ends it with all its children where it doesn't."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        for pid in family(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.wait()


class Nginx(Peer):
    def launch(self, workload, origin):
        return self.spawn("nginx", "-c", self.render("nginx.conf", ORIGIN=origin), "-p", self.folder, "-e", "error.log")


class Haproxy(Peer):
    def launch(self, workload, origin):
        splice = "option splice-response" if self.name == "haproxy-splice" else ""
        return self.spawn("haproxy", "-db", "-f", self.render("haproxy.cfg", ORIGIN=origin, SPLICE=splice))


class Limit(Peer):
    """The least that a server can do."""

    def launch(self, workload, origin):
        modes = {
            "h1-proxy": ("relay", self.http, origin),
            "proxy-1m": ("splice", self.http, origin),
            "static-1k": ("fixed", self.http, workload.size),
            "static-10m": ("file", self.http, self.content / workload.path.lstrip("/")),
        }
        return self.spawn(BARE, *modes[workload.name])
