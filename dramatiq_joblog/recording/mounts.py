"""The file system of a folder, if the system reports it."""

from __future__ import annotations

import re
from pathlib import Path

#: File systems that are lost with their host's power, or with their container.
PASSING = {
    "aufs": "is deleted with its container",
    "fuse-overlayfs": "is deleted with its container",
    "overlay": "is deleted with its container",
    "ramfs": "is deleted when the host restarts",
    "tmpfs": "is deleted when the host restarts",
}
#: The mounts of this process; see proc(5).
MOUNTS = Path("/proc/self/mountinfo")


def file_system_of(folder: Path) -> str | None:
    """Return the type of the file system that *folder* is or would be on; None if unknown."""
    try:
        text = MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
        place = folder.resolve()
    except OSError:
        return None
    found: tuple[int, str] | None = None
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        fields = before.split(" ")
        if not separator or len(fields) < 5:
            continue
        point = Path(_unescaped(fields[4]))
        depth = len(point.parts)
        # A later mount at the same point hides the earlier one.
        if (place == point or point in place.parents) and (found is None or depth >= found[0]):
            found = depth, after.split(" ")[0]
    return None if found is None else found[1]


def _unescaped(text: str) -> str:
    """Decode the octal escapes of a mount point."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
