"""A real cluster of two nodes, each a set of processes of this machine: kills, bytes, tokens."""

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from waiting import until, until_gone

from fractal_core import Axis, Region, Store, Sweep, TinyNetworks, cluster, engine, raylink, warm
from fractal_core.agenda import Exit, Policy
from fractal_core.errors import Refused
from fractal_core.experiments import EXPERIMENTS
from fractal_core.machine import Slot
from fractal_core.store import ARRAYS

RAY = Path(sys.executable).with_name("ray")
REGION = Region(Axis("lr_input", 1e-2, 1e3, 48), Axis("lr_output", 1e-2, 1e3, 32))
SWEEP = Sweep.over(TinyNetworks(samples=64, steps=2000), REGION)

# What a node finds on its path: an experiment that this package does not have.
NAUGHTY = """
import os, signal
from dataclasses import dataclass
from fractal_core.experiments import EXPERIMENTS
from fractal_core.tiny import TinyNetworks

@dataclass(frozen=True)
class Naughty(TinyNetworks):
    how: str = ""

    def contract(self, seed):
        place = "a node" if self.how == "differ" and "RAY_RAYLET_PID" in os.environ else "anywhere"
        return {**super().contract(seed), "place": place}

    def run(self, points, *, seed, record=()):
        if self.how == "fail" and points[0, 0] < 1:
            raise RuntimeError(f"it broke at {points[0, 0]}")
        if self.how == "fail":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how.startswith("/"):
            try:
                os.close(os.open(self.how, os.O_CREAT | os.O_EXCL))
                os.kill(os.getppid(), signal.SIGKILL)
            except FileExistsError:
                pass
        return super().run(points, seed=seed, record=record)

EXPERIMENTS["Naughty"] = Naughty
"""
SITE = """
import sys
if any("default_worker" in word or word == "fractal_core.worker" for word in sys.orig_argv):
    import naughty
"""


