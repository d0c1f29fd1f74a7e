"""Verdicts of a scan -> one HTML page: in words, over time, with the faces at the peaks, what was
examined and what was not, and the chain of custody.

The page needs no network and no script, and its policy allows neither. All that is written of an
input goes through one gate, `_shown`: control and bidirectional characters as escapes, then HTML's
own. Nothing that an input says becomes an attribute, a link or a style.
"""

import io
from base64 import b64encode
from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from PIL import Image

from dfdetect import __version__
from dfdetect.errors import DfdetectError, printable
from dfdetect.faces import to_input
from dfdetect.reports.heat import overlay
from dfdetect.reports.table import probability
from dfdetect.reports.timeline import indices_used, peaks, thinned, unbroken
from dfdetect.results import FrameScore, TrackScore, Verdict
from dfdetect.scoring import MIN_COVERAGE, ScoredFace, ScoredInput, lasting

MOST_DETAILED = 20
"""Inputs with a section of their own; of more, the most suspicious."""
MOST_PEOPLE = 5
"""People drawn for an input; of more, those most suspicious."""
PEAKS = 4
PICTURE_PX = 192
TREND_POINTS = 40

Maps = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]
"""From crops uint8 [S,S,3] RGB to a heat map each, float [S,S] in 0..1, 0 where it is empty."""

WORDS = {
    "likely-fake": "Likely fake", "likely-real": "Likely real",
    "inconclusive": "Inconclusive", "no-face": "No face",
}  # fmt: skip
MEANING = {
    "likely-fake": "The most suspicious face looks to the model more like the forgeries that it "
    "learnt from than like the real faces. This is a lead to follow, not a proof.",
    "likely-real": "No face long in view looks to the model like the forgeries that it learnt "
    "from. This does not prove that the file is genuine.",
    "inconclusive": "No call is made.",
    "no-face": "Nothing was judged.",
}
EXPERIMENTAL = "Experimental model: its verdicts are experiments and no evidence"
CALIBRATED = (
    "It estimates how probable a forgery is among inputs like those that the model was calibrated "
    "on, if fakes are as common among them as the prior says; elsewhere it may be far off."
)
UNCALIBRATED = (
    "It ranks inputs from 0 (real) to 1 (fake) and is no probability: 0.9 does not mean nine in "
    "ten."
)
LIMITS = (
    "A score is one model's reading of face pictures. It proves nothing, and says nothing about "
    "who made or changed a file.",
    "Forgeries of a kind that the model never learnt from may score like real faces, above all "
    "when they are new.",
    "Compression, small or turned faces, filters, make-up and poor light can hide a forgery, and "
    "can make a real face look like one.",
    "Only faces are judged: not the sound, the words, the background, the place or the time. A "
    "genuine video with a false caption passes.",
    "Frames between those looked at were not seen; a forgery shorter than that gap can be missed.",
    "A heat map shows what the score is sensitive to, not where a forgery is.",
    "Compare with other sources: where the file comes from, other recordings of the same event, "
    "the people in it.",
)


