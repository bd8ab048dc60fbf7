"""Read how much memory a process may still take in its control groups (containers, Linux).

A container sees the whole machine's memory, and is killed at its own limit. See the kernel's
admin-guide/cgroup-v2 (`memory.max`) and cgroup-v1/memory (`memory.limit_in_bytes`).
"""

import os
from collections.abc import Iterator

VERSIONS = (
    ("", "memory.max", "memory.current", "{}"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_{}"),
)
"""Folder, limit, usage, and names in `memory.stat`, of version 2 and of version 1."""
RECLAIMABLE = ("inactive_file", "active_file")


def room_in_cgroups(mount: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> int | None:
    """Return what is left below the tightest memory limit of a process's control groups.

    Args:
        mount: Where the hierarchies are mounted.
        own: The file that names the process's groups.

    Returns:
        Bytes; cached files count as left. None where there is no limit, or no control group.
    """
    rooms = []
    for folder, limit, usage, stat in VERSIONS:
        for place in _places(own, folder, os.path.join(mount, folder)):
            try:
                most = int(_read(os.path.join(place, limit)))  # "max" without a limit
                used = int(_read(os.path.join(place, usage)))
                lines = dict(
                    x.split() for x in _read(os.path.join(place, "memory.stat")).split("\n")
                )
            except (OSError, ValueError):
                continue
            cached = sum(int(lines.get(stat.format(kind), 0)) for kind in RECLAIMABLE)
            rooms.append(max(0, most - used + cached))
    return min(rooms, default=None)


def _places(own: str, controller: str, root: str) -> Iterator[str]:
    """List the folders of a process's group and of those above it."""
    # A container often sees its own group as the root, under the name that it has outside.
    try:
        lines = _read(own).split("\n")
    except OSError:
        return
    yield root
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == controller:
            parts = group.strip("/").split("/")
            yield from (os.path.join(root, *parts[:n]) for n in range(1, len(parts) + 1))


def _read(path: str) -> str:
    with open(path, encoding="ascii") as stream:
        return stream.read().strip()
