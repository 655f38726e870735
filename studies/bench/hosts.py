"""What hosts that vanish cost the others: a campaign with three hosts, PostgreSQL and S3.

    pip install 'moto[server]'
    python studies/bench/hosts.py [--only NAME ...] [--package FOLDER]

Each host has a network, processes and a name of its own (namespaces of Linux, for which one has to be root), and hangs
on a bridge with PostgreSQL and moto's S3. One runs `tune`, the others `work --wait`; an evaluation sleeps. Of the
second one the link is cut (it leaves the bridge: packets go nowhere and nobody is told), for 30 or 300 s, while it
evaluates or while it holds the study's lock; or all its processes are killed or suspended; or the database is
restarted. Counted are trials that the study lacks at its end, plans whose evaluation two hosts finished (begun: a plan
of a dead host has to be begun again), and the longest time in which nobody began an evaluation, although trials were
left. Where namespaces are not to be had, hosts are processes behind a proxy that forwards nothing while it is cut;
then they see each other's processes, and none is missed for its silence.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

ROOT, SELF = Path(__file__).parent.parent.parent, Path(__file__).resolve()
HOSTS, EVALUATION_S, SEED = 3, 6.0, 0
NETWORK = "10.17.0"
SERVER = f"{NETWORK}.254"
LONGEST_S = 900  # of a scenario; then it is given up

PROTOTXT = """
name: "net"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 32 dim: 2 dim: 8 dim: 8 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
        convolution_param { num_output: 16 kernel_size: 3 pad: 1 } }
layer { name: "conv2" type: "Convolution" bottom: "conv1" top: "conv2"
        convolution_param { num_output: 16 kernel_size: 3 pad: 1 } }
