"""Takes from this process the right to open files it has no business with (Landlock, Linux 5.13 and later).

Threads that exist already keep their rights, so this comes first in `main`, before anything starts a thread.
"""

import ctypes
import os
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from shared.errors import ErrorCode, StepwedgeError

# linux/landlock.h and the system call table (the same numbers on every architecture).
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_RULE_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38

_EXECUTE = 1 << 0
_WRITE_FILE = 1 << 1
_READ_FILE = 1 << 2
_READ_DIR = 1 << 3
_TRUNCATE = 1 << 14
_IOCTL_DEV = 1 << 15

# Rights that each version of the interface knows: 1 has bits 0 to 12, 2 adds REFER, 3 TRUNCATE, 5 IOCTL_DEV.
_KNOWN = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}

_READ = _EXECUTE | _READ_FILE | _READ_DIR
# What may be granted on a path that is a file and not a folder.
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV


def confine(read: Sequence[Path], write: Sequence[Path]) -> bool:
    """Leave this thread, and what it starts, only these parts of the file system; there is no way back.

    Files that are open stay so. Reading includes executing and listing. Devices that every program needs
    (/dev/null, /dev/urandom) must be named like all else.

    Parameters
    ----------
    read
        Files and folders that may be read; those that do not exist are passed over.
    write
        Files and folders that may be read and changed; those that do not exist are passed over.

    Returns
    -------
    bool
        False where the kernel has no Landlock, and nothing was taken.

    Raises
    ------
    StepwedgeError
        CONFIGURATION where the kernel has it and refuses.
    """
    version = _syscall(_CREATE_RULESET, None, 0, _VERSION_FLAG) if sys.platform == "linux" else -1
    if version < 1:
        return False
    handled = _KNOWN[min(version, max(_KNOWN))]
    # struct landlock_ruleset_attr, its first member; a shorter one than the kernel knows is allowed.
    ruleset = _syscall(_CREATE_RULESET, ctypes.create_string_buffer(struct.pack("=Q", handled), 8), 8, 0)
    if ruleset < 0:
        _refused()
    try:
        for paths, rights in ((read, _READ), (write, handled)):
            for path in paths:
                _allow(ruleset, path, rights & handled)
        # Without it the kernel asks for CAP_SYS_ADMIN, lest a setuid program be surprised.
        if _libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            _refused()
        if _syscall(_RESTRICT_SELF, ruleset, 0) < 0:
            _refused()
    finally:
        os.close(ruleset)
    return True


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        granted = rights if path.is_dir() else rights & _OF_FILES
        # struct landlock_path_beneath_attr: packed, a u64 and an s32.
        attribute = ctypes.create_string_buffer(struct.pack("=Qi", granted, descriptor), 12)
        if _syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, attribute, 0) < 0:
            _refused()
    finally:
        os.close(descriptor)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _syscall(number: int, *arguments: object) -> int:
    libc = _libc()
    libc.syscall.restype = ctypes.c_long
    return int(libc.syscall(ctypes.c_long(number), *(_widened(argument) for argument in arguments)))


def _widened(argument: object) -> object:
    # syscall(2) is variadic: an int must be passed at the width of a register.
    return ctypes.c_long(argument) if isinstance(argument, int) else argument


def _refused() -> NoReturn:
    raise StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, "the kernel refused to confine the process")
