"""Programs that a model wrote: what they may do, and every way out that we could think of."""

import errno
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from nanochat import execution, jail
from nanochat.common import Refused
from nanochat.execution import ExecutionResult, Limits, _run, execute_code
from waiting import DEADLINE, until

BWRAP = shutil.which("bwrap") or ""
contained = pytest.mark.usefixtures("each_sandbox")


@pytest.fixture(params=["bubblewrap", "namespaces"])
def each_sandbox(request, monkeypatch) -> str:
    """Both ways in which a sandbox is made, where they work; what is passed on to say which."""
    if request.param == "bubblewrap" and not BWRAP:
        # A user's machine need not have both; CI installs it.
        pytest.skip("CONTAINMENT BY BUBBLEWRAP IS NOT TESTED: it is not installed")
    path = BWRAP if request.param == "bubblewrap" else ""
    try:
        execution._try(path)
    except Refused as refusal:
        # What a machine's kernel forbids cannot be tried there; nothing runs unconfined instead.
        pytest.skip(f"CONTAINMENT BY {request.param.upper()} IS NOT TESTED here: {refusal}")
    monkeypatch.setattr(execution, "require_sandbox", lambda: path)
    return path


def patiently(program: str) -> ExecutionResult:
    """What becomes of a program that ends by itself, however busy the machine is."""
    return execute_code(program, timeout=DEADLINE)


OUTCOME = """
def outcome(act):
    try:
        return "did it: " + repr(act())
    except BaseException as error:
        return type(error).__name__
"""


def outcomes(*acts: str) -> list[str]:
    """What came of each expression, inside."""
    lines = "\n".join(f"print(outcome(lambda: {act}))" for act in acts)
    imports = "import ctypes, os, signal, socket, sys\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    imports += "clone = {'x86_64': 56, 'aarch64': 220}[os.uname().machine]\n"
    imports += "CLONE = lambda flags: libc.syscall(clone, flags, 0, 0, 0, 0)\n"
    result = patiently(imports + OUTCOME + lines)
    assert result.success, result
    return result.stdout.splitlines()


def processes_named(name: str) -> list[str]:
    """Processes of the machine with this name."""
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            found += [path.parent.name] * (path.read_text().strip() == name)
        except OSError:  # it ended while we looked
            continue
    return found


def assert_none_left(name: str) -> None:
    """The kernel needs a moment to end them."""
    until(lambda: not processes_named(name), f"the end of {name}")


# What a program is told


@contained
def test_a_program_runs_and_its_output_is_kept():
    """Both outputs, the modules that problems use, and threads."""
    program = "import collections, hashlib, math, re, sys, threading, typing\n"
    program += "said = threading.Thread(target=print, args=(math.gcd(12, 18),))\n"
    program += "said.start()\nsaid.join()\n"
    result = patiently(program + "print('hm', file=sys.stderr)")
    assert (result.success, result.stdout, result.stderr) == (True, "6\n", "hm\n")
    assert (result.error, result.timeout, result.memory_exceeded) == (None, False, False)


@contained
@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("assert 1 == 2, 'not so'", "AssertionError: not so"),
        ("def f(:", "SyntaxError"),
        ("input()", "EOFError"),
        ("raise SystemExit(0)", "SystemExit"),
        ("import os; os._exit(0)", "ended early, with status 0"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "status 139"),
        ("#" + "x" * 100_000, "more than 60000 bytes"),
    ],
)
def test_what_does_not_run_to_its_end_is_no_success(program, error):
    """An exit before the checks counts as a failure, whatever its status."""
    result = patiently(program)
    assert not result.success
    assert error in result.error


# Limits


@contained
def test_time_is_limited():
    """By the clock, asleep or busy."""
    for program in ("import time; time.sleep(60)", "while True: pass"):
        result = execute_code("print('on', flush=True)\n" + program, timeout=2.0)
        assert result.timeout
        assert not result.success
        assert result.stdout == "on\n"


@contained
def test_the_start_of_the_sandbox_is_not_the_program_s_time(monkeypatch):
    """A machine that is busy fails no program; a sandbox that never starts is no failure either."""
    start = subprocess.Popen

    def late(words, **options):
        return start(["sh", "-c", 'sleep 2.5; exec "$@"', "sh", *words], **options)

    monkeypatch.setattr(subprocess, "Popen", late)
    assert execute_code("print(1)", timeout=2.0).success
    monkeypatch.setattr(execution, "START", 0.5)
    with pytest.raises(Refused, match=r"did not start in 0\.5 seconds"):
        execute_code("print(1)")


