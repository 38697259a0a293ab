"""Who holds a TCP port (floor 4): for the one message where it matters, at start. Linux tells it in /proc."""

from pathlib import Path

_LISTEN = "0A"


def port_owner(port: int, proc: Path = Path("/proc")) -> str:
    """Name and pid of a process that listens on ``port``, like "ollama (pid 812)"; "" if it cannot be told (another
    user's process, another network namespace)."""
    inodes = _listening(port, proc)
    if not inodes:
        return ""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for folder in proc.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if any(str(link.readlink()) in wanted for link in (folder / "fd").iterdir()):
                return f"{(folder / 'comm').read_text().strip()} (pid {folder.name})"
        except OSError:
            continue  # it ended meanwhile, or is not ours to look into
    return ""


def _listening(port: int, proc: Path) -> set[str]:
    inodes: set[str] = set()
    for table in ("tcp", "tcp6"):
        try:
            rows = (proc / "net" / table).read_text().splitlines()[1:]
        except OSError:
            continue  # no IPv6 here
        for row in rows:
            columns = row.split()
            if columns[3] == _LISTEN and int(columns[1].rpartition(":")[2], 16) == port:
                inodes.add(columns[9])
    return inodes
