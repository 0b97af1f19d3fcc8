# pyright: basic
# Reason: system calls through ctypes; and it runs alone, as a script, where nothing of this package can be imported.
"""Shuts a program in, then becomes it: ``python -I -S sandbox_launcher.py SPEC``. Standard library only.

SPEC is JSON: ``mode``, ``binds`` (source, target), ``limits``, ``argv``. Mode ``namespaces`` makes a user, mount,
network, process, IPC and host-name namespace of its own, with a root that holds nothing but read-only copies of the
binds and an empty /tmp. Mode ``inner`` sets the limits only: bubblewrap has done the rest. Mode ``plain`` does so too,
without anything around it.
"""

import ctypes
import json
import os
import resource
import signal
import sys

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
SYS_MOUNT_SETATTR = 442
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
NOBODY = 65534
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")

libc = ctypes.CDLL(None, use_errno=True)


def check(result, what):
    """Raise with the kernel's reason if a call failed."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source, target, kind, flags, data=None):
    """Mount, or raise."""
    encode = lambda text: None if text is None else text.encode()  # noqa: E731
    check(libc.mount(encode(source), encode(target), encode(kind), flags, encode(data)), f"mount {target}")


def read_only(target):
    """Make a mount and everything below it read-only."""
    attributes = (ctypes.c_uint64 * 4)(MS_RDONLY | MS_NOSUID, 0, 0, 0)
    call = libc.syscall(
        SYS_MOUNT_SETATTR, AT_FDCWD, target.encode(), AT_RECURSIVE, ctypes.byref(attributes), ctypes.sizeof(attributes)
    )
    check(call, f"read-only {target}")


def enter_namespaces():
    """A world of one's own; for root the user namespace comes later, when there is no more need to be root."""
    uid, gid = os.geteuid(), os.getegid()
    flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    check(libc.unshare(flags if uid == 0 else flags | CLONE_NEWUSER), "unshare")
    if uid == 0:
        return
    for name, text in (("setgroups", "deny"), ("uid_map", f"{NOBODY} {uid} 1"), ("gid_map", f"{NOBODY} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123
            file.write(text)


def place(source, target):
    """Bind one file or folder below the new root, read-only; a link stays a link."""
    if os.path.islink(source) and source == target:  # noqa: PTH114
        if not os.path.lexists(target):
            os.symlink(os.readlink("/oldroot" + source), target)  # noqa: PTH115, PTH211
        return
    old = "/oldroot" + source
    os.makedirs(os.path.dirname(target), exist_ok=True)  # noqa: PTH103, PTH120
    if os.path.isdir(old):  # noqa: PTH112
        os.makedirs(target, exist_ok=True)  # noqa: PTH103
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o444))
    mount(old, target, None, MS_BIND | MS_REC)
    if source not in DEVICES:
        read_only(target)


def build_root(binds, tmp_mb):
    """A root that holds the binds, four devices and an empty /tmp, and nothing else."""
    links = [(s, t, os.path.islink(s)) for s, t in binds if os.path.lexists(s)]  # noqa: PTH114
    targets = {s: os.readlink(s) for s, _, is_link in links if is_link}  # noqa: PTH115
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    os.mkdir("/tmp/oldroot")  # noqa: PTH102
    check(libc.syscall(SYS_PIVOT_ROOT[os.uname().machine], b"/tmp", b"/tmp/oldroot"), "pivot_root")
    os.chdir("/")
    # Before the binds: the interpreter itself may live below /tmp.
    os.mkdir("/tmp")  # noqa: PTH102
    mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, f"size={tmp_mb}m,mode=1777")
    for source, target, is_link in links:
        if is_link and source == target:
            os.makedirs(os.path.dirname(target), exist_ok=True)  # noqa: PTH103, PTH120
            os.symlink(targets[source], target)  # noqa: PTH211
        else:
            place(source, target)
    for device in DEVICES:
        place(device, device)
    check(libc.umount2(b"/oldroot", MNT_DETACH), "umount")
    os.rmdir("/oldroot")  # noqa: PTH106
    mount(None, "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
    os.chdir("/tmp")


def set_limits(limits):
    """Processor seconds, memory, processes, size of a file, open files, no core."""
    megabyte = 1 << 20
    wanted = (
        (resource.RLIMIT_CPU, limits["cpu_s"]),
        (resource.RLIMIT_AS, limits["memory_mb"] * megabyte),
        (resource.RLIMIT_FSIZE, limits["file_mb"] * megabyte),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    )
    for name, value in wanted:
        resource.setrlimit(name, (value, value))
    if limits["processes"]:
        resource.setrlimit(resource.RLIMIT_NPROC, (limits["processes"], limits["processes"]))


def give_up_root():
    """Be nobody, in a user namespace that maps no one: the kernel counts its processes apart from all others."""
    if os.geteuid() != 0:
        return
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    check(libc.unshare(CLONE_NEWUSER), "unshare user")


def become(spec):
    """Set the limits and run the program in this process's place."""
    set_limits(spec["limits"])
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
    os.execve(spec["argv"][0], spec["argv"], environment)


def wait_for(child):
    """The child's exit status as a shell would give it."""
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def main():
    """Read the specification and carry it out."""
    spec = json.loads(sys.argv[1])
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if spec["mode"] != "namespaces":
        become(spec)
    try:
        enter_namespaces()
    except OSError as error:
        sys.exit(f"sandbox: {error.strerror}")
    first = os.fork()
    if first:
        code = wait_for(first)
        sys.exit(code if code >= 0 else 128 - code)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    try:
        build_root(spec["binds"], spec["limits"]["tmp_mb"])
    except OSError as error:
        print(f"sandbox: {error.strerror}", file=sys.stderr)
        os._exit(97)
    program = os.fork()
    if program == 0:
        give_up_root()
        become(spec)
    code = wait_for(program)
    os._exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
