"""Build the sandbox and start a program in it; `execution` runs this file as a process of its own.

This is how it is done without Bubblewrap; with it, see the end.

Three processes stand between the caller and the program. The first stays outside and writes who is
who in the new user namespace. The second enters new namespaces for users, mounts, network, IPC,
host name, control groups and processes. The third is number 1 among those processes: when it ends,
the kernel kills all the others. It makes a file system of the interpreter, read-only, and an empty
folder in memory, and starts the program as an unprivileged user.

A filter denies the program system calls: those that take memory which counts neither as a process's
nor as its folder's, and those that make namespaces, within which it would have every right. (To
set their greatest number to 0 takes a /proc/sys that can be written, which containers lack.)

A caller who is root maps the program to a user that is not, since the kernel limits how many
processes a user has for all but root.

Bubblewrap, where there is one, takes the place of the second process: it makes the namespaces and
the file system, and runs this file again as number 1. For a caller who is root it does so in a user
namespace that is made here, since its own would leave the program root to the kernel.

Only the standard library is used, and nothing of this package: the file runs isolated.
"""

import ctypes
import json
import os
import resource
import signal
import struct
import sys
from pathlib import Path

NOBODY = 65534
INSIDE = 1000
"""The program's user and group, as it sees them."""

NEW_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000
NEW_NETWORK, NEW_USERS, NEW_MOUNTS = 0x40000000, 0x10000000, 0x00020000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
NOSUID, NODEV = 2, 4
READ_ONLY = 1
MNT_DETACH = 2
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
LOAD, EQUAL, AT_LEAST, ANY_OF, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
"""Instructions of a filter: of 16 bits, two jumps of 8 bits, where true and where not, and a value."""

ALLOW, DENY, UNKNOWN = 0x7FFF0000, 0x00050001, 0x00050026
NUMBER, MACHINE, FIRST = 0, 4, 16
"""Where a filter finds which call it is, in whose numbers, and its first argument."""

FOREIGN = 0x40000000
"""From here on the calls of x86_64 have a second number each, for pointers of 32 bits."""

MARKS = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CLONE = {"x86_64": 56, "aarch64": 220}
CLONE3 = 435
"""Whose flags are out of a filter's sight; where it is unknown, clone is called instead."""

DENIED = {
    "shmget": {"x86_64": 29, "aarch64": 194},
    "semget": {"x86_64": 64, "aarch64": 190},
    "msgget": {"x86_64": 68, "aarch64": 186},
    "memfd_create": {"x86_64": 319, "aarch64": 279},
    "memfd_secret": {"x86_64": 447, "aarch64": 447},
    "unshare": {"x86_64": 272, "aarch64": 97},
    "setns": {"x86_64": 308, "aarch64": 268},
    "mq_open": {"x86_64": 240, "aarch64": 180},
    "add_key": {"x86_64": 248, "aarch64": 217},
    "request_key": {"x86_64": 249, "aarch64": 218},
    "keyctl": {"x86_64": 250, "aarch64": 219},
    "userfaultfd": {"x86_64": 323, "aarch64": 282},
    "io_uring_setup": {"x86_64": 425, "aarch64": 425},
    "io_uring_enter": {"x86_64": 426, "aarch64": 426},
    "io_uring_register": {"x86_64": 427, "aarch64": 427},
}
"""Ways out of memory limits, into other namespaces, and parts of the kernel that no answer needs."""

libc = ctypes.CDLL(None, use_errno=True)


def main() -> int:
    """Run what the first argument describes; the program's exit status, 128 + n after signal n.

    A second argument says that this is number 1 already, of Bubblewrap's sandbox, and whose.
    """
    settings = json.loads(sys.argv[1])
    if len(sys.argv) > 2:
        return _within(settings, root=sys.argv[2] == "root")
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    entered, mapped = os.pipe(), os.pipe()
    insider = os.fork()
    if insider == 0:
        enter = _wrap if settings["bwrap"] else _enter
        _in_a_child(settings, lambda: enter(settings, entered[1], mapped[0]))
    os.close(entered[1])
    try:
        if os.read(entered[0], 1):
            _map_users(insider)
            os.write(mapped[1], b"1")
    except OSError as error:
        _complain(settings, error)
        os.kill(insider, signal.SIGKILL)
    os.close(settings["setup"])
    return _status(insider)