class Nodes:
    """Two nodes with one CPU each, and all that was begun for them."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "naughty.py").write_text(NAUGHTY)
        (folder / "sitecustomize.py").write_text(SITE)
        (folder / "token").write_text(secrets.token_hex(32))
        (folder / "tmp").mkdir()
        self.client = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": f"{folder}/token",
            # Other tests may fill the memory of the machine; Ray would end workers for it.
            "RAY_memory_monitor_refresh_ms": "0",
        }
        self.started: list[subprocess.Popen] = []

    def start(self, *options: str) -> subprocess.Popen:
        """Begin a node and wait until it says that it is there."""
        log = self.folder / f"{len(self.started)}.txt"
        environment = {name: v for name, v in os.environ.items() if not name.startswith("RAY_")}
        environment |= {**self.client, "PYTHONPATH": str(self.folder)}
        environment |= {"TMPDIR": f"{self.folder}/tmp", "RAY_USAGE_STATS_ENABLED": "0"}
        environment.pop("RAY_ADDRESS", None)
        settings = ["--num-cpus", "1", "--object-store-memory", "80000000", "--block"]
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [RAY, "start", *options, *settings],
                stdout=sink,
                stderr=sink,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
        self.started.append(process)
        until(lambda: process.poll() or b"Ray runtime started" in log.read_bytes(), "the node")
        assert process.poll() is None, log.read_text()
        return process

    def start_head(self) -> str:
        """Begin the node that the others join, at a port that it finds free itself; its address."""
        options = ["--port", "0", "--temp-dir", f"{self.folder}/r", "--include-dashboard", "false"]
        self.start("--head", *options)
        said = (self.folder / "0.txt").read_text()
        port = re.search(r"--address='[^']*:(\d+)'", said)
        assert port, said
        self.client["RAY_ADDRESS"] = f"127.0.0.1:{port[1]}"
        return self.client["RAY_ADDRESS"]

    def at_work(self) -> list[bool]:
        """Whether a node has an agent, for each of them."""
        return [bool(family(process, "ray::Agent")) for process in self.started]

    def end(self) -> None:
        for process in self.started:
            kill(family(process))
            process.wait()


def family(process: subprocess.Popen, name: str = "") -> list[psutil.Process]:
    """The processes of the session of one that was begun, whoever is their parent by now."""
    found = []
    for one in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):  # any of them may end while we look
            if os.getsid(one.pid) == process.pid and one.name().startswith(name):
                found.append(one)
    return found


def kill(processes: Iterable[psutil.Process]) -> None:
    """All of them; the end of one may end others first."""
    for one in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    # The paths of Ray's sockets are long already, so not in the folder of the tests.
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="rt-") as folder:
        nodes = Nodes(Path(folder))
        try:
            nodes.start("--address", nodes.start_head())
            yield nodes
        finally:
            nodes.end()


@pytest.fixture
def joined(nodes, monkeypatch) -> Nodes:
    """The cluster as this process, and those that it starts, are told of it."""
    for name in {*os.environ, *nodes.client}:
        if name.startswith("RAY_"):
            monkeypatch.delenv(name, raising=False)  # what is set meanwhile goes again
    for name, value in nodes.client.items():
        monkeypatch.setenv(name, value)
    return nodes


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Store:
    store = Store.create(tmp_path_factory.mktemp("clean") / "run", SWEEP, block=8)
    for _ in engine.run_here(store):
        pass
    return store


def fractal(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fractal_core", "run", str(path), "--engine", "ray"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )


def run(store: Store, **policy) -> Iterator[Exit]:
    hire = cluster.hire(store.sweep.experiment.devices)
    return engine.run(store, hire, policy=Policy(**{"backoff": 0.1, **policy}))


def events(store: Store, what: str) -> list[dict]:
    lines = (store.path / "state" / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == what]


def assert_equal(store: Store, clean: Store) -> None:
    """All units are there, each was committed once, and every bit is that of the other run."""
    assert store.missing() == []
    assert max(Counter(event["unit"] for event in events(store, "committed")).values()) == 1
    assert store.files.list("quarantine") == []
    for unit in store.units.values():
        mine, theirs = store.read(unit), clean.read(unit)
        for name in ARRAYS:
            if name != "seconds":
                np.testing.assert_array_equal(mine[name], theirs[name])


def naughty(joined: Nodes, monkeypatch, path: Path, how: str) -> Store:
    """A run of the experiment that only nodes were told of; now this process is, too."""
    monkeypatch.syspath_prepend(joined.folder)
    import naughty

    EXPERIMENTS.pop("Naughty", None)
    monkeypatch.setitem(EXPERIMENTS, "Naughty", naughty.Naughty)
    experiment = naughty.Naughty(samples=8, steps=30, how=how)
    region = Region(replace(REGION.x, points=16), replace(REGION.y, points=8))
    return Store.create(path, Sweep.over(experiment, region), block=8)


def node(name: str, **resources: float) -> dict:
    return {"NodeID": name, "Alive": True, "Resources": resources}


def test_a_node_gives_one_place_and_a_gpu_gives_one_too():
    """CPUs go with the node, GPUs are counted one by one, and a dead node has neither."""
    two = [node("a", CPU=8.0), node("b", CPU=16.0, GPU=2.0), node("c", CPU=64.0) | {"Alive": False}]
    whole = [(p.node, p.slot, p.cpus, p.gpus) for p in cluster.places(two, ("cpu",))]
    assert whole == [("a", Slot(0, "cpu", 8), 8.0, 0.0), ("b", Slot(1, "cpu", 16), 16.0, 0.0)]
    fast = [(p.node, p.slot, p.cpus, p.gpus) for p in cluster.places(two, ("cuda", "cpu"))]
    assert fast == [("b", Slot(0, "cuda", 8), 8.0, 1.0), ("b", Slot(1, "cuda", 8), 8.0, 1.0)]


def test_many_places_share_what_there_is():
    """What they reserve together is never more than a node has, or they would wait for ever."""
    for count in (1, 3, 7, 50):
        found = cluster.places([node("a", CPU=4.0, GPU=2.0), node("b", CPU=3.0)], ("cuda",), count)
        assert len(found) == count
        assert round(sum(p.cpus for p in found), 9) <= 4.0
        assert round(sum(p.gpus for p in found), 9) <= 2.0
        found = cluster.places([node("a", CPU=4.0), node("b", CPU=3.0)], ("cpu",), count)
        for name, cpus in (("a", 4.0), ("b", 3.0)):
            assert round(sum(p.cpus for p in found if p.node == name), 9) <= cpus


def test_a_cluster_without_the_device_is_refused():
    """One sentence that says how to add it."""
    with pytest.raises(Refused, match=r"trains on cuda and none of the 1 nodes .*ray start"):
        cluster.places([node("a", CPU=8.0)], ("cuda",))


def test_without_ray_one_sentence_says_how_to_install_it(monkeypatch):
    """It is asked for before anything is begun."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(Refused, match=r"uv sync --extra ray.*pip install 'fractal-llm\[ray\]'"):
        cluster.hire(("cpu",))


