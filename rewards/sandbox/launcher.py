# pyright: basic
# Reason: system calls through ctypes; and it runs alone, as a script, where nothing of this package can be imported.
"""Shuts a script in and runs it in this process: ``python -s -P -S launcher.py SPEC``. Standard library only.

SPEC is a dict as Python writes it: ``mode``, ``script``, ``modules`` (files the script may import, by name),
``arguments``, ``site``, ``binds`` (source, target), ``devices`` and ``limits``. Mode ``namespaces`` makes a user,
mount, network, process, IPC and host-name namespace of its own, with a root that holds nothing but read-only copies of
the binds, the devices and an empty /tmp. Mode ``inner`` finds that done by bubblewrap. Both then give up every
capability and are refused the system calls of `MACHINES`. Mode ``plain`` sets the limits only.

What cannot be set up is said on standard output, ``{"unavailable": reason}``, before any of the script runs. This runs
for every sample that is scored: what takes long to import (json, signal) is not imported unless it is needed.
"""

import ctypes
import os
import resource
import sys
from importlib.machinery import SourceFileLoader

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
CLONE_NEWCGROUP = 0x2000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 36, 38
SYS_MOUNT_SETATTR = 442
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
NOBODY = 65534
SIGKILL = 9

# By machine: the kernel's name for it, and the numbers of the calls that a script is refused: to enter namespaces and
# mount, to look into other processes or change how they run, and whatever would outlive the process that made it (keys,
# System V IPC, message queues) or holds memory that no process is seen to hold (memfd). bpf, userfaultfd and
# perf_event_open are refused for their record of holes.
MACHINES = {
    "x86_64": (
        0xC000003E,
        {"clone": 56, "clone3": 435, "unshare": 272, "setns": 308, "mount": 165, "umount2": 166, "pivot_root": 155}
        | {"chroot": 161, "open_by_handle_at": 304, "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311}
        | {"keyctl": 250, "add_key": 248, "request_key": 249, "shmget": 29, "semget": 64, "msgget": 68, "mq_open": 240}
        | {"bpf": 321, "userfaultfd": 323, "perf_event_open": 298, "setpriority": 141, "ioprio_set": 251}
        | {"prlimit64": 302, "sched_setparam": 142, "sched_setscheduler": 144, "sched_setaffinity": 203}
        | {"sched_setattr": 314, "socket": 41, "memfd_create": 319},
    ),
    "aarch64": (
        0xC00000B7,
        {"clone": 220, "clone3": 435, "unshare": 97, "setns": 268, "mount": 40, "umount2": 39, "pivot_root": 41}
        | {"chroot": 51, "open_by_handle_at": 265, "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271}
        | {"keyctl": 219, "add_key": 217, "request_key": 218, "shmget": 194, "semget": 190, "msgget": 186}
        | {"mq_open": 180, "bpf": 280, "userfaultfd": 282, "perf_event_open": 241, "setpriority": 140, "ioprio_set": 30}
        | {"prlimit64": 261, "sched_setparam": 118, "sched_setscheduler": 119, "sched_setaffinity": 122}
        | {"sched_setattr": 274, "socket": 198, "memfd_create": 279},
    ),
}
# These have one number everywhere: io_uring, pidfd_getfd, memfd_secret, and mounting as Linux 5.2 and later do it.
EVERYWHERE = (425, 426, 427, 438, 447, 428, 429, 430, 431, 432, 433, SYS_MOUNT_SETATTR)
# These take a process, and are refused for any other than one's own (0).
OF_A_PROCESS = ("prlimit64", "sched_setparam", "sched_setscheduler", "sched_setaffinity", "sched_setattr")
# Families of sockets that a network namespace shuts in: Unix, IPv4, IPv6. AF_VSOCK, for one, reaches the hypervisor.
FAMILIES = (1, 2, 10)
EPERM, ENOSYS, EAFNOSUPPORT = 1, 38, 97
ALLOW, KILL, ERROR = 0x7FFF0000, 0x80000000, 0x00050000
NAMESPACES = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWCGROUP

libc = ctypes.CDLL(None, use_errno=True)


class Instruction(ctypes.Structure):
    """One instruction of a filter (``struct sock_filter``)."""

    _fields_ = [("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("k", ctypes.c_uint32)]


class Filter(ctypes.Structure):
    """A filter (``struct sock_fprog``)."""

    _fields_ = [("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(Instruction))]


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
    """Enter namespaces of one's own; for root the user namespace comes later, when nothing needs root any more."""
    uid, gid = os.geteuid(), os.getegid()
    flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    check(libc.unshare(flags if uid == 0 else flags | CLONE_NEWUSER), "unshare")
    if uid == 0:
        return
    for name, text in (("setgroups", "deny"), ("uid_map", f"{NOBODY} {uid} 1"), ("gid_map", f"{NOBODY} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123
            file.write(text)


def place(source, target, *, device=False):
    """Bind one file or folder below the new root, read-only but for devices."""
    old = "/oldroot" + source
    os.makedirs(os.path.dirname(target), exist_ok=True)  # noqa: PTH103, PTH120
    if os.path.isdir(old):  # noqa: PTH112
        os.makedirs(target, exist_ok=True)  # noqa: PTH103
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o444))
    mount(old, target, None, MS_BIND | MS_REC)
    if not device:
        read_only(target)


def build_root(binds, devices, tmp_mb):
    """A root that holds the binds, the devices and an empty /tmp, and nothing else."""
    links = [(s, t, os.path.islink(s)) for s, t in binds if os.path.lexists(s)]  # noqa: PTH114
    targets = {s: os.readlink(s) for s, _, is_link in links if is_link}  # noqa: PTH115
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    os.mkdir("/tmp/oldroot")  # noqa: PTH102
    numbers = MACHINES[os.uname().machine][1]
    check(libc.syscall(numbers["pivot_root"], b"/tmp", b"/tmp/oldroot"), "pivot_root")
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
    for device in devices:
        place(device, device, device=True)
    check(libc.umount2(b"/oldroot", MNT_DETACH), "umount")
    os.rmdir("/oldroot")  # noqa: PTH106
    check(libc.sethostname(b"sandbox", 7), "host name")
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


def give_up_capabilities():
    """No capability, none to be had by running a program, and no other process of this user may look into this one."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    check(libc.capset(ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)())), "capset")
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")
    check(libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "not dumpable")


def refuse_calls():
    """Refuse the calls of `MACHINES`, for good and for every child.

    Raises:
        OSError: If the kernel does not take the filter, or the machine's numbers are not known.
    """
    machine = os.uname().machine
    if machine not in MACHINES:
        raise OSError(ENOSYS, f"no list of system calls for {machine}")
    architecture, numbers = MACHINES[machine]
    load, equal, at_least, any_of, end = 0x20, 0x15, 0x35, 0x45, 0x06
    # An offset into seccomp_data: 0 the call's number, 4 the architecture, 16 the low half of the first argument.
    program = [(load, 0, 0, 4), (equal, 1, 0, architecture), (end, 0, 0, KILL), (load, 0, 0, 0)]
    if machine == "x86_64":  # the numbers of its second, 32-bit, set of calls begin here
        program += [(at_least, 0, 1, 0x40000000), (end, 0, 0, ERROR | ENOSYS)]
    # The flags of clone3 lie in memory, where a filter cannot look; without it glibc uses clone.
    program += [(equal, 0, 1, numbers["clone3"]), (end, 0, 0, ERROR | ENOSYS)]
    by_argument = ("clone", "clone3", "socket", *OF_A_PROCESS)
    for number in [*(n for name, n in numbers.items() if name not in by_argument), *EVERYWHERE]:
        program += [(equal, 0, 1, number), (end, 0, 0, ERROR | EPERM)]
    for name, test in (("clone", NAMESPACES), *((name, 0xFFFFFFFF) for name in OF_A_PROCESS)):
        program += [(equal, 0, 4, numbers[name]), (load, 0, 0, 16), (any_of, 0, 1, test), (end, 0, 0, ERROR | EPERM)]
        program += [(end, 0, 0, ALLOW)]
    families = [(equal, len(FAMILIES) - place, 0, family) for place, family in enumerate(FAMILIES)]
    program += [(equal, 0, 2 + len(FAMILIES), numbers["socket"]), (load, 0, 0, 16), *families]
    program += [(end, 0, 0, ERROR | EAFNOSUPPORT), (end, 0, 0, ALLOW)]
    instructions = (Instruction * len(program))(*(Instruction(*each) for each in program))
    whole = Filter(len(program), instructions)
    check(libc.prctl(PR_SET_SECCOMP, 2, ctypes.byref(whole), 0, 0), "filter of system calls")


def give_up_the_rest(spec):
    """Limits, no capabilities, the filter, and installed packages where the script may import them."""
    if sys.platform == "linux":
        # Whatever a script's children leave behind becomes the script's own child, which it can then end.
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    set_limits(spec["limits"])
    if spec["mode"] != "plain":
        give_up_capabilities()
        refuse_calls()
    if spec["site"]:
        import site

        site.main()


def run(spec, codes):
    """Be the script."""
    modules = [type(sys)(name) for name in (*spec["modules"], "__main__")]
    sys.argv = [spec["script"], *spec["arguments"]]
    for module, code in zip(modules, codes, strict=True):
        sys.modules[module.__name__] = module
        exec(code, module.__dict__)


def wait_for(child):
    """The child's exit status as a shell would give it."""
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def say_unavailable(reason):
    """Tell who started this why nothing runs."""
    import json

    os.write(1, json.dumps({"unavailable": reason}).encode() + b"\n")
    os._exit(97)


def shut_in(spec):
    """Set everything up and load modules and script; returns their code, in the process that may run it."""
    files = {**spec["modules"], "script": spec["script"]}
    codes = [SourceFileLoader(name, path).get_code(name) for name, path in files.items()]
    if spec["mode"] == "namespaces":
        enter_namespaces()
        first = os.fork()
        if first:
            os._exit(wait_for(first))
        libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
        build_root(spec["binds"], spec["devices"], spec["limits"]["tmp_mb"])
        inner = os.fork()
        if inner:
            os._exit(wait_for(inner))
        give_up_root()
    give_up_the_rest(spec)
    return codes


def main():
    """Read the specification and carry it out."""
    spec = eval(sys.argv[1], {})  # written by `sandbox.modes`
    os.umask(0o022)  # the new root is built by the one who starts this, and read by nobody
    if sys.platform == "linux":
        libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    try:
        codes = shut_in(spec)
    except Exception as error:
        say_unavailable(getattr(error, "strerror", None) or f"{type(error).__name__}: {error}")
    run(spec, codes)


if __name__ == "__main__":
    main()