def _in_a_child(settings, act) -> None:
    """Never returns: a copy of a process must not go on as its original would."""
    try:
        os._exit(act())
    except OSError as error:
        _complain(settings, error)
    finally:
        os._exit(1)


def _complain(settings, error: OSError) -> None:
    os.write(settings["setup"], str(error).encode())


def _status(pid: int) -> int:
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else 128 - code


def _map_users(pid: int) -> None:
    """Say which users exist inside: the program's, and for a caller who is root also root."""
    root = os.geteuid() == 0
    if not root:
        Path(f"/proc/{pid}/setgroups").write_text("deny")
    for kind, own in (("uid", os.geteuid()), ("gid", os.getegid())):
        lines = f"0 0 1\n{INSIDE} {NOBODY} 1\n" if root else f"{INSIDE} {own} 1\n"
        Path(f"/proc/{pid}/{kind}_map").write_text(lines)


def _unshare(namespaces: int, entered: int, mapped: int) -> bool:
    """Enter new namespaces, and whether the users in them have been said."""
    _call("unshare", libc.unshare(namespaces))
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.write(entered, b"1")
    return bool(os.read(mapped, 1))


def _wrap(settings, entered: int, mapped: int) -> int:
    """Turn into Bubblewrap, which runs this file again."""
    root = os.geteuid() == 0
    if root and not _unshare(NEW_USERS, entered, mapped):
        return 1
    words = [settings["bwrap"], "--die-with-parent", "--as-pid-1", "--new-session"]
    words += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    words += ["--unshare-cgroup-try", "--cap-drop", "ALL", "--cap-add", "CAP_SYS_ADMIN"]
    if root:
        words += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        words += ["--unshare-user", "--uid", str(INSIDE), "--gid", str(INSIDE)]
    for path in settings["visible"]:
        for outer in reversed(Path(path).parents):
            words += ["--perms", "0755", "--dir", str(outer)]  # else it is its owner's alone
        if Path(path).is_symlink():
            words += ["--symlink", str(Path(path).readlink()), path]
        else:
            bind = "--dev-bind" if path.startswith("/dev/") else "--ro-bind"
            words += [bind, path, path]
    words += ["--dir", "/work", "--remount-ro", "/", "--"]
    words += [
        *settings["argv"][:4],
        "-c",
        Path(__file__).read_text(),
        sys.argv[1],
        "root" if root else "user",
    ]
    for fd in (settings["setup"], settings["report"]):
        os.set_inheritable(fd, True)
    os.execve(words[0], words, {})


def _within(settings, root: bool) -> int:
    """What process number 1 does in Bubblewrap's sandbox."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    try:
        _call("unshare", libc.unshare(NEW_MOUNTS))
        _mount("none", "/", None, MS_REC | MS_PRIVATE)
        _mount_work("/work", settings)
    except OSError as error:
        _complain(settings, error)
        return 1
    return _start(settings, root)


def _enter(settings, entered: int, mapped: int) -> int:
    root = os.geteuid() == 0
    if not _unshare(NEW_NAMESPACES | NEW_NETWORK, entered, mapped):
        return 1
    first = os.fork()
    if first == 0:
        _in_a_child(settings, lambda: _first(settings, root))
    os.close(settings["setup"])
    return _status(first)


def _first(settings, root: bool) -> int:
    """What process number 1 does."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    _make_root(settings)
    return _start(settings, root)


