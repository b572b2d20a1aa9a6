"""Slots: which devices a run gets, and what it is told when they are not there."""

import os
import sys
from types import SimpleNamespace

import pytest

from fractal_core import Refused, machine, watching
from fractal_core.commands.health import doctor


class Trouble(Exception):
    """What the driver's library raises."""


def driver(count: int, holders: tuple[int, ...] = ()) -> SimpleNamespace:
    """A stand-in for nvidia-ml-py on a machine with so many GPUs."""
    return SimpleNamespace(
        NVMLError=Trouble,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: count,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda handle: f"GPU number {handle}",
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=2**30, total=2**36),
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=7),
        nvmlDeviceGetComputeRunningProcesses=lambda handle: [
            SimpleNamespace(pid=pid) for pid in holders
        ],
    )


QUESTIONS = {
    "memory": "nvmlDeviceGetMemoryInfo",
    "load": "nvmlDeviceGetUtilizationRates",
    "processes": "nvmlDeviceGetComputeRunningProcesses",
}


def silent(*about: str) -> SimpleNamespace:
    """The driver of a GPU that is asked in vain about these."""

    def fail(handle):
        raise Trouble("not supported")

    gpu = driver(1, holders=(os.getpid(),))
    for what in about:
        setattr(gpu, QUESTIONS[what], fail)
    return gpu


def no_driver() -> SimpleNamespace:
    def fail():
        raise Trouble("no driver")

    return SimpleNamespace(NVMLError=Trouble, nvmlInit=fail)


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    monkeypatch.setenv("FRACTAL_THREADS", "8")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", no_driver())


def test_slots_divide_the_threads_of_the_cpu():
    """Three workers on eight threads have two each, and so do three named ones."""
    for slots in (machine.slots(("cpu",), 3), machine.slots(("cpu",), devices=("cpu",) * 3)):
        assert [(slot.index, slot.device, slot.threads) for slot in slots] == [
            (0, "cpu", 2),
            (1, "cpu", 2),
            (2, "cpu", 2),
        ]
        assert slots[0].environment["FRACTAL_THREADS"] == "2"


def test_every_gpu_is_a_slot(monkeypatch):
    """Found by themselves, where the experiment can use them; a worker sees one."""
    monkeypatch.setitem(sys.modules, "pynvml", driver(2))
    slots = machine.slots(("cuda", "cpu"))
    assert [slot.device for slot in slots] == ["cuda:0", "cuda:1"]
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["0", "1"]
    assert [slot.device for slot in machine.slots(("cpu",))] == ["cpu"]
    assert len(machine.slots(("cuda", "cpu"), count=2)) == 4


def test_a_scheduler_decides_which_gpus_are_seen(monkeypatch):
    """cuda:1 is the second of those that were given, whatever its number."""
    monkeypatch.setitem(sys.modules, "pynvml", driver(8))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-abc")
    slots = machine.slots(("cuda",), devices=("cuda:1",))
    assert slots[0].environment["CUDA_VISIBLE_DEVICES"] == "GPU-abc"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert [slot.device for slot in machine.slots(("cuda", "cpu"))] == ["cpu"]


def test_without_a_driver_the_cpu_is_used():
    """Silently: most machines have none."""
    assert machine.gpus() == []
    assert [slot.device for slot in machine.slots(("cuda", "cpu"))] == ["cpu"]


@pytest.mark.parametrize(
    ("count", "devices", "words"),
    [
        (0, (), "at least one"),
        (10**6, (), "1024"),
        (None, ("tpu:0",), "unknown device tpu:0"),
        (None, ("cuda:2",), "not on this machine, which has cpu, cuda:0, cuda:1"),
        (None, ("cuda:x",), "not on this machine"),
    ],
)
def test_what_is_not_there_is_refused(monkeypatch, count, devices, words):
    """In one sentence that says what there is."""
    monkeypatch.setitem(sys.modules, "pynvml", driver(2))
    with pytest.raises(Refused, match=words):
        machine.slots(("cuda", "cpu"), count, devices)


def test_a_device_that_the_experiment_cannot_use_is_refused(monkeypatch):
    """It would be trained elsewhere than was asked for."""
    monkeypatch.setitem(sys.modules, "pynvml", driver(1))
    with pytest.raises(Refused, match="trains on cpu only"):
        machine.slots(("cpu",), devices=("cuda:0",))


def test_doctor_names_who_holds_a_gpu(monkeypatch, capsys, tmp_path):
    """A process that is none of ours is in the way of a run."""
    monkeypatch.setitem(sys.modules, "pynvml", driver(1, holders=(os.getpid(),)))
    doctor(tmp_path)
    told = capsys.readouterr().out
    assert "GPU number 0, 1.0 of 64.0 GiB used, 7 % busy" in told
    assert f"({os.getpid()}, " in told


@pytest.mark.parametrize("about", [("memory",), ("load",), ("processes",), tuple(QUESTIONS)])
def test_what_a_gpu_does_not_tell_hides_nothing_else(monkeypatch, about):
    """It is there, and answers the other questions."""
    monkeypatch.setitem(sys.modules, "pynvml", silent(*about))
    (gpu,) = machine.gpus()
    assert gpu.name == "GPU number 0"
    assert (gpu.memory_used, gpu.memory_total) == ((0, 0) if "memory" in about else (2**30, 2**36))
    assert (gpu.used_percent == 7) == ("load" not in about)
    assert gpu.processes == (() if "processes" in about else (os.getpid(),))
    assert [slot.device for slot in machine.slots(("cuda", "cpu"))] == ["cuda:0"]


def test_memory_that_is_not_told_is_not_shown_as_none(monkeypatch, capsys, tmp_path):
    """Whoever looks is told so, and reads of no zero bytes."""
    for gpu, shown in [(driver(1), "1.0 of 64.0 GiB"), (silent("memory"), "-")]:
        monkeypatch.setitem(sys.modules, "pynvml", gpu)
        assert list(watching._gpus()["memory"]) == [shown]
    doctor(tmp_path)
    assert "GPU number 0, does not tell its memory, 7 % busy" in capsys.readouterr().out
