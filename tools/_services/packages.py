"""Finds programs, and installs the Debian package that holds one when it is absent and we are root.

May run apt-get; nothing else here changes the machine.
"""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from . import procs, settings, state
from .errors import ServiceError, Unavailable


def find(program: str, *extra_dirs: str) -> str | None:
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin", *extra_dirs])
    return shutil.which(program, path=path)


def ensure(program: str, needed: Sequence[str], look: Callable[[], str | None] | None = None) -> str:
    """Path of the program; installs the `needed` packages if that is what it takes, else raises Unavailable."""
    look = look or (lambda: find(program))
    found = look()
    if found is None:
        _install(program, needed, look)
        found = look()
    if found is None:
        raise Unavailable(f"{program} is still not there after installing {', '.join(needed)}")
    return found


def _install(program: str, needed: Sequence[str], look: Callable[[], str | None]) -> None:
    apt = find("apt-get")
    if apt is None or os.geteuid() != 0:
        why = "there is no apt-get" if apt is None else "only root may install " + ", ".join(needed)
        raise Unavailable(f"{program} is not installed, and {why}")
    with state.locked("apt", state.default_dir()):
        if look() is not None:
            return
        wait = "DPkg::Lock::Timeout=300"
        os.environ["DEBIAN_FRONTEND"] = "noninteractive"
        try:
            procs.run([apt, "-o", wait, "update"], timeout_s=settings.INSTALL_TIMEOUT_S)
            options = ["-y", "--no-install-recommends", "-o", wait]
            procs.run([apt, "install", *options, *needed], timeout_s=settings.INSTALL_TIMEOUT_S)
        except ServiceError as error:
            raise Unavailable(
                f"{program} is not installed, and installing {', '.join(needed)} failed: {error}"
            ) from error


def unprivileged_user(*preferred: str) -> str | None:
    """None when we are not root: then servers run as ourselves."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    for name in (*preferred, "nobody"):
        if name in names:
            return name
    raise Unavailable("a database server refuses to run as root, and there is no other user to run it as")


def reachable_by(user: str | None, directory: Path) -> bool:
    """Whether `user` may pass through every directory above `directory`."""
    if user is None:
        return True
    uid = pwd.getpwnam(user).pw_uid
    above = [parent.stat() for parent in directory.resolve().parents]
    return all(info.st_mode & 0o001 or (info.st_uid == uid and info.st_mode & 0o100) for info in above)
