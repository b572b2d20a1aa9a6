"""What all tests share."""

import contextlib
import os
import signal
import tempfile
import time

import psutil
import pytest
from hypothesis import HealthCheck, settings

# Set in many containers; a thousand processes would each compile all of torch, marimo and pandas.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A machine may fetch packages through a proxy, which knows nothing of servers that tests begin.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"

# A shell ignores Ctrl-C on behalf of what it begins in the background, and so would all begun here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no failure, neither in a test nor while its examples are drawn; and the examples
# are the same each time, so that what fails was broken by a change and not found by chance.
settings.register_profile(
    "repeatable", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def own_warm_process(tmp_path_factory):
    """Warm processes that tests leave behind are the tests' own, and end with them."""
    folder = str(tmp_path_factory.mktemp("w"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield
    for process in psutil.process_iter():
        try:
            if "fractal_core.warm" in process.cmdline() and (
                process.environ().get("TMPDIR") == folder
            ):
                process.kill()
        except psutil.Error:
            continue


@pytest.fixture(scope="session")
def laboratory(tmp_path_factory):
    """Workers, whoever begins them, know the experiment that misbehaves."""
    import mischief  # not before the checker of types is in place

    folder = tmp_path_factory.mktemp("site")
    mischief.install(folder)
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        yield


@pytest.fixture
def one_thread():
    """Sums of torch in one order, whatever ran before."""
    import torch  # most files need none

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def made_base(tmp_path_factory):
    """A folder with all that the stages after the base model begin from."""
    import stagebase  # not before the checker of types is in place

    return stagebase.make(tmp_path_factory.mktemp("made"))


@pytest.fixture
def base(made_base, tmp_path, monkeypatch):
    """A test's own copy of that folder, which the stages use."""
    import stagebase

    return stagebase.use(made_base, tmp_path / "base", monkeypatch)


@pytest.fixture
def store_folder(tmp_path, monkeypatch):
    """A storage folder of one's own."""
    folder = tmp_path / "storage"
    monkeypatch.setenv("FRACTAL_STORAGE", str(folder))
    return folder


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    """Everything big lies in a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FRACTAL_STORAGE", str(tmp_path_factory.mktemp("storage")))
        yield


@pytest.fixture
def hub_here(store_folder, monkeypatch):
    """A Hub on this machine, and nobody waits between two tries."""
    import fakehub
    import huggingface_hub

    from fractal_core import hub

    with fakehub.running() as fake:
        monkeypatch.setattr(
            hub, "client", lambda: huggingface_hub.HfApi(endpoint=fake.url, token=False)
        )
        monkeypatch.setattr(hub, "ATTEMPTS", 2)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        yield fake


@pytest.fixture(scope="module")
def browser():
    """Chromium, driven by Playwright."""
    from fractal_core import Refused  # not before the checker of types is in place
    from fractal_core.bench import zoom

    with contextlib.ExitStack() as stack:
        try:
            found = stack.enter_context(zoom.chromium())
        except Refused as error:
            if os.environ.get("CI"):  # where nobody reads what was skipped
                pytest.fail(str(error))
            pytest.skip(str(error))  # a browser is no part of what `uv sync` brings
        yield found


@pytest.fixture
def sandbox():
    """Programs that a model wrote can be run here."""
    from nanochat.common import Refused
    from nanochat.execution import require_sandbox

    try:
        require_sandbox()
    except Refused as refusal:
        # What a machine's kernel forbids cannot be tried there; nothing runs unconfined instead.
        pytest.skip(f"CONTAINMENT IS NOT TESTED on this machine: {refusal}")