@pytest.mark.parametrize("slots", [0, -1, 10**6])
def test_a_number_of_slots_that_makes_no_sense_is_refused(slots):
    """Like on one machine."""
    with pytest.raises(Refused, match="slots"):
        cluster.hire(("cpu",), slots)


@pytest.mark.parametrize(
    ("address", "says"),
    [("127.0.0.1:1", "no cluster answers"), ("ray://a:1", "HOST:PORT"), ("head", "HOST:PORT")],
)
def test_an_address_where_no_cluster_is_is_refused(monkeypatch, address, says):
    """At once, and with the address in the sentence."""
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(Refused, match=rf"RAY_ADDRESS={address}.*{says}"), raylink.joined():
        pass


def test_a_token_is_made_once_and_for_its_owner_only(tmp_path, monkeypatch):
    """A file that nobody else can read; one that is there is kept."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    raylink.require_token()
    (token,) = (tmp_path / ".ray").iterdir()
    assert token.name == "auth_token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.parent.stat().st_mode & 0o777 == 0o700
    before = token.read_text()
    assert len(before) >= 32
    raylink.require_token()
    assert token.read_text() == before


def test_a_warm_process_that_knows_another_cluster_is_not_asked(monkeypatch):
    """A detached run goes to the cluster that its own command was told of."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    here = warm.address()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert warm.address() != here


def test_an_agent_needs_nothing_of_the_run_folder(tmp_path):
    """It works from bytes, and bytes are what it gives back; its own folder goes with it."""
    store = Store.create(tmp_path / "run", SWEEP, block=8)
    recipe = {name: store.files.get(name) for name in cluster.RECIPE}
    store.path.rename(tmp_path / "elsewhere")
    agent = cluster.Agent(recipe, Slot(0, "cpu", 1))
    assert agent.open()[1] == ""
    unit = store.missing()[0]
    exit, data = agent.do(engine.Order(unit, len(unit.cells()[0])))
    assert exit.code == 0
    assert Store(tmp_path / "elsewhere", SWEEP).accept(unit, data)
    folder = agent._path
    agent.leave()
    assert not folder.exists()


def test_a_cluster_answers_with_the_same_bits(joined, tmp_path, uninterrupted):
    """Both nodes work, what they send is committed here, and nothing stays on them."""
    before = signal.getsignal(signal.SIGTERM)
    store = Store.create(tmp_path / "run", SWEEP, block=8)
    for exit in run(store):
        assert exit.code == 0
        assert exit.committed
        assert signal.getsignal(signal.SIGTERM) is before
        # One may begin late; none ends before the last of the exits was read here.
        until(lambda: all(joined.at_work()), "an agent on each node")
    assert_equal(store, uninterrupted)
    (started,) = events(store, "started")
    assert [(slot["device"], slot["threads"]) for slot in started["slots"]] == [("cpu", 1)] * 2
    assert list((joined.folder / "tmp").glob("fractal-node-*")) == []
    token = (joined.folder / "token").read_bytes()
    files = [file for file in store.path.rglob("*") if file.is_file()]
    assert not any(token in file.read_bytes() for file in files)


def test_a_unit_that_fails_says_why_and_harms_no_other(joined, tmp_path, monkeypatch):
    """An error keeps its words and its log, a process that dies its signal, on any node."""
    store = naughty(joined, monkeypatch, tmp_path / "run", "fail")
    final = {exit.order.unit.key: exit for exit in run(store, attempts=2, alike=9) if exit.final}
    assert set(final) == set(store.units)
    assert Counter(exit.code for exit in final.values()) == {4: 4, -signal.SIGKILL: 1}
    assert all(
        exit.cause.startswith("RuntimeError: it broke at")
        if exit.code == 4
        else exit.cause == "killed by SIGKILL"
        for exit in final.values()
    )
    assert "Traceback" in next(iter(store.failures().values()))["log"]


