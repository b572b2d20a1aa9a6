"""The mirror at Weights & Biases: what it sends, and that nothing depends on it."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mischief
import numpy as np
import pytest
import standin
from standin import heard
from terminal import fractal
from waiting import DEADLINE, Program, until, until_gone

from fractal_core import (
    Axis,
    Outcome,
    Refused,
    Region,
    Store,
    Sweep,
    TinyNetworks,
    duty,
    mirror,
    tracking,
)
from fractal_core.engine import run_here
from fractal_core.experiments import open_run
from fractal_core.tracking import Unsent

TINY = TinyNetworks(samples=8, steps=30)
HEX = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_abcdefghijklmnopqrst"


def make(path: Path, rows: int = 12, cols: int = 10) -> Store:
    region = Region(
        Axis("lr_input", 1e-3, 1e6, points=cols), Axis("lr_output", 1e-3, 1e6, points=rows)
    )
    return Store.create(path, Sweep.over(TINY, region))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished sweep; tests take copies."""
    store = make(tmp_path_factory.mktemp("runs") / "done")
    for _ in run_here(store):
        pass
    return store.path


@pytest.fixture
def store(finished, tmp_path) -> Store:
    shutil.copytree(finished, tmp_path / "run")
    return open_run(tmp_path / "run")


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    """No key, no settings and no home of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in (*tracking.QUIET, "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, "")  # so that what is set here is taken back
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))


@pytest.fixture
def client(tmp_path, monkeypatch) -> Path:
    """The stand-in, here and in every process that begins; a key is there."""
    folder = tmp_path / "standin"
    folder.mkdir()
    standin.install(folder)
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("STANDIN", str(folder))
    monkeypatch.setenv("WANDB_API_KEY", HEX)
    monkeypatch.setitem(sys.modules, "wandb", standin)
    standin.teardown()
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: object())
    return folder


def logged(name: str) -> list:
    return [line["told"][name] for line in heard("log") if name in line["told"]]


def one_run(path: Path, steps: int = 3) -> Store:
    """The folder of one run with its curve, as it is after so many steps."""
    store = make(path, 1, 1)
    single = path / "single"
    single.mkdir()
    rows = [
        {"step": k, "loss": 3.0 - k, "lr_matrix": 1e-3, "lr_embedding": 1e-2, "tokens": 8 * k}
        | {"lr_unembedding": 1e-4, "memory": 100 + k % 2, "seconds": 0.1}
        | ({"val_loss": 2.5} if k == 1 else {})
        for k in range(steps)
    ]
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    (single / "metrics.jsonl").write_text(lines + '{"step": 99, "lo')
    sample = {"question": "who?", "expected": "he", "before": "??", "after": f"he {TOKEN}"}
    (single / "samples.json").write_text(json.dumps([sample]))
    (single / "result.json").write_text(
        json.dumps({"outcome": "TRAINABLE", "ratio": 0.5, "checkpoint": "/home/me"})
    )
    (single / "checkpoint").mkdir()
    (single / "checkpoint" / "model_000003.pt").write_bytes(b"weights")
    return store


def test_a_sweep_is_one_run_under_its_own_id(store, client):
    """Progress, pictures, a row for every point, a summary, the arrays; and again in the same run."""
    assert mirror.send(store) == f"{store.path}: sent to https://example.org/run"
    (begun,) = heard("init")
    assert (begun["id"], begun["resume"], begun["job_type"]) == (store.sweep.id, "allow", "sweep")
    assert (begun["mode"], begun["project"]) == ("online", "fractal-llm")
    assert store.sweep.id in begun["tags"]
    assert begun["config"]["settings"]["steps"] == 30
    assert begun["config"]["x"]["low"] == 1e-3
    assert logged("points_done") == [120]
    assert logged("map") == [{"size": [420, 504]}]
    assert logged("figure")
    (table,) = logged("table")
    image = store.image()
    told = dict(zip(table["columns"], np.array(table["data"], dtype=object).T, strict=True))
    assert told["x"].reshape(12, 10)[0].tolist() == store.sweep.grid.x.tolist()
    assert told["y"].reshape(12, 10)[:, 0].tolist() == store.sweep.grid.y.tolist()
    names = [Outcome(label).name for label in image.outcome.compressed()]
    assert told["outcome"].tolist() == names
    assert told["steps"].tolist() == image.steps.compressed().tolist()
    losses = image.final_loss.compressed()
    assert [v for v in told["final_loss"] if v is not None] == losses[np.isfinite(losses)].tolist()
    (summary,) = heard("summary")
    trained = names.count("TRAINABLE")
    assert summary["told"]["trainable"] == trained
    assert summary["told"]["share_trainable"] == trained / 120
    assert summary["told"]["dimension_verdict"] == "unresolved"
    (artifact,) = heard("artifact")
    with np.load(Path(artifact["at"]) / "map.npz") as arrays:
        assert np.array_equal(arrays["outcome"], image.outcome.filled(0))
    sent = (Path(artifact["at"]) / "sweep.json").read_bytes()
    assert sent == (store.path / "sweep.json").read_bytes()
    assert heard("wait")
    assert heard("finish")
    mirror.send(store)
    assert {line["id"] for line in heard("init")} == {store.sweep.id}
    assert len(heard("finish")) == 2


def test_nothing_of_the_machine_is_sent(store, client):
    """No code, output, environment or reports of errors, and no interrupt when somebody says stop."""
    mirror.send(store)
    (begun,) = heard("init")
    settings = begun["settings"]
    assert settings["console"] == "off"
    assert settings["save_code"] is False
    for name in ("git", "job_creation"):
        assert settings[f"disable_{name}"] is True
    for name in ("stats", "meta", "machine_info"):
        assert settings[f"x_disable_{name}"] is True
    assert settings["x_save_requirements"] is False
    assert begun["environment"] == {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}


def test_a_single_run_sends_its_curve(tmp_path, client):
    """Step by step on its own axis, with samples, memory, result and checkpoint."""
    store = one_run(tmp_path / "one")
    mirror.send(store)
    (begun,) = heard("init")
    assert (begun["job_type"], begun["name"]) == ("finetune", "one-ft")
    assert {"what": "metric", "name": "*", "step_metric": "global_step"}.items() <= heard("metric")[
        1
    ].items()
    assert logged("global_step") == [0, 1, 2]
    assert logged("loss") == [3.0, 2.0, 1.0]
    assert logged("val/loss") == [2.5]
    for name in ("lr_matrix", "lr_embedding", "lr_unembedding", "memory"):
        assert len(logged(name)) == 3
    (table,) = logged("samples")
    assert table == {
        "columns": list(tracking.SAMPLES),
        "data": [["who?", "he", "??", "he [redacted]"]],
    }
    (summary,) = heard("summary")
    assert summary["told"] == {"outcome": "TRAINABLE", "ratio": 0.5, "peak_memory": 101}
    files, model = heard("artifact")
    assert set(files["files"]) == {"sweep.json", "metrics.jsonl", "samples.json", "result.json"}
    assert (model["type"], list(model["files"])) == ("model", ["model_000003.pt"])


def test_steps_that_are_there_are_not_sent_twice(tmp_path, client):
    """A run that goes on has the steps that were sent before."""
    mirror.send(one_run(tmp_path / "one", steps=3))
    shutil.rmtree(tmp_path / "one")
    mirror.send(one_run(tmp_path / "one", steps=5))
    assert logged("global_step") == [0, 1, 2, 3, 4]


def test_no_secret_is_sent(tmp_path, client, monkeypatch):
    """Not from a name, a text, a recipe or a result, nor in the files."""
    monkeypatch.setenv("WANDB_RUN", f"run {TOKEN}")
    store = one_run(tmp_path / "one")
    (store.path / "single" / "result.json").write_text(json.dumps({"from": f"me:{TOKEN}", HEX: 1}))
    mirror.send(store)
    (client / "wandb.py").unlink()
    sent = [file for line in heard("artifact") for file in Path(line["at"]).rglob("*")]
    assert [file.name for file in sent if TOKEN in file.read_text()] == []
    told = (client / "heard.jsonl").read_text()
    assert "[redacted]" in told
    assert TOKEN not in told
    assert HEX not in told


@pytest.mark.parametrize(
    ("given", "netrc", "mode"),
    [
        ({}, "", "offline"),
        ({"WANDB_API_KEY": HEX}, "", "online"),
        ({"WANDB_API_KEY": HEX, "WANDB_MODE": "offline"}, "", "offline"),
        ({"WANDB_MODE": "online"}, "", "online"),
        ({}, f"machine api.wandb.ai login user password {HEX}", "online"),
        (
            {"WANDB_BASE_URL": "https://w.example.org"},
            f"machine api.wandb.ai password {HEX}",
            "offline",
        ),
        (
            {"WANDB_BASE_URL": "https://w.example.org"},
            f"machine w.example.org password {HEX}",
            "online",
        ),
        ({}, "machine", "offline"),
    ],
)
def test_it_is_offline_without_a_key(client, tmp_path, monkeypatch, given, netrc, mode):
    """The environment and netrc say whether there is one."""
    monkeypatch.delenv("WANDB_API_KEY")
    for name, value in {**given, "WANDB_PROJECT": "mine"}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / ".netrc").write_text(f"{netrc}\n")
    (tmp_path / ".netrc").chmod(0o600)
    said = mirror.send(one_run(tmp_path / "one"))
    (begun,) = heard("init")
    assert (begun["mode"], begun["project"]) == (mode, "mine")
    assert ("wandb login" in said) == (mode == "offline")
    assert bool(heard("wait")) == (mode == "online")


@pytest.mark.parametrize("mode", ["down", "bad key", "busy", "slow", "ended"])
def test_trouble_is_one_sentence_with_the_remedy(tmp_path, client, mode):
    """Whatever the server does; the same command sends it all when it is well again."""
    store = one_run(tmp_path / "one")
    (client / "mode").write_text(mode)
    reason = standin.TROUBLE[mode][1] or "it ended the run"
    with pytest.raises(Unsent, match=reason) as refused:
        mirror.send(store)
    assert f"`fractal track {store.path}` sends it again" in str(refused.value)
    assert "\n" not in str(refused.value)
    (client / "mode").unlink()
    assert "sent to" in mirror.send(store)


def test_a_server_that_comes_back_is_sent_what_it_missed(store, client, monkeypatch):
    """While the run goes on, from the same process."""
    monkeypatch.setattr(mirror, "STATUS_SECONDS", 0.05)
    (client / "mode").write_text("down")
    said: list[str] = []
    with duty.lock(store.path):
        follower = threading.Thread(target=lambda: said.append(mirror.follow(store)))
        follower.start()
        until(lambda: len(heard("init")) > 1, "a second try")
        (client / "mode").unlink()
        until(lambda: logged("points_done") and logged("map"), "what it missed")
    follower.join()
    assert said == [f"{store.path}: sent to https://example.org/run"]


def test_a_large_map_is_sent_as_a_lattice(store, monkeypatch):
    """Every second row and column, so that the table can be read; points of the map itself."""
    monkeypatch.setattr(tracking, "MOST_ROWS", 40)
    rows, stride = tracking.points(store.image())
    assert (len(rows), stride) == (30, 2)
    assert {row[0] for row in rows} == set(store.sweep.grid.x[::2])
    assert {row[1] for row in rows} == set(store.sweep.grid.y[::2])


def test_one_process_at_a_time_sends_a_run(store, client):
    """Two would mix their histories."""
    with mirror._alone(store.path), pytest.raises(Refused, match="by another process"):
        mirror.send(store)
    assert heard() == []


def test_without_the_client_there_is_one_sentence(monkeypatch):
    """And it says what installs it."""
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Refused, match="uv sync"):
        tracking.require_client()


def begin(path: Path, *options: str) -> Program:
    return Program(
        [sys.executable, "-m", "fractal_core", *options, str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_sweep_ends_green_though_the_server_is_down(tmp_path, client):
    """Exit 0, all units, one line with what to do from another process; and that command works."""
    store = make(tmp_path / "run")
    (client / "mode").write_text("down")
    with begin(store.path, "run", "--track") as run:
        _, err = run.communicate(timeout=DEADLINE)
    assert run.returncode == 0, err
    assert store.missing() == []
    last = err.splitlines()[-1]
    assert last.startswith(
        "fractal: Weights & Biases did not begin a run (connect: connection refused)"
    )
    assert last.endswith(f"`fractal track {store.path}` sends it again")
    (follower,) = {line["process"] for line in heard("init")}
    assert follower != run.pid
    until_gone(follower)
    (client / "mode").unlink()
    answer = fractal("track", str(store.path), cwd=tmp_path)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout == f"{store.path}: sent to https://example.org/run\n"


@pytest.mark.usefixtures("laboratory")
def test_a_run_is_mirrored_while_it_goes_on(tmp_path, client):
    """Progress and a picture are there before the end, from a process that is none of the run's."""
    store = mischief.make(tmp_path / "run", 16, 16)
    last = list(store.units.values())[-1]
    mischief.tell(store, "wait go", last)
    with begin(store.path, "run", "--track") as run:
        until(lambda: logged("map"), "a picture")
        assert store.missing()
        assert run.poll() is None
        (follower,) = {line["process"] for line in heard()}
        workers = {int(slot["process"]) for slot in mirror.control.progress(store).slots}
        mischief.go(store)
        _, err = run.communicate(timeout=DEADLINE)
    assert run.returncode == 0, err
    assert follower not in {run.pid, *workers}
    assert logged("points_done")[-1] == 256
    assert len(heard("init")) == 1
    assert err.endswith(f"{store.path}: sent to https://example.org/run\n")