layer { name: "fc" type: "InnerProduct" bottom: "conv2" top: "fc" inner_product_param { num_output: 10 } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""

EVALUATOR = f"""
import os, socket, time, zlib
from pathlib import Path

import numpy as np

import autonuq as nuq

HERE = Path(__file__).parent


class Agreement(nuq.Evaluator):
    def eval_model(self, model_file, weights_file, batch_num):
        is_trial = Path(model_file).name == "model.prototxt"
        plan = zlib.crc32(Path(weights_file).read_bytes())
        self.log(is_trial, "begin", plan)
        data = np.load(HERE / "images.npz")
        found = nuq.Net(model_file, weights_file, nuq.pycaffe.TEST).forward_all(data=data["images"])["prob"].argmax(1)
        time.sleep({EVALUATION_S} * is_trial)
        self.log(is_trial, "end", plan)
        return float((found == data["labels"]).mean())

    def log(self, is_trial, what, plan):
        if is_trial:
            with (HERE / "calls.log").open("a") as file:
                file.write(f"{{time.time()}} {{os.environ['HOST']}} {{what}} {{plan}}\\n")

    def is_satisfied(self, original_metric, new_metric):
        return original_metric - new_metric < 0.1
"""

STUDY = """
name = "{name}"
[model]
prototxt = "net.prototxt"
weights = "net.caffemodel"
[evaluator]
class = "evaluate.py:Agreement"
evaluate_batch_num = 1
[search]
trials = {trials}
stop_gain = 0
float_layers = "never"
"""


@dataclass(frozen=True)
class Scenario:
    """What happens to the second host, or to the server.

    Attributes
    ----------
    what : {"cut", "kill", "suspend", "restart"}
    seconds : float
        How long; 0 for ever.
    holds_lock : bool
        It holds the study's lock at that time; otherwise it evaluates.
    """

    what: str
    seconds: float
    holds_lock: bool

    @property
    def trials(self) -> int:
        """How many the study has: they last longer than what happens, but for what it may keep waiting."""
        return 20 + int(2 * self.seconds / EVALUATION_S)


SCENARIOS = {
    "cut 30 s, evaluating": Scenario("cut", 30, False),
    "cut 30 s, holding the lock": Scenario("cut", 30, True),
    "cut 300 s, evaluating": Scenario("cut", 300, False),
    "cut 300 s, holding the lock": Scenario("cut", 300, True),
    "database restarted, 20 s": Scenario("restart", 20, False),
    "killed, evaluating": Scenario("kill", 0, False),
    "killed, holding the lock": Scenario("kill", 0, True),
    "suspended 90 s, holding the lock": Scenario("suspend", 90, True),
}


def loaded(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


servers = loaded("servers", ROOT / "tests/servers.py")


class Server(servers.PostgreSQL):
    """PostgreSQL for this network namespace, and nobody else."""

    def start(self):
        rules = self.folder / "data/pg_hba.conf"
        if SERVER not in rules.read_text():
            rules.write_text(rules.read_text() + f"host all all {NETWORK}.0/24 trust # {SERVER}\n")
        options = f"-p {self.port} -c listen_addresses=127.0.0.1,{SERVER} -c unix_socket_directories="
        self.call("pg_ctl", "-D", str(self.folder / "data"), "-w", "-o", options, "start")


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True)


class NamespaceHost:
    """A host of its own: network, processes, name."""

    address = SERVER

    def __init__(self, number, folder):
        self.name, self._port = f"h{number}", f"v{number}"
        self.log = folder / f"{self.name}.log"
        script = (
            f"hostname {self.name}; ip link set lo up; read ready; ip addr add {NETWORK}.{number}/24 dev e{number}; "
            f'ip link set e{number} up; exec "$@"'
        )
        inside = ["unshare", "--net", "--pid", "--uts", "--fork", "--mount-proc", "--kill-child=SIGKILL"]
        self._command = [*inside, "sh", "-c", script, "host"]
        self._number = number
        self.process = None

    def run(self, command, environment, ports):
        with self.log.open("w") as log:
            pipes = {"stdin": subprocess.PIPE, "stdout": log, "stderr": log}
            self.process = subprocess.Popen([*self._command, *command], env=environment, **pipes)
        own = Path("/proc/self/ns/net").stat().st_ino
        while Path(f"/proc/{self.process.pid}/ns/net").stat().st_ino == own:
            time.sleep(0.01)
        ip("link", "add", self._port, "type", "veth", "peer", "name", f"e{self._number}")
        ip("link", "set", f"e{self._number}", "netns", str(self.process.pid))
        ip("link", "set", self._port, "up")
        self.mend()
        self.process.stdin.write(b"\n")
        self.process.stdin.close()

    def cut(self):
        ip("link", "set", self._port, "nomaster")

    def mend(self):
        with suppress(subprocess.CalledProcessError):  # its worker has given up, and the host is gone
            ip("link", "set", self._port, "master", "br0")

    def signal(self, number):
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for pid in children:
            os.kill(int(pid), number)

    def close(self):
        with suppress(OSError):
            self.signal(signal.SIGKILL)
        self.process.wait()
        subprocess.run(["ip", "link", "del", self._port], check=False, stderr=subprocess.DEVNULL)


class ProxyHost:
    """Processes that reach the servers through proxies only."""

    address = "127.0.0.1"

    def __init__(self, number, folder):
        self.name = f"h{number}"
        self.log = folder / f"{self.name}.log"
        self._proxies = []
        self.process = None

    def run(self, command, environment, ports):
        self._proxies = [servers.Proxy(port) for port in ports]
        for port, proxy in zip(ports, self._proxies, strict=True):
            command = [part.replace(f":{port}", f":{proxy.port}") for part in command]
            environment = {key: value.replace(f":{port}", f":{proxy.port}") for key, value in environment.items()}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def cut(self):
        for proxy in self._proxies:
            proxy.cut()

    def mend(self):
        for proxy in self._proxies:
            proxy.mend()

    def signal(self, number):
        os.kill(self.process.pid, number)

    def close(self):
        with suppress(OSError):
            self.signal(signal.SIGKILL)
        self.process.wait()
        for proxy in self._proxies:
            proxy.close()


def write_study(folder, name, trials):
    """Write a network with random weights, what it says of random images, an evaluator and a study file."""
    from autonuq import Net
    from autonuq.graph.files import write_caffemodel

    (folder / "net.prototxt").write_text(PROTOTXT)
    generator = np.random.default_rng(SEED)
    graph = loaded("core", ROOT / "studies/bench/core.py").random_network(folder / "net.prototxt", generator)
    write_caffemodel(graph, folder / "net.caffemodel")
    images = generator.standard_normal((320, 2, 8, 8), np.float32)
    labels = Net(folder / "net.prototxt", folder / "net.caffemodel").forward_all(data=images)["prob"].argmax(1)
    np.savez(folder / "images.npz", images=images, labels=labels)
    (folder / "evaluate.py").write_text(EVALUATOR)
    (folder / "study.toml").write_text(STUDY.format(name=name, trials=trials))


@dataclass(frozen=True)
class Call:
    """A line of the evaluator's log."""

    at: float
    host: str
    what: str
    plan: str


def calls(folder):
    log = folder / "calls.log"
    lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return [Call(float(at), host, what, plan) for at, host, what, plan in lines]


def wait_until(condition, hosts, seconds=LONGEST_S):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        if all(host.process.poll() is not None for host in hosts):
            return condition()
        time.sleep(0.1)
    return True


def happen(scenario, hosts, folder, server):
    """Let happen what the scenario says, and return once it is over."""
    victim = hosts[1]
    wait_until(lambda: {call.host for call in calls(folder)} == {host.name for host in hosts}, hosts, 120)
    if scenario.holds_lock:
        (folder / f"hold-{victim.name}").touch()
        wait_until(lambda: (folder / f"holds-{victim.name}").exists(), hosts, 60)
    else:
        before = len(calls(folder))
        wait_until(lambda: any(c.host == victim.name and c.what == "begin" for c in calls(folder)[before:]), hosts, 60)
        time.sleep(EVALUATION_S / 3)
    begin, end = {
        "cut": (victim.cut, victim.mend),
        "kill": (lambda: victim.signal(signal.SIGKILL), lambda: None),
        "suspend": (lambda: victim.signal(signal.SIGSTOP), lambda: victim.signal(signal.SIGCONT)),
        "restart": (server.stop, server.start),
    }[scenario.what]
    started = time.time()
    begin()
    wait_until(lambda: time.time() > started + scenario.seconds, hosts)
    end()
    (folder / f"go-{victim.name}").touch()
    return started


def counted(found, scenario, finished):
    """Return the cells of the table."""
    begun, ended = (Counter(call.plan for call in found if call.what == what) for what in ("begin", "end"))
    times = [call.at for call in found if call.what == "begin"]
    pauses = np.diff(times)
    twice = sum(count > 1 for count in ended.values())
    again = sum(count > 1 for count in begun.values())
    return [str(scenario.trials - finished), f"{twice} ({again})", f"{pauses.max():.0f}" if len(pauses) else "-"]


def run(name, scenario, server, s3_port, kind, package):
    from autonuq.study.locate import load_study

    with tempfile.TemporaryDirectory() as made, ExitStack() as last:
        folder = Path(made)
        study = re.sub(r"\W+", "-", name) + f"-{os.getpid()}"
        write_study(folder, study, scenario.trials)
        hosts = [kind(number + 1, folder) for number in range(HOSTS)]
        for host in hosts:
            environment = {
                **os.environ,
                "HOST": host.name,
                "PYTHONPATH": str(package),
                "OMP_NUM_THREADS": "1",
                "AWS_ENDPOINT_URL": f"http://{kind.address}:{s3_port}",
                "AWS_ACCESS_KEY_ID": "key",
                "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
            url = f"postgresql://tuner@{kind.address}:{server.port}/postgres"
            is_first = host is hosts[0]
            command = [
                sys.executable,
                str(SELF),
                "--worker",
                "tune" if is_first else "work",
                str(folder / "study.toml"),
            ]
            command += ["--storage", url, "--artifacts", f"s3://studies/{study}", "--out", str(folder / host.name)]
            last.callback(host.close)
            if not is_first and not can_wait(package):
                wait_until(lambda: calls(folder), hosts[:1], 60)
            command += ["--wait", "2m"] if not is_first and can_wait(package) else []
            host.run(command, environment, (server.port, s3_port))
        happen(scenario, hosts, folder, server)
        wait_until(lambda: load_study(study, server.url).record().counts.finished >= scenario.trials, hosts)
        wait_until(lambda: all(host.process.poll() is not None for host in hosts if host is not hosts[1]), hosts, 60)
        time.sleep(EVALUATION_S)  # the second one may run what another has finished
        cells = counted(calls(folder), scenario, load_study(study, server.url).record().counts.complete)
        said = [host.log.read_text() for host in hosts]
        for host, text in zip(hosts, said, strict=True):
            print(
                f"{name}, {host.name}, {host.process.poll()}: {text[-3000:] if 'Traceback' in text else text[-200:]}",
                file=sys.stderr,
            )
        return [*cells, str(sum("Traceback" in text for text in said))]


def can_wait(package):
    return (
        "--wait" in (package / "autonuq/cli/console.py").read_text() + (package / "autonuq/cli/studies.py").read_text()
    )


def work(arguments):
    """Be a host's worker: autonuq, but that it stops within the study's lock when it is told to."""
    from autonuq.cli import main
    from autonuq.study import claims

    folder, name = Path(arguments[1]).parent, os.environ["HOST"]
    made = claims.Claims.__init__

    def init(self, storage, *others):
        @contextmanager
        def exclusive(study):
            with storage.exclusive(study):
                if (folder / f"hold-{name}").exists() and not (folder / f"holds-{name}").exists():
                    (folder / f"holds-{name}").touch()
                    while not (folder / f"go-{name}").exists():
                        time.sleep(0.1)
                yield

        made(self, replace(storage, exclusive=exclusive), *others)

    claims.Claims.__init__ = init
    sys.argv = ["autonuq", *arguments]
    main()


def isolate():
    """Begin again within a network namespace of our own; return the kind of host that there can be."""
    if os.environ.get("IN_NAMESPACE"):
        ip("link", "set", "lo", "up")
        ip("link", "add", "br0", "type", "bridge")
        ip("addr", "add", f"{SERVER}/24", "dev", "br0")
        ip("link", "set", "br0", "up")
        return NamespaceHost
    trial = ["unshare", "--net", "ip", "link", "add", "br0", "type", "bridge"]
    if shutil.which("unshare") and shutil.which("ip") and subprocess.run(trial, check=False).returncode == 0:
        inside = ["unshare", "--net", sys.executable, str(SELF), *sys.argv[1:]]
        os.execvpe("unshare", inside, {**os.environ, "IN_NAMESPACE": "yes"})
    return ProxyHost


def s3_server(address):
    """Start moto's S3 with an empty bucket, and return its port."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    port = servers.free_port()
    ThreadedMotoServer(ip_address=address, port=port, verbose=False).start()
    options = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=f"http://{address}:{port}", **options).create_bucket(Bucket="studies")
    return port


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS), metavar="NAME")
    parser.add_argument("--package", type=Path, default=ROOT, help="checkout whose autonuq the hosts run")
    arguments = parser.parse_args()
    kind = isolate()
    names = ("optuna", "sqlalchemy", "psycopg", "moto")
    print(f"{os.cpu_count()} x {platform.machine()}, Python {platform.python_version()}, seed {SEED}, {kind.__name__},")
    print(", ".join(f"{name} {version(name)}" for name in names) + f"; an evaluation takes {EVALUATION_S:g} s\n")
    print("| second of three hosts | trials | lost | scored twice (begun) | longest pause, s | tracebacks |")
    print("|---|---:|---:|---:|---:|---:|")
    server = Server(sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1])
    try:
        s3_port = s3_server(kind.address)
        for name in arguments.only:
            scenario = SCENARIOS[name]
            cells = run(name, scenario, server, s3_port, kind, arguments.package)
            print(f"| {name} | {scenario.trials} | {' | '.join(cells)} |", flush=True)
    finally:
        server.remove()


if __name__ == "__main__":
    main()
