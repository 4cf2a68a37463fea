"""Locks this process up before it runs a program that nobody has read. Linux; elsewhere only the resource limits hold.

Layers, each used where the host offers it:

- namespaces: no network, not even loopback; no other process is seen; the working directory is a file system of its own, in
  memory and bounded, that vanishes with the process;
- landlock: of the files only Python's and the system's libraries can be read, and only the working directory written;
- seccomp: no new process, no exec, no socket, no signal, no tracing, no mounting, nobody else's limits, no file's owner, mode or
  times; files can be written only where both layers above hold;
- limits: memory, CPU time, file size, open files, no core dump. Always. Capabilities are dropped.

What they do not protect against: faults of the kernel itself, time spent on the shared processor cores and caches, and, without
landlock, the reading of files that this user can read.
"""

import ctypes
import os
import platform
import resource
import signal
import struct
import sys
from pathlib import Path

LAYERS = ("namespaces", "landlock", "seccomp")
SCRATCH_MB = 64  # all files of the working directory together
FILE_MB = 16
OPEN_FILES = 64

_NEW = {"user": 0x10000000, "mount": 0x00020000, "pid": 0x20000000, "net": 0x40000000, "ipc": 0x08000000, "uts": 0x04000000}
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_EPERM, _ENOSYS = 1, 38

# system call: (number on x86_64, on aarch64); None where the machine does not have it.
_REFUSED = {
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "pidfd_getfd": (438, 438),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97), "setns": (308, 268),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsmount": (432, 432), "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "memfd_create": (319, 279), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "bpf": (321, 280), "perf_event_open": (298, 241), "personality": (135, 92), "acct": (163, 89),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104), "reboot": (169, 142),
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "chown": (92, None), "fchown": (93, 55), "lchown": (94, None),
    "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15),
    "fremovexattr": (199, 16), "mq_open": (240, 180), "mq_unlink": (241, 181), "setpriority": (141, 140), "ioprio_set": (251, 30),
    "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119), "sched_setparam": (142, 118), "sched_setattr": (314, 274),
    "migrate_pages": (256, 238), "move_pages": (279, 239), "swapon": (167, 224), "sethostname": (170, 161), "settimeofday": (164, 170), "clock_settime": (227, 112), "quotactl": (179, 60),
}  # fmt: skip
_WRITES = {
    "creat": (85, None), "truncate": (76, 45), "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276),
    "unlink": (87, None), "unlinkat": (263, 35), "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None),
    "link": (86, None), "linkat": (265, 37), "symlink": (88, None), "symlinkat": (266, 36), "mknod": (133, None), "mknodat": (259, 33),
    "openat2": (437, 437),
}  # fmt: skip
_CLONE, _CLONE3, _PRCTL, _OPEN, _OPENAT = (56, 220), (435, 435), (157, 167), (2, None), (257, 56)
_SOCKETPAIR, _PRLIMIT, _FCNTL, _IOCTL = (53, 199), (302, 261), (72, 25), (16, 29)
_OWNER_COMMANDS = (8, 10, 15)  # of fcntl: F_SETOWN, F_SETSIG, F_SETOWN_EX, by which the kernel sends signals for one
_OWNER_REQUESTS = (0x8901, 0x8902, 0x5412)  # of ioctl: FIOSETOWN, SIOCSPGRP, TIOCSTI
_UNKNOWN = 446  # calls from here on are younger than this list, and answered as if the kernel did not have them
_CLONE_THREAD = 0x10000
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def lock_up(layers: tuple[str, ...], seconds: float, memory_mb: int) -> list[str]:
    """Apply what the host offers of `layers`, and the limits; returns the layers that hold.

    The caller stands in its scratch directory, has one thread and has imported what it needs. With namespaces the process that
    returns is a child: its parent waits for it, and both die with whoever started them.
    """
    held = []
    if "namespaces" in layers and _libc and _namespaces():
        held.append("namespaces")
    _die_with_parent()
    _limits(seconds, memory_mb)
    if _libc:
        _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if "landlock" in layers and _landlock():
            held.append("landlock")
        _drop_capabilities()
        if "seccomp" in layers and _seccomp(may_write={"namespaces", "landlock"} <= set(held)):
            held.append("seccomp")
    return held


def _die_with_parent() -> None:
    if _libc:
        _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def _limits(seconds: float, memory_mb: int) -> None:
    cpu = int(seconds) + 1
    wanted = {
        resource.RLIMIT_AS: memory_mb << 20,
        resource.RLIMIT_CPU: cpu,
        resource.RLIMIT_FSIZE: FILE_MB << 20,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    for what, most in wanted.items():
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))


