"""How many files, and so connections, this process may have open (floor 2)."""

import resource


def raise_open_files() -> int:
    """Raise the soft limit to the hard one and return it. Shells give 1024, which is few for a server: each request
    holds two connections. The low soft limit is for programs that use select(2), which we do not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return hard
    return soft
