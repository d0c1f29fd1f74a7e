"""A face's scores over time: bars of characters, places of a drawing, and which frames to look at.

Faces are looked at in sampled frames only. What lies between two of them is drawn as a line where
the face was in both, and left out where it was lost.
"""

from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.text import Text

from dfdetect.results import FrameScore, Verdict

BARS, ASCII_BARS = "▁▂▃▄▅▆▇█", "_.:-=+*#"
WIDEST = 40
"""Characters of a sparkline; of more scores each shows the highest of several."""


def sparkline(scores: Sequence[float], bars: str = BARS) -> str:
    """Scores 0..1 as bars, lowest first in `bars`, one character each."""
    return "".join(bars[min(len(bars) - 1, int(len(bars) * score))] for score in scores)


class Sparkline:
    """The same for Rich, of at most 40 characters, and in ASCII where the terminal has no more."""

    def __init__(self, scores: Sequence[float]) -> None:
        self._scores = thinned(scores, WIDEST)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        bars = ASCII_BARS if options.ascii_only else BARS
        yield Text(sparkline(self._scores, bars), no_wrap=True)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(len(self._scores), len(self._scores))


def thinned(scores: Sequence[float], n: int) -> list[float]:
    """At most `n` scores in the same order, each the highest of its share: no peak is lost."""
    n = min(n, len(scores))
    bounds = [i * len(scores) // n for i in range(n + 1)] if n else []
    return [max(scores[a:b]) for a, b in pairwise(bounds)]


def peaks(scores: Sequence[float], n: int) -> list[int]:
    """Positions of up to `n` highest scores, in order.

    None is below the median, and two are at least 1/(2n) of the whole apart, so that one moment
    does not take them all; of equal scores the first counts.
    """
    apart, least = max(1, len(scores) // (2 * n)), median(scores)
    chosen: list[int] = []
    for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        if (
            len(chosen) < n
            and scores[i] >= least
            and all(abs(i - other) >= apart for other in chosen)
        ):
            chosen.append(i)
    return sorted(chosen)


def indices_used(verdict: Verdict) -> list[int]:
    """Of the frames that were searched for faces, in order."""
    if verdict.media:
        return [index for index, _ in verdict.media.frames_used]
    return sorted({frame.index for track in verdict.tracks for frame in track.frames})


def unbroken(frames: Sequence[FrameScore], used: Sequence[int]) -> list[list[FrameScore]]:
    """The `frames` of one face, parted where it was in none of the frames `used` (their indices, in
    order) between two of its own."""
    place = {index: i for i, index in enumerate(used)}
    parts: list[list[FrameScore]] = []
    for frame in frames:
        if parts and place[frame.index] - place[parts[-1][-1].index] == 1:
            parts[-1].append(frame)
        else:
            parts.append([frame])
    return parts