class Page:
    """The report of a scan. Give it each result; of many inputs it keeps one line each, and
    pictures of the most suspicious alone, so that its memory stays flat."""

    def __init__(self, maps: Maps | None = None) -> None:
        """`maps` draws heat maps; it may raise DfdetectError for a model that gives none."""
        self._maps = maps
        self._rows: list[_Row] = []
        self._sections: list[tuple[tuple, _Section]] = []
        self._custody: list[tuple[str, object]] = []

    def add(self, verdict: Verdict, scored: ScoredInput | None = None) -> None:
        """A verdict with its faces; without them (a result of an earlier run) no picture."""
        row = _row_of(verdict, len(self._rows))
        self._rows.append(row)
        self._custody = _custody(verdict)
        if len(self._sections) < MOST_DETAILED or row.rank < self._sections[-1][0]:
            section = _section(verdict, scored, self._maps)
            insort(self._sections, (row.rank, section), key=lambda pair: pair[0])
            del self._sections[MOST_DETAILED:]

    def add_error(self, path: Path, error: DfdetectError) -> None:
        """An input that gave no verdict."""
        name, why = str(path), error.line.removeprefix(f"{path}: ")
        rank = (2, 0.0, name, len(self._rows))
        self._rows.append(_Row(rank, "error", "Not readable", False, "", "", name, why))

    def html(self) -> str:
        """The whole page."""
        number = {rank: i for i, (rank, _) in enumerate(self._sections, start=1)}
        rows = [
            row._asdict() | {"number": number.get(row.rank)}
            for row in sorted(self._rows, key=lambda row: row.rank)
        ]
        is_batch = len(rows) != 1 or not number
        n_experimental = sum(row.experimental for row in self._rows)
        inputs = "1 input" if len(rows) == 1 else f"{len(rows)} inputs"
        return template("page.html.j2").render(
            title="Scan report" if is_batch else f"Scan report: {rows[0]['name']}",
            subtitle=f"{inputs}, dfdetect {__version__}",
            is_batch=is_batch,
            counts=_counts(self._rows),
            experimental=f"{EXPERIMENTAL}." if n_experimental else "",
            rows=rows,
            detailed=_detailed(len(number), len(rows)),
            sections=[
                section | {"number": i} for i, (_, section) in enumerate(self._sections, start=1)
            ],
            limits=LIMITS,
            custody=self._custody,
        )


# --- the gate ----------------------------------------------------------------------------------