def test_an_actor_that_dies_is_replaced(joined, tmp_path, monkeypatch):
    """What it had in hand is done again, and does not count as an attempt."""
    flag = tmp_path / "flag"
    store = naughty(joined, monkeypatch, tmp_path / "run", str(flag))
    exits = list(run(store, attempts=1))
    assert flag.exists()
    assert store.missing() == []
    assert [exit.code for exit in exits if exit.code] == [75]


def test_a_cluster_without_room_ends_the_run(joined, tmp_path):
    """Not for ever: after a while it is one sentence."""
    store = Store.create(tmp_path / "run", SWEEP, block=8)

    def hire(store: Store) -> cluster.RayCrew:
        with contextlib.ExitStack() as stay:
            ray = stay.enter_context(raylink.joined())
            here = ray.nodes()[0]["NodeID"]
            much = cluster.Place(here, Slot(0, "cpu", 64), cpus=64.0, gpus=0.0)
            return cluster.RayCrew(store, ray, [much], stay.pop_all(), placing=0.5)

    with pytest.raises(Refused, match="no node of the cluster had room"):
        list(engine.run(store, hire))


def test_a_node_with_other_code_is_refused(joined, tmp_path, monkeypatch):
    """In the words that tell what differs, before it has done anything."""
    store = naughty(joined, monkeypatch, tmp_path / "run", "differ")
    with pytest.raises(Refused, match=r"node .*place was anywhere and is a node"):
        list(run(store))
    assert store.files.list("units") == store.files.list("failures") == []


def test_the_cluster_takes_nobody_without_its_token(joined, tmp_path, monkeypatch):
    """Another token is one sentence and exit code 2."""
    (tmp_path / "token").write_text("0" * 64)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    process = fractal(Store.create(tmp_path / "run", SWEEP, block=8).path)
    _, said = process.communicate()
    assert process.returncode == 2
    assert said.count("\n") == 1
    assert "does not take our token" in said


def wait_for(store: Store, units: int, process: subprocess.Popen) -> None:
    """Wait until so many units are there, with more to come."""
    until(lambda: process.poll() or len(store.files.list("units")) >= units, "some units")
    assert process.poll() is None, process.communicate()
    assert store.missing(), "the run ended before anything could be killed; make it longer"


def test_a_killed_supervisor_and_a_killed_node_lose_nothing(joined, tmp_path, uninterrupted):
    """The same command goes on, and ends the run on the node that is left."""
    store = Store.create(tmp_path / "run", SWEEP, block=8)
    first = fractal(store.path)
    wait_for(store, 3, first)
    first.kill()
    first.communicate()
    finished = {key: store.files.get(key) for key in store.files.list("units")}
    second = fractal(store.path)
    wait_for(store, len(finished) + 4, second)
    (raylet,) = family(joined.started[1], "raylet")
    raylet.kill()
    _, said = second.communicate()
    assert second.returncode == 0, said
    assert all(store.files.get(key) == data for key, data in finished.items()), "done again"
    assert events(store, "failed") == []
    assert_equal(store, uninterrupted)


def test_a_cluster_begun_here_is_this_machines_alone_and_may_die(
    joined, tmp_path, uninterrupted, monkeypatch
):
    """It wants its token and hears this machine only; killed, the same command begins another."""
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    store = Store.create(tmp_path / "run", SWEEP, block=8)
    command = fractal(store.path)
    wait_for(store, 4, command)
    begun = psutil.Process(command.pid).children(recursive=True)
    modes, ports = {}, []
    for one in begun:
        with contextlib.suppress(psutil.NoSuchProcess):  # what only helps may have ended
            modes[one.name()] = one.environ().get("RAY_AUTH_MODE")
            ports += [port for port in one.net_connections("inet") if not port.raddr]
    assert modes["gcs_server"] == modes["raylet"] == "token"
    assert {port.laddr.ip.removeprefix("::ffff:") for port in ports} == {"127.0.0.1"}
    assert store.missing(), "the run ended before anything could be killed; make it longer"
    kill(begun)
    _, said = command.communicate()
    assert command.returncode == 2, said
    assert re.search(r"^fractal: the head .* is gone; .* the same command goes on$", said, re.M)
    assert store.missing()
    again = fractal(store.path)
    wait_for(store, len(store.files.list("units")) + 1, again)
    begun = psutil.Process(again.pid).children(recursive=True)
    _, said = again.communicate()
    assert again.returncode == 0, said
    for one in begun:
        until_gone(one.pid)
    assert_equal(store, uninterrupted)