@contained
def test_memory_is_limited():
    """A program that asks for more is told so."""
    result = patiently("x = bytearray(10**9)")
    assert result.memory_exceeded
    assert not result.success
    assert patiently("x = bytearray(10**8)").success


@contained
def test_there_is_no_memory_beside_it():
    """None of the kinds that belong to no process, which no limit of a process counts."""
    said = outcomes(
        "os.memfd_create('more')",
        "libc.shmget(0, 1 << 20, 0o1600)",
        "libc.semget(0, 30000, 0o1600)",
        "libc.msgget(0, 0o1600)",
    )
    assert said == ["PermissionError", *["did it: -1"] * 3]


def test_a_machine_whose_calls_are_not_known_is_refused(each_sandbox, tmp_path, monkeypatch):
    """Rather than that its programs have more memory than they may."""
    jail = Path(execution.__file__).with_name("jail.py").read_text()
    (tmp_path / "jail.py").write_text(jail.replace("os.uname().machine", "'abacus'"))
    monkeypatch.setattr(execution, "__file__", str(tmp_path / "execution.py"))
    with pytest.raises(Refused, match="the system calls of abacus are not known"):
        _run("print(1)", Limits(), each_sandbox)


@contained
def test_a_flood_of_output_is_cut():
    """What was read of it is bounded, and the program is killed."""
    result = patiently("import sys\nwhile True: sys.stdout.write('x' * 4096)")
    assert "more than 65536 bytes" in str(result.error)
    assert len(result.stdout) == 65536
    assert not result.timeout


@contained
def test_processes_are_limited_for_root_too():
    """Fork after fork fails; a bomb and what it left end with the time."""
    count = """
import os, time
children = 0
try:
    while children < 100:
        if os.fork() == 0:
            time.sleep(60)
        children += 1
except OSError:
    print(children)
"""
    result = patiently(count)
    assert result.success
    assert 0 < int(result.stdout) < Limits.processes
    bomb = """
import ctypes, os
ctypes.CDLL(None).prctl(15, b"fractalbomb", 0, 0, 0)
os.setsid() if os.fork() == 0 else None
while True:
    try:
        os.fork()
    except OSError:
        pass
"""
    assert execute_code(bomb, timeout=1.0).timeout
    assert_none_left("fractalbomb")


@contained
def test_what_a_program_leaves_behind_ends_with_it():
    """A process that detaches itself outlives no program."""
    daemon = """
import ctypes, os, time
if os.fork() == 0:
    os.setsid()
    ctypes.CDLL(None).prctl(15, b"fractaldaemon", 0, 0, 0)
    os.close(1), os.close(2)
    time.sleep(60)
time.sleep(0.2)
"""
    assert patiently(daemon).success
    assert_none_left("fractaldaemon")


@contained
def test_the_disk_is_limited():
    """No file, and no number of files, is larger than the folder's memory."""
    fill = """
for n in range(64):
    with open(f"file{n}", "wb") as file:
        file.write(bytes(1 << 20))
"""
    result = patiently(fill)
    assert not result.success
    assert "No space left" in str(result.error)
    assert patiently("open('small', 'w').write('x')\nassert open('small').read() == 'x'").success
    many = patiently("for n in range(3000): open(f'file{n}', 'w').close()")
    assert "No space left" in str(many.error)


# Ways out


@contained
def test_there_is_no_network():
    """Not even this machine's own, nor its sockets with abstract names."""
    name = f"\0fractal{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(name)
        unix.listen()
        server.settimeout(0)
        unix.settimeout(0)
        port = server.getsockname()[1]
        said = outcomes(
            f"socket.create_connection(('127.0.0.1', {port}), 2)",
            f"socket.socket(socket.AF_UNIX).connect({name!r})",
            "socket.create_connection(('1.1.1.1', 53), 2)",
            "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('1.1.1.1', 53))",
            "socket.getaddrinfo('example.org', 80)",
        )
        assert set(said) <= {"OSError", "ConnectionRefusedError", "gaierror"}, said
        for listening in (server, unix):
            with pytest.raises(BlockingIOError):
                listening.accept()


