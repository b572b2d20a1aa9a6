"""What a worker inherits, and what is kept of what it says."""

import os
import subprocess
import sys

import pytest

from fractal_core.local import MARK, clean_environment, strays
from fractal_core.machine import Slot
from fractal_core.redact import TAIL_BYTES, CappedLog

SLOT = Slot(0, "cpu", 3)


def test_a_worker_inherits_what_it_needs_and_no_secret(monkeypatch):
    """Only names that are known to be harmless pass."""
    for name in (
        "HF_TOKEN",
        "WANDB_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "SSH_AUTH_SOCK",
        "LS_COLORS",
    ):
        monkeypatch.setenv(name, "planted")
    for name in ("HF_HOME", "NUMBA_CACHE_DIR", "LC_ALL", "PYTHONPATH"):
        monkeypatch.setenv(name, "needed")
    found = clean_environment(SLOT, "mark")
    assert "planted" not in found.values()
    assert {name for name, value in found.items() if value == "needed"} == {
        "HF_HOME",
        "NUMBA_CACHE_DIR",
        "LC_ALL",
        "PYTHONPATH",
    }
    assert found["OMP_NUM_THREADS"] == found["FRACTAL_THREADS"] == "3"
    assert found["CUDA_VISIBLE_DEVICES"] == ""
    assert found[MARK] == "mark"


def test_a_log_that_nobody_writes_to_is_no_file(tmp_path):
    """Most workers say nothing."""
    log = CappedLog(tmp_path / "logs" / "1.txt")
    log.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("piece", [1, 7, 4096])
def test_what_is_said_is_kept_in_order(tmp_path, piece):
    """However it is cut on its way, the last line too if it has no end."""
    said = b"".join(b"%d words\n" % n for n in range(500)) + b"and the last"
    log = CappedLog(tmp_path / "1.txt")
    for first in range(0, len(said), piece):
        log.write(said[first : first + piece])
    log.close()
    assert log.path.read_bytes() == said
    assert log.end == said.decode()[-4096:]


def test_a_flood_keeps_its_beginning_and_its_end(tmp_path):
    """And says how much is left out."""
    log = CappedLog(tmp_path / "1.txt", most=10_000)
    lines = [b"line %06d\n" % n for n in range(100_000)]
    for line in lines:
        log.write(line)
    log.close()
    kept = log.path.read_bytes()
    assert len(kept) < 10_000 + TAIL_BYTES + 100
    assert kept.startswith(b"".join(lines[:800]))
    assert kept.endswith(b"".join(lines[-5000:]))
    beginning, end = kept.split(b" bytes left out]\n\n")
    beginning, left_out = beginning.rsplit(b"\n[", 1)
    assert len(beginning) + int(left_out) + len(end) == sum(map(len, lines))


def test_a_line_without_an_end_takes_no_memory(tmp_path):
    """Half a megabyte in one word, with room for less than half of it."""
    log = CappedLog(tmp_path / "1.txt", most=200_000)
    for _ in range(64):
        log.write(b"x" * 8192)
        assert len(log._rest) <= TAIL_BYTES
    log.close()
    assert 100_000 < log.path.stat().st_size < 200_000 + 2 * TAIL_BYTES


def test_no_secret_is_kept_in_beginning_or_end(tmp_path):
    """In what fits, in what does not, and in what is told of a failure; however it is cut."""
    log = CappedLog(tmp_path / "1.txt", most=1000)
    line = b"HF_TOKEN=swordfish9 and hf_abcdefghijklmnopqrst\n"
    for _ in range(100):
        for first in range(0, len(line), 5):
            log.write(line[first : first + 5])
    log.close()
    text = log.path.read_text() + log.end
    assert "HF_TOKEN=[redacted] and [redacted]" in text
    assert "swordfish9" not in text
    assert "hf_" not in text


def test_bytes_that_are_no_text_are_borne(tmp_path):
    """A program may print anything."""
    log = CappedLog(tmp_path / "1.txt")
    log.write(bytes(range(256)) * 3 + b"\n")
    log.close()
    assert log.end


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path):
    """The folder cannot be made; what was said last is still known."""
    (tmp_path / "logs").write_text("a file")
    log = CappedLog(tmp_path / "logs" / "1.txt")
    log.write(b"words\n")
    log.close()
    assert log.end == "words\n"


def test_strays_are_known_by_mark_or_pipe():
    """Whoever is their parent; those who only read are not meant."""
    sleep = [sys.executable, "-c", "input()"]
    source, sink = os.pipe()
    pipes = {f"pipe:[{os.fstat(source).st_ino}]"}
    marked = {**os.environ, MARK: "m"}
    children = [
        subprocess.Popen(sleep, stdin=subprocess.PIPE, env=marked),
        subprocess.Popen(sleep, stdin=subprocess.PIPE, pass_fds=(sink,)),
        subprocess.Popen(sleep, stdin=subprocess.PIPE, pass_fds=(source,)),
        subprocess.Popen(sleep, stdin=subprocess.PIPE),
    ]
    os.close(sink)
    try:
        found = {process.pid for process in strays("m", pipes)}
        assert found & {child.pid for child in children} == {children[0].pid, children[1].pid}
        assert os.getpid() not in found
    finally:
        os.close(source)
        for child in children:
            child.communicate(b"\n")