@pytest.mark.usefixtures("laboratory")
def test_a_mirror_that_hangs_or_is_killed_is_no_part_of_the_run(tmp_path, client):
    """The run ends as it would without."""
    (client / "mode").write_text("hangs")
    store = mischief.make(tmp_path / "run", 16, 16)
    with begin(store.path, "run", "--track") as run:
        until(lambda: heard("init"), "the mirror")
        until(lambda: not store.missing(), "the end of the run")
        os.kill(heard("init")[0]["process"], signal.SIGKILL)
        _, err = run.communicate(timeout=DEADLINE)
    assert run.returncode == 0, err
    assert "state/track.txt" in err.splitlines()[-1]


@pytest.mark.usefixtures("laboratory")
def test_a_detached_run_is_mirrored_too(tmp_path, client):
    """By a second process, and both end by themselves."""
    store = mischief.make(tmp_path / "run", 16, 16)
    answer = fractal("run", str(store.path), "--detach", "--track", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "mirrors it, log in" in answer.stdout
    log = store.path / "state" / "track.txt"
    until(lambda: "sent to" in log.read_text(), "the mirror's last word")
    assert store.missing() == []


def test_a_client_that_hangs_has_an_end(store, client):
    """The limit does not depend on it."""
    (client / "mode").write_text("hangs")
    code = (
        "import sys; from fractal_core import mirror; from fractal_core.__main__ import main\n"
        f"mirror.GRACE_SECONDS = 0.0; sys.argv = ['fractal', 'track', {str(store.path)!r}, "
        "'--patience', '0.1']; main()"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1
    assert answer.stderr.startswith("fractal: Weights & Biases hangs; ")


def test_the_client_itself_writes_into_the_folder_when_it_is_offline(store, tmp_path, monkeypatch):
    """All that was asked for, and none of the environment."""
    monkeypatch.setenv("MY_SECRET", "swordfish9")
    answer = fractal("track", str(store.path), cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "after `wandb login`" in answer.stdout
    assert answer.stdout.count("\n") == 1
    (record,) = (store.path / "wandb").glob(f"offline-run-*/run-{store.sweep.id}.wandb")
    data = record.read_bytes()
    for name in (b"share_trainable", b"points_done", b"map", b"table", b"sweep.json"):
        assert name in data
    files = [path for path in (store.path / "wandb").rglob("*") if path.is_file()]
    assert [path for path in files if b"swordfish9" in path.read_bytes()] == []
    assert [path for path in files if path.suffix == ".py"] == []


class Server(BaseHTTPRequestHandler):
    """A server that gives everyone the same answer, some time later."""

    code, seconds = 401, 0.0

    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        time.sleep(self.seconds)
        try:
            self.send_response(self.code)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")
        except OSError:
            return  # the client has given up

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def served(code: int, seconds: float) -> Iterator[str]:
    """The address of such a server."""
    handler = type("Handler", (Server,), {"code": code, "seconds": seconds})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_the_client_itself_and_a_server_that_does_not_know_the_key(store, tmp_path, monkeypatch):
    """One line and exit 2; nothing of the client is left in the folder."""
    monkeypatch.setenv("WANDB_API_KEY", HEX)
    with served(401, 0.0) as address:
        monkeypatch.setenv("WANDB_BASE_URL", address)
        answer = fractal("track", str(store.path), "--patience", str(DEADLINE), cwd=tmp_path)
    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1, answer.stderr
    assert "error 401" in answer.stderr
    assert answer.stderr.startswith("fractal: Weights & Biases did not begin a run")
    assert not (store.path / "wandb").exists()


@pytest.mark.faults
def test_the_client_itself_and_servers_in_every_trouble(tmp_path, monkeypatch):
    """Down, 429, slow, bad key, while sweeps are trained: they end green, the mirrors end."""
    monkeypatch.setenv("WANDB_API_KEY", HEX)
    troubles = {"busy": (429, 0.0), "slow": (200, 10.0), "key": (401, 0.0)}
    with contextlib.ExitStack() as servers:
        addresses = {name: servers.enter_context(served(*how)) for name, how in troubles.items()}
        running = []
        for name, address in {"down": "http://127.0.0.1:9", **addresses}.items():
            monkeypatch.setenv("WANDB_BASE_URL", address)
            store = make(tmp_path / name)
            running.append((store, begin(store.path, "run"), mirror.start(store.path, 3.0)))
        for store, run, follower in running:
            _, err = run.communicate(timeout=2 * DEADLINE)
            assert run.returncode == 0, err
            assert store.missing() == []
            last = follower.last_words()
            assert last.endswith(f"`fractal track {store.path}` sends it again")
            assert follower.process.returncode == 2
            assert re.search(r"connection refused|HTTP 429|deadline exceeded|error 401", last)
            print(last)
