"""Files written whole or not at all, and moved without ever overwriting one."""

# text paths: Path objects cost more than the work itself in loops over a million files
# ruff: noqa: PTH104, PTH105, PTH108, PTH114, PTH115
# ruff: noqa: PTH123, PTH211
from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

_CHUNK = 1 << 20


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: a temporary name in the same folder, fsync, rename.

    Whoever reads `path` sees the old content or the new, after a crash too. Raises IsADirectoryError for a folder.
    """
    if path.is_dir():  # the rename below would say so of the temporary name
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    temporary = path.with_name(f".edkit-{secrets.token_hex(6)}")
    try:
        write_synced(temporary, data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in UTF-8 with line feeds, as `write_bytes` does."""
    write_bytes(path, text.encode("utf-8"))


def write_synced(path: str | Path, data: bytes) -> None:
    """Write `data` under `path` itself and wait until the disk has it."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: str | Path) -> None:
    """Make the names in a folder durable (nothing to do on Windows, which can't and needn't)."""
    if sys.platform == "win32":
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # an unreadable folder can still be written; its names are then as durable as they get
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):
            raise
    finally:
        os.close(handle)


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file's bytes in hex; of a symbolic link, that of its target's name."""
    if os.path.islink(path):
        target = os.fsencode(os.readlink(path))
        return hashlib.sha256(b"edkit symbolic link\0" + target).hexdigest()
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def same_bytes(a: str | Path, b: str | Path) -> bool:
    """Whether two files hold the same bytes (two links: the same target)."""
    if os.path.islink(a) or os.path.islink(b):
        return os.path.islink(a) and os.path.islink(b) and os.readlink(a) == os.readlink(b)
    with open(a, "rb") as one, open(b, "rb") as two:
        while True:
            left, right = one.read(_CHUNK), two.read(_CHUNK)
            if left != right:
                return False
            if not left:
                return True


def replace_folder(part: Path, final: Path) -> None:
    """Give the finished folder `part` the name `final`, in place of an older folder of that name, which goes.

    Where the system exchanges two names at once (Linux, macOS), one of the two always stands there; elsewhere
    there is none for a moment.
    """
    old = None
    if os.path.lexists(final):
        exchange = _exchanging_rename()
        if exchange is not None and exchange(os.fsencode(part), os.fsencode(final)) == 0:
            old = part
        else:
            old = final.with_name(f".edkit-{secrets.token_hex(6)}")
            os.replace(final, old)
            os.replace(part, final)
    else:
        os.replace(part, final)
    sync_folder(final.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder that never stands half removed under its own name."""
    going = folder.with_name(f".edkit-{secrets.token_hex(6)}")
    os.replace(folder, going)
    shutil.rmtree(going, ignore_errors=True)


def rename_new(src: str, dst: str) -> None:
    """Rename a file; FileExistsError where `dst` is taken, OSError EXDEV across volumes."""
    exclusive = _exclusive_rename()
    if exclusive is not None:
        number = exclusive(os.fsencode(src), os.fsencode(dst))
        if number == 0:
            return
        # file systems that don't know the flag say EINVAL (or ENOTSUP); then the check below must do
        if number not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise OSError(number, os.strerror(number), src, None, dst)
    if sys.platform != "win32" and os.path.lexists(dst):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), src, None, dst)
    os.rename(src, dst)


def move_new(src: str, dst: str, part: str) -> bool:
    """Move a file to a free name: a rename, or across volumes a verified copy and then an unlink.

    Returns whether it was copied. `part` is a temporary name in dst's folder for the copy; a left-over of an
    earlier try is overwritten.
    FileExistsError where `dst` is taken.
    """
    try:
        rename_new(src, dst)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy_new(src, dst, part)
        os.unlink(src)
        return True
    return False


def copy_new(src: str, dst: str, part: str) -> None:
    """Copy a file with its times and mode to a free name, synced and read back before it gets that name."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(part)
    try:
        if os.path.islink(src):
            os.symlink(os.readlink(src), part)
        else:
            with open(src, "rb") as source, open(part, "wb") as target:
                shutil.copyfileobj(source, target, _CHUNK)
                target.flush()
                os.fsync(target.fileno())
            if not same_bytes(src, part):
                raise OSError(errno.EIO, "the copy does not read back as it was written", dst)
        shutil.copystat(src, part, follow_symlinks=False)
        rename_new(part, dst)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        raise


def is_file(info: os.stat_result) -> bool:
    """Whether a `lstat` is of a regular file or a symbolic link, which are what edkit moves."""
    return stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode)


@cache
def _exclusive_rename() -> Callable[[bytes, bytes], int] | None:
    """The system call that renames without replacing: 0 or an errno. None where there is none."""
    return _flagged_rename(linux=1, darwin=4)  # RENAME_NOREPLACE, RENAME_EXCL


@cache
def _exchanging_rename() -> Callable[[bytes, bytes], int] | None:
    """The system call that lets two names change places: 0 or an errno. None where there is none."""
    return _flagged_rename(linux=2, darwin=2)  # RENAME_EXCHANGE, RENAME_SWAP


def _flagged_rename(*, linux: int, darwin: int) -> Callable[[bytes, bytes], int] | None:
    at_cwd, flag = (-100, linux) if sys.platform.startswith("linux") else (-2, darwin)
    name = {"linux": "renameat2", "darwin": "renameatx_np"}.get(sys.platform)
    if name is None:
        return None
    try:
        call = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (OSError, AttributeError):  # an old or unusual C library
        return None
    call.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]

    def rename(src: bytes, dst: bytes) -> int:
        return 0 if call(at_cwd, src, at_cwd, dst, flag) == 0 else ctypes.get_errno()

    return rename