def _namespaces() -> bool:
    """New user, mount, process, network, IPC and host-name namespaces, and a bounded file system in place of the working
    directory. False, with nothing changed, where the host refuses."""
    uid, gid, here, parent = os.getuid(), os.getgid(), os.getcwd(), os.getppid()
    if _libc.unshare(sum(_NEW.values())) != 0:
        return False
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    child = os.fork()
    if child:  # this process stays outside; what ends it ends the one inside, which is the first of its namespace and takes all along

        def end(*_):
            os.kill(child, signal.SIGKILL)
            os._exit(1)

        signal.signal(signal.SIGTERM, end)
        if _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0) or os.getppid() != parent:
            end()
        os._exit(0 if os.waitpid(child, 0)[1] == 0 else 1)
    private, nosuid_nodev = 0x44000, 0x6
    _libc.mount(None, b"/", None, private, None)
    if _libc.mount(b"tmpfs", here.encode(), b"tmpfs", nosuid_nodev, f"size={SCRATCH_MB}m,nr_inodes=4096,mode=0700".encode()) == 0:
        os.chdir(here)
    return True


def _landlock() -> bool:
    """Read Python and the system's libraries, write the working directory, nothing else; no TCP. False where there is no landlock."""
    create, add, restrict = 444, 445, 446
    abi = _libc.syscall(create, None, 0, 1)
    if abi < 1:
        return False
    execute, write, read, read_dir = (1 << i for i in range(4))
    everything = (1 << 13) - 1 | (1 << 13 if abi >= 2 else 0) | (1 << 14 if abi >= 3 else 0) | (1 << 15 if abi >= 5 else 0)
    attributes = struct.pack("QQQ", everything, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)[: 24 if abi >= 6 else 16 if abi >= 4 else 8]
    ruleset = _libc.syscall(create, attributes, len(attributes), 0)
    if ruleset < 0:
        return False
    libraries = {sys.prefix, sys.base_prefix, "/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime"}
    libraries |= {p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")}
    devices = {"/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"}
    rules = [(p, execute | read | read_dir) for p in libraries] + [(p, read | write) for p in devices] + [(os.getcwd(), everything)]
    for path, rights in rules:
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        if not os.path.isdir(path):
            rights &= execute | write | read
        _libc.syscall(add, ruleset, 1, struct.pack("=Qi", rights, fd), 0)
        os.close(fd)
    done = _libc.syscall(restrict, ruleset, 0) == 0
    os.close(ruleset)
    return done


def _drop_capabilities() -> None:
    header, none = struct.pack("Ii", 0x20080522, 0), bytes(24)
    _libc.capset(header, none)


def _seccomp(may_write: bool) -> bool:
    """Refuse the system calls above with an error. False on a machine whose calls are not listed, or where the kernel refuses."""
    machine = platform.machine()
    if machine not in _AUDIT:
        return False
    column = list(_AUDIT).index(machine)
    load, equal, at_least, masked, answer = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF: load a word; jump if =, ≥, any bit; return
    allow, refuse, absent, kill = 0x7FFF0000, 0x00050000 | _EPERM, 0x00050000 | _ENOSYS, 0x80000000
    number, architecture, argument = 0, 4, [16 + 8 * i for i in range(6)]  # offsets in struct seccomp_data; low halves
    code = [(load, 0, 0, architecture), (equal, 1, 0, _AUDIT[machine]), (answer, 0, 0, kill), (load, 0, 0, number)]
    code += [(masked, 0, 1, 0x40000000), (answer, 0, 0, refuse)]  # x86_64's second, 32-bit set of calls
    code += [(at_least, 0, 1, _UNKNOWN), (answer, 0, 0, absent)]

    def rule(numbers, *then):
        if numbers[column] is not None:
            code.extend([(equal, 0, len(then), numbers[column]), *then])

    rule(_CLONE3, (answer, 0, 0, absent))
    rule(_CLONE, (load, 0, 0, argument[0]), (masked, 1, 0, _CLONE_THREAD), (answer, 0, 0, refuse), (answer, 0, 0, allow))
    rule(_PRCTL, (load, 0, 0, argument[0]), (equal, 0, 1, _PR_SET_PDEATHSIG), (answer, 0, 0, refuse), (answer, 0, 0, allow))
    for call, which, bad in ((_FCNTL, 1, _OWNER_COMMANDS), (_IOCTL, 1, _OWNER_REQUESTS)):
        jumps = [(equal, len(bad) - i, 0, value) for i, value in enumerate(bad)]
        rule(call, (load, 0, 0, argument[which]), *jumps, (answer, 0, 0, allow), (answer, 0, 0, refuse))
    for call, wanted in ((_SOCKETPAIR, 1), (_PRLIMIT, 0)):  # AF_UNIX; one's own limits
        rule(call, (load, 0, 0, argument[0]), (equal, 1, 0, wanted), (answer, 0, 0, refuse), (answer, 0, 0, allow))
    if not may_write:
        for call, flags in ((_OPEN, 1), (_OPENAT, 2)):
            rule(call, (load, 0, 0, argument[flags]), (masked, 0, 1, _WRITING), (answer, 0, 0, refuse), (answer, 0, 0, allow))
    for numbers in (_REFUSED | ({} if may_write else _WRITES)).values():
        rule(numbers, (answer, 0, 0, refuse))
    code.append((answer, 0, 0, allow))
    program = b"".join(struct.pack("HBBI", *line) for line in code)
    held = ctypes.create_string_buffer(program, len(program))

    class Filter(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]

    return _libc.prctl(_PR_SET_SECCOMP, 2, ctypes.byref(Filter(len(code), ctypes.addressof(held))), 0, 0) == 0