@contained
def test_nothing_outside_is_read_or_written(tmp_path):
    """The machine's files are not there; what is there is read-only."""
    secret = tmp_path / "secret"
    secret.write_text("s")
    stdlib = str(Path(os.__file__).parent)
    said = outcomes(
        f"open({str(secret)!r}).read()",
        "open('/etc/passwd').read()",
        f"os.listdir({str(Path.home())!r} + '/.ssh')",
        f"open({str(tmp_path / 'new')!r}, 'w')",
        "open('/new', 'w')",
        f"open({stdlib + '/new.py'!r}, 'w')",
        f"os.chmod({stdlib!r}, 0o777)",
        "sorted(set(os.listdir('/')) - {'lib', 'lib64', 'usr', 'dev', 'work'})",
    )
    assert not any(line.startswith("did it") for line in said[:-1]), said
    seen = {Path(sys.base_prefix).parts[1]} - {"usr"}
    assert said[-1] == f"did it: {sorted(seen)!r}"
    assert secret.read_text() == "s"
    assert not (tmp_path / "new").exists()


@contained
def test_links_lead_nowhere_outside(tmp_path):
    """A link out of the work folder points into the sandbox's own tree."""
    target = tmp_path / "target"
    target.write_text("mine")
    said = outcomes(
        f"os.symlink({str(target)!r}, 'link')",
        "open('link').read()",
        "open('link', 'w')",
        "os.symlink('../' * 20 + 'etc', 'up')",
        "os.listdir('up')",
        f"os.link({str(target)!r}, 'hard')",
        "os.chroot('.')",
        "os.open('/proc/1/root', os.O_RDONLY)",
    )
    assert said[0] == said[3] == "did it: None"
    rest = [line for i, line in enumerate(said) if i not in (0, 3)]
    assert set(rest) <= {"FileNotFoundError", "PermissionError", "OSError"}, said
    assert target.read_text() == "mine"


@contained
def test_no_other_process_is_seen_or_signalled():
    """Neither the parent nor the machine's processes; number 1 of the sandbox takes no signals."""
    said = outcomes(
        f"os.kill({os.getpid()}, 0)",
        "os.kill(1, signal.SIGKILL)",
        "os.listdir('/proc')",
        "libc.ptrace(16, 1, 0, 0)",  # PTRACE_ATTACH
        "libc.ptrace(16, os.getppid(), 0, 0)",
        f"libc.ptrace(16, {os.getpid()}, 0, 0)",
    )
    assert said[0] == "ProcessLookupError"
    assert said[2] == "FileNotFoundError"
    assert said[1] in ("PermissionError", "did it: None")  # ignored where both are one user
    assert said[3:] == ["did it: -1"] * 3
    result = patiently("import os, signal\nos.kill(-1, signal.SIGKILL)")
    assert "ProcessLookupError" in str(result.error)  # there was none to kill


@contained
@pytest.mark.parametrize("name", jail.DENIED)
def test_what_no_answer_needs_of_the_kernel_is_denied(name):
    """Not even asked for nothing: an error of another number would mean that it was heard."""
    number = jail.DENIED[name][os.uname().machine]
    zeros = ", ".join(["0"] * 6)
    (said,) = outcomes(f"(libc.syscall({number}, {zeros}), ctypes.get_errno())")
    assert said == f"did it: (-1, {errno.EPERM})"


@contained
def test_rights_cannot_be_gained():
    """No other user, no new namespace, no mount, no file system but its own."""
    said = outcomes(
        "os.setuid(0)",
        "os.setgroups([0])",
        "libc.unshare(0x10000000)",
        "libc.unshare(0x20000)",
        "libc.setns(0, 0)",
        "CLONE(0x10000000 | signal.SIGCHLD)",
        "CLONE(0x20000 | signal.SIGCHLD)",
        "libc.mount(b'none', b'/work', b'tmpfs', 0, None)",
        "libc.umount2(b'/work', 2)",
        "os.sethostname('x') if hasattr(os, 'sethostname') else libc.sethostname(b'x', 1)",
        "os.mknod('disk', 0o60600, os.makedev(254, 0))",
    )
    allowed = {"PermissionError", "did it: -1", "OSError", "AttributeError"}
    assert set(said) <= allowed, said