@cache
def template(name: str) -> Template:
    """A page's template, through whose gate goes all that is written into it."""
    environment = Environment(
        loader=PackageLoader("dfdetect.reports"), autoescape=True, undefined=StrictUndefined,
        finalize=_shown, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(name)


def _shown(value: object) -> object:
    """Whatever is written into the page, but for markup of its own macros."""
    return value if isinstance(value, Markup) else printable(value)


# --- the batch ---------------------------------------------------------------------------------

_Section = dict[str, Any]


class _Row(NamedTuple):
    """One input in the table; rows lie in the order of `rank`."""

    rank: tuple[int, float, str, int]
    call: str
    word: str
    experimental: bool
    score: str
    trend: str
    name: str
    note: str


def _row_of(verdict: Verdict, position: int) -> _Row:
    has_score = verdict.score is not None
    trend = ""
    if has_score:
        heights = thinned([f.score for f in _deciding(verdict).frames], TREND_POINTS)
        steps = max(1, len(heights) - 1)
        ends = heights if len(heights) > 1 else heights * 2  # one frame: a level line
        trend = _path([(100 * i / steps, 19 - 18 * y) for i, y in enumerate(ends)])
    return _Row(
        (int(not has_score), -(verdict.score or 0), verdict.input, position),
        verdict.call,
        WORDS[verdict.call],
        bool(verdict.experimental),
        probability(verdict.score) if has_score else "",
        trend,
        verdict.input,
        "",
    )


def _detailed(n_sections: int, n_rows: int) -> str:
    if n_sections == MOST_DETAILED < n_rows:
        return (
            f"Details follow of the {n_sections} most suspicious of {n_rows} inputs, which have "
            "numbers; scan's JSON holds those of all."
        )
    return "Below the table are details of those with a number." if n_sections else ""


def _counts(rows: Sequence[_Row]) -> str:
    n = Counter(row.call for row in rows)
    words = {
        "likely-fake": "likely fake", "likely-real": "likely real", "inconclusive": "inconclusive",
        "no-face": "without a face", "error": "not readable",
    }  # fmt: skip
    return ", ".join(f"{n[call]} {word}" for call, word in words.items() if n[call])


# --- one input ---------------------------------------------------------------------------------


def _section(verdict: Verdict, scored: ScoredInput | None, maps: Maps | None) -> _Section:
    reasons = "; ".join(verdict.reasons)
    meaning = [MEANING[verdict.call] + (f" Reason: {reasons}." if reasons else "")]
    score = ""
    if verdict.score is not None:
        score = (
            f"Score {probability(verdict.score)} ({verdict.score_meaning}), threshold "
            f"{probability(verdict.threshold)}."
        )
        is_calibrated = verdict.score_meaning.startswith("P(fake)")
        meaning.append(CALIBRATED if is_calibrated else UNCALIBRATED)
    people, legend = _people(verdict, scored, maps)
    why = "; ".join(verdict.experimental or ())
    return {
        "name": verdict.input,
        "call": verdict.call,
        "word": WORDS[verdict.call],
        "experimental": f"{EXPERIMENTAL}: {why}." if why else "",
        "score": score,
        "meaning": meaning,
        "people": people,
        "legend": legend,
        "examined": list(_examined(verdict, len(people))),
        "left_out": list(_left_out(verdict)),
        "notes": [note for note in verdict.warnings if not note.startswith("inconclusive: ")],
        "file": list(_file(verdict)),
    }


def _examined(verdict: Verdict, n_drawn: int) -> Iterator[str]:
    used, media, tracks = indices_used(verdict), verdict.media, verdict.tracks
    if _is_still(verdict):
        yield "The whole picture was searched for faces."
    else:
        first, last = _span(verdict)
        of = f" of {media.n_frames}" if media else ""
        yield (
            f"{len(used)}{of} frames, spread evenly from {first:.2f} to {last:.2f} s, were "
            "searched for faces."
        )
    people = "1 person" if len(tracks) == 1 else f"{len(tracks)} people"
    n_faces = sum(len(track.frames) for track in tracks)
    yield f"{n_faces} pictures of faces were judged, of {people}." if tracks else "No face."
    if len(tracks) > n_drawn:
        yield f"Drawn above are {n_drawn} of these people; scan's JSON holds all."
    if len(tracks) > 1:
        yield (
            "The verdict is that of the most suspicious person among those in view for at least "
            f"{MIN_COVERAGE:.0%} of these frames."
        )
    if media and not media.limits_hit:
        yield "No limit was reached."


def _left_out(verdict: Verdict) -> Iterator[str]:
    used, media = indices_used(verdict), verdict.media
    if media and media.n_frames > len(used):
        rest = media.n_frames - len(used)
        decoded = ", and damage in them" if media.n_decoded < media.n_frames else ""
        yield f"The other {rest} frames{decoded}."
    smallest = verdict.settings.get("crop", {}).get("min_face_px")
    if smallest:
        yield f"Faces narrower than about {smallest} px, and those that the search did not find."
    yield "Sound, text, background, and what the file says of its origin."
    if media and media.limits_hit:
        yield f"What lies beyond limits that were reached: {', '.join(media.limits_hit)}."


def _file(verdict: Verdict) -> Iterator[tuple[str, str]]:
    media = verdict.media
    yield "path as given", verdict.input
    yield "SHA-256", verdict.sha256
    if media is None:
        return
    yield "size", f"{media.n_bytes:,} bytes"
    yield "container, codec", f"{media.container}, {media.codec} ({media.pix_fmt})"
    turned = f", turned by {media.rotation} degrees" if media.rotation else ""
    yield "picture", f"{media.width} x {media.height} px{turned}{', mirrored' * media.mirrored}"
    if not _is_still(verdict):
        rate = f"{media.frame_rate:.4g} a second" if media.frame_rate else "of unknown rate"
        claimed = "" if media.n_announced is None else f", {media.n_announced} announced"
        yield "frames", f"{media.n_frames}, {rate}{claimed}"
        if media.n_decoded < media.n_frames:
            yield (
                "frames decoded",
                f"{media.n_decoded}: those looked at and those that they are predicted from",
            )
        if media.duration_s is not None:
            yield "duration", f"{media.duration_s:.2f} s"
        looks = ", ".join(f"{index} ({time_s:.2f} s)" for index, time_s in media.frames_used)
        yield "frames looked at", looks
    yield "compression", f"{media.bits_per_pixel:.3g} bits per pixel"
    yield "faces seen", str(media.n_faces)


def _custody(verdict: Verdict) -> list[tuple[str, object]]:
    """What decided the verdicts beside the files: the same for all of a scan."""
    parts = {
        "tool": verdict.tool, "model": verdict.model, "settings": verdict.settings,
        "run": verdict.run,
    }  # fmt: skip
    rows = [
        (f"{part}: {key.replace('_', ' ')}", value)
        for part, values in parts.items()
        for key, value in _flat(values)
    ]
    return [*rows, ("SHA-256 of tool, model and settings", verdict.settings_sha256)]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key} ")
        else:
            several = isinstance(value, list | tuple)
            yield prefix + key, ", ".join(map(str, value)) if several else value


