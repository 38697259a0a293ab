"""Files that survive a crash (floor 2): written whole or not at all, synced before they are named, readable by the
service's user whatever the umask of the process that made them."""

import contextlib
import errno
import hashlib
import os
import shutil
from pathlib import Path

FILE_MODE = 0o644
FOLDER_MODE = 0o755
BLOCK_BYTES = 4 << 20  # big enough that hashing and not the system call is what costs

_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EXDEV, errno.EMLINK})


def make_folder(folder: Path) -> None:
    """Make a folder, and the ones above it that are missing, with our mode; an existing one is left as it is."""
    if folder.is_dir():
        return
    if not folder.parent.exists():
        make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
        folder.chmod(FOLDER_MODE)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(folder))


def remove_tree(folder: Path) -> None:
    """Remove a folder, or a file of that name, and all in it; nothing happens if there is none."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        folder.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Make a file's contents durable; quick if they are already."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, content: bytes) -> None:
    """Write and sync a file with our mode; the caller renames it into place."""
    with path.open("wb") as file:
        os.fchmod(file.fileno(), FILE_MODE)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, content: bytes) -> None:
    """Put ``content`` in place of a small file: after a crash there is the old content or the new one. The folder is
    made if need be. Not for several threads or processes at once: what a crash leaves is overwritten by the next."""
    make_folder(path.parent)
    temporary = path.with_name(f".tmp-{path.name}")
    write_whole(temporary, content)
    temporary.replace(path)
    sync_folder(path.parent)


def hash_file(path: Path) -> str:
    """The SHA-256 of a file in hex, read in big blocks."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_file(source: Path, destination: Path) -> tuple[str, int]:
    """Copy a file's contents with our mode, hashing them on the way; synced. Returns its SHA-256 and size."""
    digest = hashlib.sha256()
    size = 0
    with source.open("rb", buffering=0) as reader, destination.open("wb", buffering=0) as writer:
        os.fchmod(writer.fileno(), FILE_MODE)
        while block := reader.read(BLOCK_BYTES):
            digest.update(block)
            size += len(block)
            view = memoryview(block)
            while view:
                view = view[writer.write(view) :]
        os.fsync(writer.fileno())
    return digest.hexdigest(), size


def link_or_copy(source: Path, destination: Path) -> None:
    """Give a file a second name, replacing what has that name; where the disk knows no hard links, copy it whole."""
    temporary = destination.with_name(f".tmp-{os.getpid()}-{destination.name}")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        copy_file(source, temporary)
    temporary.replace(destination)