@contained
def test_the_environment_and_open_files_stay_outside(monkeypatch):
    """No variable and no descriptor of ours is handed down."""
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    with Path(os.devnull).open() as held:
        os.set_inheritable(held.fileno(), True)
        program = """
import os
assert set(os.environ) <= {"HOME", "TMPDIR", "LANG", "LC_CTYPE"}, dict(os.environ)
opened = []
for fd in range(64):
    try:
        os.fstat(fd)
        opened.append(fd)
    except OSError:
        pass
assert len(opened) <= 4, opened
"""
        result = patiently(program)
    assert result.success, result


# Where there is no sandbox


def test_without_namespaces_nothing_runs(tmp_path):
    """One sentence says what to allow, and the program did not run."""
    marker = tmp_path / "ran"
    ask = (
        "from nanochat.execution import execute_code\n"
        "from nanochat.common import Refused\n"
        f"try: execute_code({f'open({str(marker)!r}, chr(119))'!r})\n"
        "except Refused as refusal: print('refused:', refusal)"
    )
    deny = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$0" -c "$1"'
    words = ["unshare", "-Ur", "sh", "-c", deny, sys.executable, ask]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=DEADLINE)
    except FileNotFoundError:
        pytest.skip("unshare of util-linux, which makes a machine without namespaces, is missing")
    if done.returncode and not done.stdout:
        pytest.skip(f"no namespace without namespaces can be made here: {done.stderr}")
    assert done.stdout.startswith("refused: programs that a model wrote run only in a sandbox")
    assert "user.max_user_namespaces" in done.stdout
    assert not marker.exists()


def test_a_container_has_a_sandbox(each_sandbox):
    """Its settings of the kernel are read-only."""
    ask = (
        "import os\nfrom nanochat import execution\n"
        "assert not os.access('/proc/sys/user/max_user_namespaces', os.W_OK)\n"
        f"execution.require_sandbox = lambda: {each_sandbox!r}\n"
        "print(execution.execute_code('print(1)', timeout=60.0).success)"
    )
    contain = (
        "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && "
        'exec unshare -U --map-user=77 --map-group=77 "$0" -c "$1"'
    )
    words = ["unshare", "-Urm", "sh", "-c", contain, sys.executable, ask]
    done = subprocess.run(words, capture_output=True, text=True, timeout=DEADLINE)
    assert done.stdout == "True\n", done


def test_another_system_is_refused(monkeypatch):
    """The sandbox is Linux's."""
    monkeypatch.setattr(execution.sys, "platform", "darwin")
    with pytest.raises(Refused, match="Linux namespaces and this is darwin"):
        _run("print(1)", Limits())


def test_bubblewrap_goes_first_where_it_works(tmp_path, monkeypatch):
    """One that fails is passed over, and there need be none."""
    choose = execution.require_sandbox.__wrapped__
    tried = []

    def only(*working: str):
        def fake(path: str) -> None:
            tried.append(path)
            if path not in working:
                raise Refused("it fails")

        return fake

    bwrap = tmp_path / "bwrap"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(execution, "_try", only("", str(bwrap)))
    assert choose() == ""
    bwrap.write_text("#!/bin/sh\nexit 1\n")
    bwrap.chmod(0o755)
    assert choose() == str(bwrap)
    monkeypatch.setattr(execution, "_try", only(""))
    assert choose() == ""
    assert tried == ["", str(bwrap), str(bwrap), ""]
    monkeypatch.undo()
    with pytest.raises(Refused, match="which this machine does not allow"):
        execution._try(shutil.which("false"))


def test_a_caller_who_is_not_root_has_a_sandbox_too(each_sandbox):
    """Then the program is of the caller's user, without any right of it."""
    ask = (
        "import os\nfrom nanochat import execution\n"
        f"execution.require_sandbox = lambda: {each_sandbox!r}\n"
        "said = 'import os; print(os.getuid(), os.listdir(\"/work\"))\\n'\n"
        "said += 'import ctypes; assert ctypes.CDLL(None).unshare(0x10000000)\\n'\n"
        "said += 'assert ctypes.CDLL(None).umount2(b\"/work\", 2)'\n"
        "print(os.getuid(), execution.execute_code(said, timeout=60.0))"
    )
    words = ["unshare", "-U", "--map-user=77", "--map-group=77", sys.executable, "-c", ask]
    done = subprocess.run(words, capture_output=True, text=True, timeout=DEADLINE)
    assert done.stdout.startswith("77 ExecutionResult(success=True, stdout='1000 []"), done