# --- its faces ---------------------------------------------------------------------------------


def _people(
    verdict: Verdict, scored: ScoredInput | None, maps: Maps | None
) -> tuple[list[dict[str, Any]], list[str]]:
    """The people to be drawn, and what their drawings mean."""
    used = indices_used(verdict)
    deciding = lasting(verdict.tracks, len(used))
    order = sorted(verdict.tracks, key=lambda t: (t not in deciding, -t.score, t.track))
    shown = order[:MOST_PEOPLE]
    seen = {(f.track_id, f.frame.index): f for f in scored.faces} if scored else {}
    chosen = {t.track: [t.frames[i] for i in peaks([f.score for f in t.frames], PEAKS)]
              for t in shown}  # fmt: skip
    looks = [
        seen[t.track, f.index] for t in shown for f in chosen[t.track] if (t.track, f.index) in seen
    ]
    heat, why_none = _heat(looks, maps)
    band = _band_of_frames(verdict, scored)
    people = []
    for track in shown:
        shots = [
            _shot(number, seen[track.track, frame.index], heat, _is_still(verdict))
            for number, frame in enumerate(chosen[track.track], start=1)
            if (track.track, frame.index) in seen
        ]
        plot = _plot(verdict, track, chosen[track.track], band) if len(used) > 1 else None
        title = f"Face {track.track}: {track.call}, {verdict.score_meaning} "
        people.append({
            "title": title + probability(track.score),
            "where": _where(verdict, track, track in deciding, track is order[0]),
            "plot": plot,
            "shots": shots,
        })  # fmt: skip
    return people, list(_legend(verdict, band, bool(looks), bool(heat), why_none))


def _heat(
    looks: Sequence[ScoredFace], maps: Maps | None
) -> tuple[dict[tuple[int, int], np.ndarray], str]:
    """A map for each face by track and frame, or why there is none."""
    if not looks or maps is None:
        return {}, ""
    try:
        values = maps([look.image for look in looks])
    except DfdetectError as error:
        return {}, f"No heat maps: {error.line}."
    places = [(look.track_id, look.frame.index) for look in looks]
    return dict(zip(places, values, strict=True)), ""


def _shot(
    number: int, look: ScoredFace, heat: Mapping[tuple[int, int], np.ndarray], still: bool
) -> dict[str, Any]:
    frame, face = look.frame, f"face {look.track_id}"
    when = "" if still else f" at {frame.time_s:.2f} s"
    caption = f"score {frame.score:.3f}"
    if not still:
        caption = f"{number}: {frame.time_s:.2f} s, frame {frame.index}, {caption}"
    values = heat.get((look.track_id, frame.index))
    if values is not None and not values.any():
        caption += "; the heat map is empty, no place raises the score"
    return {
        "picture": _jpeg(to_input(look.image, PICTURE_PX)),
        "alt": f"what the network saw of {face}{when}",
        "map": None if values is None else _jpeg(overlay(look.image, values, PICTURE_PX)),
        "map_alt": f"heat map over {face}{when}",
        "caption": caption,
    }


def _plot(
    verdict: Verdict,
    track: TrackScore,
    numbered: Sequence[FrameScore],
    band: tuple[float, float] | None,
) -> dict[str, Any]:
    """A face's scores in a box of 1000 x 100, over the time from the first to the last frame that
    was looked at."""
    first, last = _span(verdict)

    def x(time_s: float) -> float:
        return (time_s - first) / (last - first or 1)

    def point(frame: FrameScore) -> tuple[float, float]:
        return 1000 * x(frame.time_s), 100 - 100 * frame.score

    scores = [frame.score for frame in track.frames]
    mean = float(np.mean(scores))
    parts = unbroken(track.frames, indices_used(verdict))
    marks = [
        {"x": _short(100 * x(f.time_s)), "y": _short(100 * f.score), "number": i}
        for i, f in enumerate(numbered, start=1)
    ]
    times = [t for _, t in verdict.media.frames_used] if verdict.media else []
    return {
        "curve": " ".join(_path(map(point, part)) for part in parts),
        "dots": "".join(_path([point(frame)]) + "h0" for frame in track.frames),
        "looks": "".join(f"M{_short(1000 * x(t))} 100v-4" for t in times),
        "mean": _short(100 - 100 * mean),
        "band": band and (_short(100 - 100 * band[1]), _short(100 * (band[1] - band[0]))),
        "marks": marks,
        "start": f"{first:.2f} s",
        "end": f"{last:.2f} s",
        "label": f"Scores of face {track.track} in {len(scores)} frames: mean {mean:.2f}, lowest "
        f"{min(scores):.2f}, highest {max(scores):.2f}",
    }


