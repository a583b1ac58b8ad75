"""What changes of a running proxy cost the WebSockets that it relays: how many are closed, and whether each still echoes."""

import http.client
import json
import resource
import ssl
import subprocess
import sys
from urllib.request import urlopen

from peer import CLIENT_CPU, until
from rig import Rig, make_certificate
from table import table
from tools import HERE, PROTOPLEX
from workload import WORKLOADS

# Half of them over TLS. Each is two connections of the proxy.
WEBSOCKETS = 5000
ECHO = HERE / "echo.py"


def reload(proxy):
    proxy.operate("restart", "--reload", "proxy-1")


def another_handler(proxy):
    proxy.operate("handler", "add", "another", "--path", "/another", "--pool", "origin", "--placement", "spread")
    proxy.operate("handler", "remove", "another")


def own_handler(proxy):
    proxy.operate("handler", "remove", "echo")
    add_handler(proxy)


def add_handler(proxy):
    proxy.operate("handler", "add", "echo", "--path", "/echo", "--pool", "echo", "--placement", "spread")


def certificate(proxy):
    served = lambda: ssl.get_server_certificate(("127.0.0.1", proxy.https))
    before = served()
    make_certificate(proxy.content)
    reload(proxy)
    until("the new certificate", lambda: served() != before)


def build(proxy):
    proxy.operate("deploy", proxy.content / "build")


def limits_and_level(proxy):
    text = proxy.config.read_text()
    changed = text.replace("max_connections = 15000", "max_connections = 14000\nidle_timeout_ms = 60000")
    assert changed != text
    proxy.config.write_text(changed + '\n[log]\nlevel = "debug"\n')
    reload(proxy)
    addresses = json.loads((proxy.folder / "data/run/proxy-1.json").read_text())["addresses"]
    meta = next(address["address"] for address in addresses if address["name"] == "meta")
    asked = lambda path: urlopen(f"http://{meta}/{path}").read().decode()
    until("the new level", lambda: json.loads(asked("status"))["log_level"] == "debug")
    until("the new limits", lambda: "14000" in asked("config"))


CHANGES = {
    "another handler added and removed": another_handler,
    "their own handler removed and added": own_handler,
    "a new certificate, by reload": certificate,
    "a build deployed": build,
    "limits and log level, by reload": limits_and_level,
}


def measure():
    """By change: how many are closed, and how many echo a message."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < 2 * WEBSOCKETS + 1000:
        sys.exit(f"{WEBSOCKETS} WebSockets need more files than {most} (ulimit -Hn)")
    # What is started from here has as many.
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with Rig(WORKLOADS["h1-proxy"], ["protoplex"]) as rig, program("serve") as backend:
        [proxy] = rig.peers
        port = backend.stdout.readline().strip()
        proxy.spawn(PROTOPLEX, "--config", proxy.config, "join", "--pool", "echo", "--backend",
                    f"http://127.0.0.1:{port}", cpu=CLIENT_CPU)
        add_handler(proxy)
        until("a WebSocket", lambda: is_relayed(proxy))
        with program("hold", WEBSOCKETS, f"127.0.0.1:{proxy.http}", f"tls:127.0.0.1:{proxy.https}") as client:
            if client.stdout.readline() != "ready\n":
                raise RuntimeError(f"not all of {WEBSOCKETS} WebSockets")
            results = {"nothing": after(lambda _: None, proxy, client)}
            results |= {name: after(change, proxy, client) for name, change in CHANGES.items()}
            client.stdin.close()
        backend.stdin.close()
    return results


def is_relayed(proxy):
    connection = http.client.HTTPConnection("127.0.0.1", proxy.http, timeout=5)
    fields = {"Host": "localhost", "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": "key"}
    try:
        connection.request("GET", "/echo", headers=fields)
        return connection.getresponse().status == 101
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def after(change, proxy, client):
    """What has become of them."""
    change(proxy)
    client.stdin.write("message\n")
    client.stdin.flush()
    return json.loads(client.stdout.readline())


def program(*words):
    command = ["taskset", "-c", str(CLIENT_CPU), ECHO, *map(str, words)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def show(results):
    """The table, in Markdown."""
    lines = [("change", "closed, at most 0", "echo a message")]
    for name, result in results.items():
        lines.append((name, result["closed"], f"{result['echoed']:,}"))
    return f"### websockets: {WEBSOCKETS:,} relayed and idle, half of them over TLS\n\n{table(lines)}\n"