def _start(settings, root: bool) -> int:
    """Start the program and reap until it ends."""
    program = os.fork()
    if program == 0:
        _in_a_child(settings, lambda: _become(settings, root))
    for fd in (0, 1, 2, settings["setup"], settings["report"]):
        os.close(fd)
    while True:
        pid, status = os.wait()
        if pid == program:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _make_root(settings) -> None:
    """A file system of the folders to be seen and /work, in place of the machine's."""
    os.umask(0o022)
    _mount("none", "/", None, MS_REC | MS_PRIVATE)
    new = settings["folder"]
    _mount("root", new, b"tmpfs", NOSUID | NODEV, "size=64k,mode=755")
    for path in settings["visible"]:
        seen, inside = Path(path), Path(new + path)
        inside.parent.mkdir(parents=True, exist_ok=True)
        if seen.is_symlink():
            inside.symlink_to(seen.readlink())
            continue
        if seen.is_dir():
            inside.mkdir()
        else:
            inside.touch()
        _mount(path, str(inside), None, MS_BIND | MS_REC)
        _restrict(str(inside), READ_ONLY | NOSUID)
    Path(new, "work").mkdir()
    _mount_work(new + "/work", settings)
    os.chdir(new)
    _call("pivot_root", libc.pivot_root(b".", b"."))
    _call("umount", libc.umount2(b".", MNT_DETACH))
    os.chdir("/")
    _restrict("/", READ_ONLY, recursive=False)


def _mount_work(path: str, settings) -> None:
    size = f"size={settings['disk']},nr_inodes=1024,mode=1777"
    _mount("work", path, b"tmpfs", NOSUID | NODEV, size)


def _become(settings, root: bool) -> int:
    """Give up every right and turn into the interpreter."""
    os.setsid()
    if root:
        os.setgroups([])
        os.setresgid(INSIDE, INSIDE, INSIDE)
        os.setresuid(INSIDE, INSIDE, INSIDE)
    libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    for name, value in settings["limits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    _call("prctl", libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _forbid()
    os.chdir("/work")
    os.umask(0o077)
    os.execve(settings["argv"][0], settings["argv"], settings["environment"])


def _forbid() -> None:
    """Deny this process and all that come of it the system calls that are not for them."""
    machine = os.uname().machine
    if machine not in MARKS:
        raise OSError(f"the system calls of {machine} are not known")
    denied = (RETURN, 0, 0, DENY)
    rules = [(LOAD, 0, 0, MACHINE), (EQUAL, 1, 0, MARKS[machine]), denied]
    rules += [(LOAD, 0, 0, NUMBER), (AT_LEAST, 0, 1, FOREIGN), denied]
    for numbers in DENIED.values():
        rules += [(EQUAL, 0, 1, numbers[machine]), denied]
    rules += [(EQUAL, 0, 1, CLONE3), (RETURN, 0, 0, UNKNOWN)]
    rules += [(EQUAL, 0, 3, CLONE[machine]), (LOAD, 0, 0, FIRST)]
    rules += [(ANY_OF, 0, 1, NEW_NAMESPACES | NEW_NETWORK), denied]
    rules += [(RETURN, 0, 0, ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
    program = struct.pack("HP", len(rules), ctypes.addressof(code))
    _call("seccomp", libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0))


def _mount(source: str, target: str, kind: bytes | None, flags: int, options: str = "") -> None:
    done = libc.mount(
        os.fsencode(source), os.fsencode(target), kind, ctypes.c_ulong(flags), options.encode()
    )
    _call(f"mount {target}", done)


def _restrict(path: str, flags: int, recursive: bool = True) -> None:
    attributes = (ctypes.c_uint64 * 4)(flags, 0, 0, 0)
    done = libc.syscall(
        ctypes.c_long(SYS_MOUNT_SETATTR),
        ctypes.c_int(AT_FDCWD),
        ctypes.c_char_p(os.fsencode(path)),
        ctypes.c_uint(AT_RECURSIVE if recursive else 0),
        attributes,
        ctypes.c_size_t(ctypes.sizeof(attributes)),
    )
    _call(f"mount_setattr {path}", done)


def _call(name: str, result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


if __name__ == "__main__":
    sys.exit(main())