def _where(verdict: Verdict, track: TrackScore, lasts: bool, decides: bool) -> str:
    width = float(np.median([frame.box[2] - frame.box[0] for frame in track.frames]))
    said = [f"About {width:.0f} px wide"]
    if not _is_still(verdict):
        start, end = track.frames[0].time_s, track.frames[-1].time_s
        n_used = len(indices_used(verdict))
        said.append(
            f"in {len(track.frames)} of {n_used} frames looked at, {start:.2f} to {end:.2f} s"
        )
    role = "Decides the verdict." if decides else "" if lasts else "In view too briefly to decide."
    own = [] if decides else [f"Inconclusive: {reason}." for reason in track.reasons]
    return " ".join([", ".join(said) + ".", role, *own]).strip()


def _legend(
    verdict: Verdict, band: tuple[float, float] | None, pictures: bool, heat: bool, why_none: str
) -> Iterator[str]:
    if len(indices_used(verdict)) > 1 and verdict.tracks:
        shaded = (
            "Shaded: a mean here is inconclusive; above, the call is likely-fake, below, "
            "likely-real. "
            if band else ""
        )  # fmt: skip
        yield (
            "Dots: the network's score of each frame looked at, 1 fake and 0 real, never "
            "calibrated; where the line breaks the face was lost. Dashed: their mean, of which "
            f"the face's score is made. {shaded}Ticks at the bottom: frames looked at. Numbers: "
            "the highest frames, pictured below the line."
        )
    if pictures:
        yield "Pictures: what the network saw of a frame, cut out and turned upright." + (
            " Beside it a heat map: the lighter, the more the score rests on that place; the line "
            "runs half way up, the cross is the highest place. Each has its own range."
            if heat else ""
        )  # fmt: skip
    if why_none:
        yield why_none


def _band_of_frames(verdict: Verdict, scored: ScoredInput | None) -> tuple[float, float] | None:
    """The calling band as bounds of a mean of frame scores, which calibration comes after."""
    band = verdict.model.get("band")
    if not band or not verdict.score_meaning.startswith("P(fake)"):
        return tuple(band) if band else None
    calibration = scored and scored.calibration
    if not calibration or calibration.slope <= 0:
        return None
    means = np.linspace(0, 1, 2001)
    low, high = np.interp(band, calibration.probability(means), means)
    return float(low), float(high)


def _deciding(verdict: Verdict) -> TrackScore:
    return max(lasting(verdict.tracks, len(indices_used(verdict))), key=lambda t: t.score)


def _span(verdict: Verdict) -> tuple[float, float]:
    """Seconds of the first and the last frame that was looked at."""
    times = (
        [time_s for _, time_s in verdict.media.frames_used] if verdict.media
        else [frame.time_s for track in verdict.tracks for frame in track.frames]
    )  # fmt: skip
    return min(times, default=0.0), max(times, default=0.0)


def _is_still(verdict: Verdict) -> bool:
    media = verdict.media
    return media is not None and media.frame_rate is None


def _path(points: Iterable[tuple[float, float]]) -> str:
    """An SVG path through them."""
    return "".join(f"{'L' if i else 'M'}{_short(x)} {_short(y)}" for i, (x, y) in enumerate(points))


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _jpeg(image: np.ndarray) -> str:
    """uint8 [H,W,3] RGB as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{b64encode(buffer.getvalue()).decode()}"
