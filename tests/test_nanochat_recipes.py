"""The same command elsewhere: what each recipe runs, how it is stopped, and that its fields fit."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from nanochat.cli import config_from
from scripts import speedrun
from waiting import DEADLINE, until

FOLDER = Path(speedrun.__file__).parents[1] / "recipes"
COMMAND = "python -m scripts.speedrun --size=d20"
FAKE = """#!/bin/sh
echo "$(basename "$0") $*" >> "$NOTES"
"""
SLOW = f"""#!/bin/sh
trap 'sleep 0.3; echo saved >> "$NOTES"; exit 130' TERM
{FAKE}while :; do sleep 0.05; done
"""
QUANTITY = re.compile(r"\d+(\.\d+)?(m|[KMGT]i?)?")
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A repository whose programs only write down how they were called."""
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text("echo activate >> $NOTES\n")
    for name in ("python", "pip", "uv", "scontrol", "torchrun", "srun"):
        fake(programs / name, FAKE)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    monkeypatch.setenv("SLURM_SUBMIT_DIR", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    return tmp_path


def fake(path: Path, program: str) -> None:
    path.write_text(program)
    path.chmod(0o755)


def notes(place: Path) -> list[str]:
    path = place / "notes"
    return path.read_text().splitlines() if path.exists() else []


def warn(process: subprocess.Popen, place: Path, word: signal.Signals) -> None:
    """Send a signal when the command has begun."""
    until(lambda: COMMAND in notes(place), "the command")
    starter = psutil.Process(process.pid)
    until(lambda: starter.status() == psutil.STATUS_SLEEPING, "that who started it waits for it")
    process.send_signal(word)


def shell(script: str, place: Path) -> None:
    """Bash reads it, and runs it there."""
    for flags in (["-n"], []):
        subprocess.run(["bash", *flags, "-c", script], cwd=place, check=True, timeout=DEADLINE)


def test_the_command_of_the_recipes_is_known():
    """Eight GPUs are its default, each with a process of the stages that share them."""
    config = config_from(speedrun.Config, COMMAND.split()[3:])
    parallel = [stage for stage in speedrun.stages_of(config.size) if stage.parallel]
    assert {stage.source for stage in parallel} >= {"base", "mid", "sft", "rl"}
    assert all("--nproc_per_node=8" in stage.command(config.gpus) for stage in parallel)
    for name in ("slurm.sh", "kubernetes.yaml", "skypilot.yaml"):
        lines = (FOLDER / name).read_text().splitlines()
        assert sum(COMMAND in line for line in lines) == 1


# Slurm


def test_slurm_is_asked_for_eight_gpus_and_a_warning():
    """The warning goes to the batch shell alone, long before the time is over."""
    text = (FOLDER / "slurm.sh").read_text()
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", text, re.MULTILINE))
    assert len(asked) == text.count("#SBATCH")
    assert (asked["nodes"], asked["ntasks"], asked["gpus-per-node"]) == ("1", "1", "8")
    assert {"requeue", "time", "output"} <= asked.keys()
    assert asked["open-mode"] == "append"
    assert re.fullmatch(r"B:TERM@(\d+)", asked["signal"])


@pytest.mark.parametrize("code", [0, 3])
def test_a_slurm_job_ends_as_its_command_does(place, code):
    """Without going back into the queue."""
    fake(place / ".venv" / "bin" / "python", FAKE + f"exit {code}\n")
    done = subprocess.run(["bash", str(FOLDER / "slurm.sh")], timeout=DEADLINE)
    assert done.returncode == code
    assert notes(place) == ["activate", COMMAND]


def test_a_slurm_job_that_is_warned_saves_and_goes_back_into_the_queue(place):
    """In this order; the command hears it once."""
    fake(place / ".venv" / "bin" / "python", SLOW)
    job = subprocess.Popen(["bash", str(FOLDER / "slurm.sh")])
    warn(job, place, signal.SIGTERM)
    assert job.wait(timeout=DEADLINE) == 0
    assert notes(place) == ["activate", COMMAND, "saved", "scontrol requeue 77"]


# Kubernetes


def test_the_job_of_kubernetes_is_one():
    """Names, quantities, and that what is mounted is there; policies of failure want no restarts."""
    job = yaml.safe_load((FOLDER / "kubernetes.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    assert LABEL.fullmatch(job["metadata"]["name"])
    spec = job["spec"]["template"]["spec"]
    assert spec["restartPolicy"] == "Never"
    (box,) = spec["containers"]
    for quantity in (
        *box["resources"]["requests"].values(),
        spec["volumes"][1]["emptyDir"]["sizeLimit"],
    ):
        assert QUANTITY.fullmatch(quantity)
    assert box["resources"]["limits"] == {"nvidia.com/gpu": 8}
    volumes = {volume["name"] for volume in spec["volumes"]}
    assert {mount["name"] for mount in box["volumeMounts"]} == volumes
    results = {row["name"]: row["value"] for row in box["env"]}["NANOCHAT_BASE_DIR"]
    assert all(isinstance(row["value"], str) for row in box["env"])
    assert any(Path(results).is_relative_to(mount["mountPath"]) for mount in box["volumeMounts"])
    actions = [rule["action"] for rule in job["spec"]["podFailurePolicy"]["rules"]]
    assert actions == ["Ignore", "FailJob"]
    exits = job["spec"]["podFailurePolicy"]["rules"][1]["onExitCodes"]
    assert exits == {"containerName": box["name"], "operator": "In", "values": [2]}


def test_the_pod_of_kubernetes_is_the_command(place):
    """It takes the place of the shell, or the word to stop would not reach it."""
    job = yaml.safe_load((FOLDER / "kubernetes.yaml").read_text())
    (box,) = job["spec"]["template"]["spec"]["containers"]
    assert box["command"] == ["bash", "-c"]
    (script,) = box["args"]
    shell(script, place)
    assert notes(place)[-2:] == ["activate", COMMAND]
    assert notes(place)[:2] == ["pip install --quiet uv", "uv sync --quiet --extra data"]
    assert script.splitlines()[-1] == f"exec {COMMAND}"
    fake(place / ".venv" / "bin" / "uv", "#!/bin/sh\nexit 9\n")
    failed = subprocess.run(["bash", "-c", script], cwd=place, timeout=DEADLINE)
    assert failed.returncode == 1


# Others


def test_skypilot_runs_it_and_keeps_the_results(place):
    """In a bucket whose name is given, on machines that may be taken away."""
    task = yaml.safe_load((FOLDER / "skypilot.yaml").read_text())
    assert set(task) <= {"name", "workdir", "resources", "envs", "file_mounts", "setup", "run"}
    assert task["resources"]["accelerators"] == "H100:8"
    assert task["resources"]["use_spot"] is True
    ((mount, bucket),) = task["file_mounts"].items()
    assert bucket["name"] == "${BUCKET}"
    assert "BUCKET" in task["envs"]
    assert f"export NANOCHAT_BASE_DIR={mount}\n" in task["run"]
    shell(task["setup"] + task["run"], place)
    assert notes(place)[-2:] == ["activate", COMMAND]


def test_a_container_to_work_in_has_all_it_takes(place):
    """Its command finds the interpreter with the packages, and the results outlive it."""
    box = json.loads((FOLDER / "devcontainer.json").read_text())
    assert box["hostRequirements"]["gpu"] is True
    assert "--gpus=all" in box["runArgs"]
    results = box["containerEnv"]["NANOCHAT_BASE_DIR"]
    assert any(f"target={results}," in mount for mount in box["mounts"])
    assert box["remoteEnv"]["PATH"].startswith("${containerWorkspaceFolder}/.venv/bin:")
    shell(box["postCreateCommand"], place)
    assert notes(place) == ["pip install --quiet uv", "uv sync --quiet --extra data"]


@pytest.fixture
def modal_app():
    spec = importlib.util.spec_from_file_location("modal_app", FOLDER / "modal_app.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def speaking(place: Path) -> None:
    """A module in the place of the pipeline that says how it was called."""
    (place / "scripts").mkdir()
    (place / "scripts" / "__init__.py").touch()
    said = "import os, sys\nprint(*sys.argv[1:], os.environ.get('NANOCHAT_BASE_DIR'))\n"
    (place / "scripts" / "speedrun.py").write_text(said)


def test_modal_knows_two_machines(modal_app):
    """With GPUs and without, whose function runs the command."""
    modal = pytest.importorskip("modal", reason="an extra, which the tests' group brings")
    assert isinstance(modal_app.app, modal.App)
    assert {type(m) for m in (modal_app.train_on_gpus, modal_app.train_on_cpu)} == {modal.Function}
    assert modal_app.command(False, "python") == COMMAND.split()


def test_the_modal_file_runs_the_command_here(place):
    """By itself, with the folders of this machine."""
    speaking(place)
    done = subprocess.run(
        [sys.executable, str(FOLDER / "modal_app.py"), "--smoke"],
        cwd=place,
        env=os.environ | {"NANOCHAT_BASE_DIR": "mine"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=DEADLINE,
    )
    assert (done.returncode, done.stdout) == (0, "--size=smoke mine\n")


TRAIN = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("modal_app", sys.argv[1])
app = importlib.util.module_from_spec(spec)
spec.loader.exec_module(app)
app.INSIDE = "."
app.train()
"""


def train(place: Path, program: str) -> subprocess.Popen:
    """The function of a machine of Modal, whose command is this program."""
    fake(place / ".venv" / "bin" / "python", program)
    words = [sys.executable, "-c", TRAIN, str(FOLDER / "modal_app.py")]
    return subprocess.Popen(words, cwd=place, stderr=subprocess.PIPE)


@pytest.mark.parametrize("code", [0, 3])
def test_a_machine_of_modal_ends_as_its_command_does(place, code):
    """What is made goes into the volume."""
    process = train(place, FAKE + f'echo "$NANOCHAT_BASE_DIR" >> "$NOTES"\nexit {code}\n')
    _, said = process.communicate(timeout=DEADLINE)
    assert notes(place) == [COMMAND, "/results"]
    assert (process.returncode == 0) == (code == 0)
    assert (f"exit status {code}" in said.decode()) == (code != 0)


@pytest.mark.parametrize("word", [signal.SIGINT, signal.SIGTERM])
def test_a_machine_of_modal_that_is_taken_away_saves(place, word):
    """The command hears it once, and is waited for; Modal sees that it is not done."""
    process = train(place, SLOW)
    warn(process, place, word)
    _, said = process.communicate(timeout=DEADLINE)
    assert notes(place) == [COMMAND, "saved"]
    assert "KeyboardInterrupt" in said.decode()
