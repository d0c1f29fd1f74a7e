"""Quality names, parsed: `raw`, `c23` (H.264 at CRF 23), `j75` (JPEG at quality 75)."""

import re
from typing import NamedTuple

from dfdetect.errors import DfdetectError


class Quality(NamedTuple):
    """One compression level. `codec` is raw, h264 or jpeg; `level` its CRF or JPEG quality."""

    name: str
    codec: str
    level: int


def parse_quality(name: str) -> Quality:
    """`c23` -> Quality('c23', 'h264', 23). Errors: DfdetectError for anything else."""
    match = re.fullmatch(r"(raw)|c(\d{1,2})|j(\d{1,3})", name)
    if match and match[1]:
        return Quality("raw", "raw", 0)
    if match and match[2] and int(match[2]) <= 51:
        return Quality(name, "h264", int(match[2]))
    if match and match[3] and 1 <= int(match[3]) <= 100:
        return Quality(name, "jpeg", int(match[3]))
    raise DfdetectError(
        f"unknown quality {name!r}",
        "use raw, cNN (H.264, CRF 0 to 51) or jNN (JPEG, quality 1 to 100)",
    )


def parse_qualities(names: str | list[str] | tuple[str, ...]) -> tuple[Quality, ...]:
    """`raw,c23,c40` -> three qualities, in the order given, each once."""
    parts = names.split(",") if isinstance(names, str) else names
    parsed = tuple(dict.fromkeys(parse_quality(part.strip()) for part in parts if part.strip()))
    if not parsed:
        raise DfdetectError("no quality given", "for example --qualities raw,c23,c40")
    return parsed
