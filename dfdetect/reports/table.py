"""Terminal tables and panels, with Rich. Colour only repeats what a word already says."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from statistics import mean, median
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from dfdetect.errors import printable
from dfdetect.quality import ordered
from dfdetect.reports.timeline import Sparkline

COLUMNS_PER_TABLE = 6
LEVELS_SHOWN = 7
"""Of a curve of robustness."""
CALL_STYLE = {
    "likely-fake": "bold red", "likely-real": "bold green",
    "inconclusive": "bold yellow", "no-face": "bold",
}  # fmt: skip
METRICS = {"auc": "AUC", "eer": "EER", "accuracy": "ACC"}
FIGURES = METRICS | {
    "balanced_accuracy": "bal.\nACC", "ap": "AP", "tpr_at_1": "TPR at\nFPR 1 %",
    "tpr_at_5": "TPR at\nFPR 5 %", "brier": "Brier", "cllr": "Cllr", "min_cllr": "min\nCllr",
    "ece": "ECE",
}  # fmt: skip
STATUS_STYLE = {"OK": "green", "WARN": "bold yellow", "FAIL": "bold red", "unchecked": "dim"}
IDS_SHOWN = 3
DOMAINS_SHOWN = 3
NEVER_TRAINED = "* never trained on a manipulation of this name"
NEVER_SEEN = "* beside a quality: never trained on, nor an augmentation of the training"
SPLIT_NOTE = {
    "test": ("The test split: figures to report. Choose nothing by them, or they are no longer "
             "those of unseen videos; to choose, sweep with split: val.", "bold yellow"),
    "val": ("The val split: figures to choose by. They chose the checkpoints too and flatter; "
            "report what eval says on test of the one chosen.", "default"),
}  # fmt: skip


def prepare_table(summary) -> RenderableType:
    """Crops by label and quality, videos by split, failures."""
    qualities = list(dict.fromkeys(quality for quality, _ in summary.crops))
    crops = Table(title="face crops", title_justify="left")
    crops.add_column("label")
    for quality in qualities:
        crops.add_column(quality, justify="right")
    for label, word in ((0, "real"), (1, "fake")):
        crops.add_row(word, *(str(summary.crops[quality, label]) for quality in qualities))
    videos = Table(title="videos and pictures", title_justify="left")
    videos.add_column("label")
    for split in ("train", "val", "test"):
        videos.add_column(split, justify="right")
    for label, word in ((0, "real"), (1, "fake")):
        videos.add_row(word, *(str(summary.videos[s, label]) for s in ("train", "val", "test")))
    n_prepared = sum(summary.videos.values())
    line = Text(
        f"{n_prepared} prepared, {summary.n_skipped} finished before, "
        + (
            f"{summary.n_changed} of them anew as their source changed, "
            if summary.n_changed
            else ""
        )
        + (f"{summary.n_elsewhere} from other sources, " if summary.n_elsewhere else "")
        + f"{len(summary.failures)} failed, {summary.n_tracks} faces followed, "
        f"{summary.elapsed_s:.0f} s"
    )
    return Group(videos, crops, line) if n_prepared else line


def listing_lines(listing) -> list[str]:
    """Which tree a dataset expected, what it found and what it misses, line by line."""
    lines = [listing.expected] if listing.home else []
    if listing.found:
        parts = ", ".join(f"{printable(part)} {n}" for part, n in listing.found.items())
        lines.append(f"found: {parts}")
    for part, names in listing.missing.items():
        if names:
            lines.append(f"missing: {len(names)} of {printable(part)}, first {printable(names[0])}")
    if any(listing.missing.values()):
        lines.append(f"get what is missing from {listing.home}")
    return lines + [f"note: {printable(note)}" for note in listing.notes]


def plan_table(plan) -> RenderableType:
    """Videos by manipulation and split."""
    table = Table(title="would prepare", title_justify="left")
    table.add_column("manipulation")
    for split in ("train", "val", "test"):
        table.add_column(split, justify="right")
    for manipulation in sorted(
        {v.manipulation for v in plan.videos}, key=lambda m: (m != "real", m)
    ):
        counts = [
            sum(
                v.manipulation == manipulation and plan.splits[v.video_id] == s for v in plan.videos
            )
            for s in ("train", "val", "test")
        ]
        table.add_row(printable(manipulation), *map(str, counts))
    return table


def eval_tables(result) -> RenderableType:
    """For each folder and level a table with manipulations as columns and qualities as rows, then
    every figure of all manipulations together; coverage and calibration, a line for each folder."""
    cells = [cell for cell in result.cells if cell.faces == "all"]
    parts: list[RenderableType] = []
    for data in dict.fromkeys(cell.data for cell in cells):
        of_data = [cell for cell in cells if cell.data == data]
        levels = _levels_shown(of_data)
        for level in levels:
            here = [cell for cell in of_data if cell.level == level]
            columns = _columns_shown(here)
            parts.append(Text(f"{printable(data)}, {here[0].split} split, {level} level"))
            n_tables = -(-len(columns) // COLUMNS_PER_TABLE)
            width = -(-len(columns) // n_tables)
            for i in range(0, len(columns), width):
                parts.append(_eval_table(here, columns[i : i + width]))
        parts.append(_figures_table(data, of_data, levels))
    reasons = sorted({cell.reason for cell in cells if cell.reason})
    parts += [Text(f"empty cells: {'; '.join(reasons)}")] if reasons else []
    parts += [_coverage_line(coverage) for coverage in result.coverage]
    parts += [_calibration_line(found) for found in _broadest(result.calibration)]
    parts.append(
        Text(
            f"ACC at threshold {cells[0].threshold:.3f}, chosen on val. n: real/fake at one "
            "quality; pooled counts each once per quality. Below an AUC the middle 95 % of a "
            "bootstrap of videos."
        )
    )
    if any(cell.n_real < 100 for cell in cells):
        parts.append(
            Text(
                "TPR at FPR 1 % of fewer than 100 reals (5 %: 20) is that without any false alarm."
            )
        )
    if any(cell.seen_in_training is False for cell in cells):
        together = any(cell.manipulation == "unseen" for cell in cells)
        parts.append(Text(f"{NEVER_TRAINED}{'; unseen: all of these together' * together}."))
    if any(cell.quality_seen is False for cell in cells):
        parts.append(Text(f"{NEVER_SEEN}."))
    return Group(*parts)


def _levels_shown(cells: Sequence) -> list[str]:
    """Tracks only where a video has several: else they are the videos."""
    n = {cell.level: (cell.n_real, cell.n_fake) for cell in cells}
    return [level for level in n if level != "track" or n[level] != n.get("video")]


def _columns_shown(cells: Sequence) -> list[str]:
    """All together only where there are several."""
    columns = list(dict.fromkeys(cell.manipulation for cell in cells))
    return columns[:1] if len(columns) == 2 else columns


def _eval_table(cells: Sequence, manipulations: Sequence[str]) -> Table:
    table = Table()
    table.add_column("metric")
    table.add_column("quality")
    single = {
        m: next(c for c in cells if c.manipulation == m and c.quality not in ("mean", "worst"))
        for m in manipulations
    }
    summaries = ("mean", "worst")
    n_apart = len({c.manipulation for c in cells} - {*summaries, "unseen", "all"})
    for m in manipulations:
        mark = " *" if single[m].seen_in_training is False else ""
        n = f"n {single[m].n_real}/{single[m].n_fake}"
        below = f"of {n_apart}" if m in summaries else n
        table.add_column(f"{printable(m)}{mark}\n{below}", justify="right")
    qualities = list(dict.fromkeys(cell.quality for cell in cells))
    by_place = {(c.quality, c.manipulation): c for c in cells}
    for key, word in METRICS.items():
        for quality in qualities:
            shown = [_figure(by_place[quality, m], key, key == "auc") for m in manipulations]
            name = _quality_name(by_place[quality, manipulations[0]])
            table.add_row(word, name, *shown, end_section=quality == qualities[-1])
    return table


def _figures_table(data: str, cells: Sequence, levels: Sequence[str]) -> Table:
    """All manipulations together: every figure, by level and quality."""
    table = Table(title=f"{printable(data)}, all manipulations together", title_justify="left")
    table.add_column("level")
    table.add_column("quality")
    for word in FIGURES.values():
        table.add_column(word, justify="right")
    for level in levels:
        of_level = [c for c in cells if (c.level, c.manipulation) == (level, "all")]
        for cell in of_level:
            shown = [_figure(cell, key) for key in FIGURES]
            table.add_row(level, _quality_name(cell), *shown, end_section=cell is of_level[-1])
    return table


def _quality_name(cell) -> str:
    return cell.quality + " *" * (cell.quality_seen is False)


def _figure(cell, key: str, with_interval: bool = False) -> str:
    below = cell.intervals.get(key) if with_interval else None
    bounds = f"\n{_three(below[0])}..{_three(below[1])}" if below else ""
    return _three(getattr(cell, key)) + bounds


def _coverage_line(coverage) -> Text:
    """What was scored of each class and, where that is not all, what it would cost to be wrong
    about the rest."""
    parts = []
    for word in ("real", "fake"):
        n = getattr(coverage, word)
        lost = [
            f"{count} {why}"
            for count, why in ((n.n_no_face, "without a face"), (n.n_unreadable, "unreadable"))
            if count
        ]
        parts.append(
            f"{n.n_scored} of {n.n_inputs} {word}" + (f" ({', '.join(lost)})" if lost else "")
        )
    line = f"scored of {printable(coverage.data)}: {', '.join(parts)}"
    if any(coverage.n_failed):
        worst = coverage.worst_case[-1]
        line += (
            f"; with failures as the worst case video AUC {_three(worst.auc)}, "
            f"EER {_three(worst.eer)} ({worst.quality})"
        )
    return Text(line)


def _broadest(calibration: Sequence) -> list:
    """Of each folder all qualities pooled, or its only one."""
    return list({found.data: found for found in calibration}.values())


def _calibration_line(found) -> Text:
    def told(honesty) -> str:
        return (
            f"Cllr {_three(honesty.cllr)} bits of which {_three(honesty.min_cllr)} no calibration "
            f"mends, calibration error {_three(honesty.ece)}, Brier {_three(honesty.brier)}"
        )

    line = (
        f"{printable(found.data)}, video scores as P(fake), {found.quality}: {told(found.before)}"
    )
    return Text(f"{line}; calibrated: {told(found.after)}" if found.after else line)


def compare_tables(compared) -> RenderableType:
    """Each model against the first: a table for each folder and level, qualities as rows."""
    parts: list[RenderableType] = []
    for pair in compared.pairs:
        names = {"A": pair.first, "B": pair.second}
        for letter, name in names.items():
            model = compared.models[name]
            told = f"{letter}: {printable(name)} ({printable(model['name'])}, "
            parts.append(Text(f"{told}sha256 {model['sha256'][:12]})"))
        for data, level in dict.fromkeys((d.data, d.level) for d in pair.differences):
            here = [d for d in pair.differences if (d.data, d.level) == (data, level)]
            parts.append(_compare_table(f"{printable(data)}, {level} level", here))
    parts.append(
        Text(
            f"B-A with the middle 95 % of {compared.rounds} rounds that draw videos, the same for "
            "both, and the share of rounds in which it is not above 0. All manipulations together; "
            "ACC at each model's own threshold."
        )
    )
    return Group(*parts)


def _compare_table(title: str, differences: Sequence) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in ("metric", "quality", "n real/fake"):
        table.add_column(heading)
    for heading in ("A", "B", "B-A", "95 % interval", "rounds <= 0"):
        table.add_column(heading, justify="right")
    for key, word in METRICS.items():
        of_figure = [d for d in differences if d.figure == key]
        for d in of_figure:
            signed = "-" if d.difference is None else f"{d.difference:+.3f}"
            bounds = "-" if d.low is None else f"{d.low:+.3f}..{d.high:+.3f}"
            table.add_row(
                word, d.quality, f"{d.n_real}/{d.n_fake}", _three(d.first), _three(d.second),
                signed, bounds, _three(d.share_not_above), end_section=d is of_figure[-1],
            )  # fmt: skip
    return table


def domain_tables(confusions: Sequence) -> RenderableType:
    """For each folder, all its qualities pooled: what the domain head takes each manipulation for,
    and the mean of the confusion's diagonal."""
    parts: list[RenderableType] = []
    for data in dict.fromkeys(c.data for c in confusions):
        group = [c for c in confusions if c.data == data]
        c, shares = group[-1], group[-1].shares()
        title = (
            f"domains predicted in {printable(data)}, {c.split} split, {c.level} level, {c.quality}"
        )
        table = Table(title=title, title_justify="left")
        table.add_column("manipulation", overflow="fold")
        for heading in ("n", "right"):
            table.add_column(heading, justify="right")
        table.add_column("taken for", overflow="fold")
        for i, (name, seen) in enumerate(zip(c.manipulations, c.seen_in_training, strict=True)):
            order = sorted(range(len(c.domains)), key=lambda j: -shares[i, j])
            most = [j for j in order[:DOMAINS_SHOWN] if shares[i, j]]
            right = c.right(i)
            table.add_row(
                printable(name) + (" *" if seen is False else ""),
                str(sum(c.counts[i])),
                "-" if right is None else f"{shares[i, right]:.0%}",
                ", ".join(f"{printable(c.domains[j])} {shares[i, j]:.0%}" for j in most),
            )
        parts += [table, Text(_diagonal_line(group))]
    return Group(*parts)


def _diagonal_line(group: Sequence) -> str:
    last = group[-1]
    if last.mean_diagonal is None:
        return f"no mean of the diagonal: {last.reason}"
    by_quality = [(c.quality, c.mean_diagonal) for c in group if c.mean_diagonal is not None]
    values = ", ".join(f"{quality} {value:.3f}" for quality, value in by_quality)
    line = (
        f"mean of the diagonal over trained manipulations, {last.level} level: {values} "
        f"(n {last.n_diagonal})"
    )
    if last.mean_diagonal_with_real is None:
        return line
    with_real = f"{last.mean_diagonal_with_real:.3f} (n {last.n_diagonal_with_real})"
    return f"{line}; with real {with_real}"


def robustness_tables(found) -> RenderableType:
    """Per folder AUC of every curve: raw, levels from mild to severe, their mean and worst."""
    parts: list[RenderableType] = []
    curves = list(found.curves())
    for data in dict.fromkeys(data for (data, _, _), _ in curves):
        of_folder = {(level, kind): ps for (name, level, kind), ps in curves if name == data}
        counts = {level: f"{ps[0].n_real}/{ps[0].n_fake}" for (level, _), ps in of_folder.items()}
        n = ", ".join(f"{pair} {level}s" for level, pair in counts.items())
        split = found.points[0].split
        parts.append(Text(f"AUC by corruption, {printable(data)}, {split} split, n {n}"))
        parts.append(_robustness_table(of_folder))
    notes = "levels from mild to severe, made of raw crops; mean and worst are of all levels"
    if any(p.seen == "no" for p in found.points):
        notes += f"; {NEVER_SEEN.replace('quality', 'level')}"
    if any(p.kind == "crf" for p in found.points):
        notes += ". crf is H.264 of the crop alone, one intra-coded picture: no video at this CRF"
    return Group(*parts, Text(f"{notes}."))


def _robustness_table(curves: Mapping[tuple[str, str], Sequence]) -> Table:
    table = Table()
    width = min(LEVELS_SHOWN, max(len(points) for points in curves.values()) - 1)
    table.add_column("")
    for name in ("raw", *[""] * width, "mean", "worst"):
        table.add_column(name, justify="right")
    for kind in dict.fromkeys(kind for _, kind in curves):
        raw, *points = next(ps for (_, of_curve), ps in curves.items() if of_curve == kind)
        shown = [round(i * (len(points) - 1) / max(1, width - 1)) for i in range(width)]
        shown = list(dict.fromkeys(shown))  # fewer levels than columns
        marks = [f"{points[i].severity:g}{' *' * (points[i].seen == 'no')}" for i in shown]
        blank = [""] * (width - len(shown))
        raw_mark = "*" if raw.seen == "no" else ""
        table.add_row(Text(kind, "bold"), raw_mark, *marks)
        for level in dict.fromkeys(level for level, _ in curves):
            raw, *points = curves[level, kind]
            known = [p.auc for p in points if p.auc is not None]
            summary = [mean(known), min(known)] if known else [None, None]
            row = [raw.auc, *(points[i].auc for i in shown)]
            table.add_row(f"  {level}", *map(_three, row), *blank, *map(_three, summary))
        table.add_section()
    return table


def face_tables(cells: Sequence) -> RenderableType:
    """Per folder AUC of all fakes by the width of faces, at each level and quality, with its
    interval; `cells` of every stratum."""
    parts: list[RenderableType] = []
    chosen = [c for c in cells if c.manipulation == "all" and c.faces != "all"]
    for data in dict.fromkeys(c.data for c in chosen):
        here = {(c.level, c.quality, c.faces): c for c in chosen if c.data == data}
        strata = list(dict.fromkeys(faces for _, _, faces in here))
        split = chosen[0].split
        parts.append(Text(f"AUC by width of the face, {printable(data)}, {split} split"))
        table = Table()
        for name in ("level", "quality"):
            table.add_column(name)
        for name in strata:
            table.add_column(name, justify="right")
        for level in dict.fromkeys(level for level, _, _ in here):
            qualities = list(dict.fromkeys(q for of_level, q, _ in here if of_level == level))
            counts = [here.get((level, qualities[0], name)) for name in strata]
            table.add_row(level, "n", *(f"{c.n_real}/{c.n_fake}" if c else "-" for c in counts))
            for quality in qualities:
                found = [here.get((level, quality, name)) for name in strata]
                table.add_row("", quality, *map(_auc_with_interval, found))
            table.add_section()
        parts.append(table)
    parts.append(Text("Width in the source, px; of a track or video the median of its faces."))
    return Group(*parts)


def _auc_with_interval(cell) -> str:
    if cell is None or cell.auc is None:
        return "-"
    bounds = cell.intervals.get("auc")
    return f"{cell.auc:.3f}" + (f" ({bounds[0]:.2f}..{bounds[1]:.2f})" if bounds else "")


def verdict_panel(verdict) -> Panel:
    """A short panel: the call, the score against the threshold, the faces, the warnings."""
    first = Text(verdict.call, style=CALL_STYLE[verdict.call])
    lines: list[RenderableType] = [first]
    if verdict.experimental:
        first.append("   experimental", style="bold yellow")
    if verdict.score is not None:
        score = f"{verdict.score_meaning}: {probability(verdict.score)}"
        first.append(f"   {score}, threshold {probability(verdict.threshold)}", style="default")
    faces = Table.grid(padding=(0, 2, 0, 0))
    for track in verdict.tracks[:5]:
        times = f"{track.frames[0].time_s:.1f} to {track.frames[-1].time_s:.1f} s"
        n_frames = len(track.frames)
        where = f"over {n_frames} frames, {times}" if n_frames > 1 else "in 1 frame"
        head = f"face {track.track}: {probability(track.score)} {where}"
        faces.add_row(head, track.call, Sparkline([frame.score for frame in track.frames]))
    if verdict.tracks:
        lines.append(faces)
    if len(verdict.tracks) > 5:
        lines.append(Text(f"and {len(verdict.tracks) - 5} more faces (--json lists all)"))
    lines += [Text(f"experimental: {reason}") for reason in verdict.experimental or ()]
    lines += [Text(f"note: {printable(note)}") for note in verdict.warnings]
    shipped = ", which comes with dfdetect" if verdict.model.get("comes_with_dfdetect") else ""
    lines.append(Text(f"model {printable(verdict.model['name'])}{shipped}", style="dim"))
    return Panel(Group(*lines), title=Text(printable(verdict.input)), title_align="left", width=96)


def calibration_tables(calibration, title: str) -> RenderableType:
    """Figures before and after, scores against the share of fakes, AUC by quality; what is called,
    and why the model is experimental if it is."""
    c, before, after = calibration, calibration.before, calibration.after
    figures = Table(title=title, title_justify="left")
    figures.add_column("figure")
    figures.add_column("before", justify="right")
    figures.add_column("after, left out of the fit", justify="right")
    for word, name in (
        ("log loss (nats)", "log_loss"), ("Brier score", "brier"),
        ("expected calibration error", "ece"),
        ("real videos above the threshold", "real_above_threshold"),
    ):  # fmt: skip
        figures.add_row(word, _three(getattr(before, name)), _three(after and getattr(after, name)))
    bins = Table(title="scores and the share of fakes among them", title_justify="left")
    bins.add_column("score")
    for when in ("before", "after"):
        for heading in ("weight", "mean score", "fakes"):
            bins.add_column(f"{when}\n{heading}", justify="right")
    found = [{b.low: b for b in figures.bins} if figures else {} for figures in (before, after)]
    for low in sorted({low for by_low in found for low in by_low}):
        cells = []
        for b in (by_low.get(low) for by_low in found):
            cells += [f"{b.share:.1%}", _three(b.score), _three(b.fake)] if b else ["-"] * 3
        bins.add_row(f"{low:.1f} to {low + 0.1:.1f}", *cells)
    by_quality = Table(title="videos by quality, with 95 % intervals", title_justify="left")
    by_quality.add_column("quality")
    for heading in ("n real/fake", "AUC", "EER", "real above the threshold,\nleft out of the fit"):
        by_quality.add_column(heading, justify="right")
    for quality in ordered(c.auc):
        bounds, n = c.auc[quality], c.n_videos[quality]
        rates = [f"{_three(bounds.auc)} {_three(bounds.low)}..{_three(bounds.high)}"]
        for found in (c.eer.get(quality), c.false_positives.get(quality)):
            within = f" {_three(found.low)}..{_three(found.high)}" if found else ""
            rates.append(_three(found and found.rate) + within)
        by_quality.add_row(printable(quality), f"{n['real']}/{n['fake']}", *rates)
    formula = (
        f"sigmoid({c.slope:.3f} x logit of the score {c.intercept:+.3f} + log odds of the prior)"
        if c.slope
        else "the prior, whatever the video: fakes score no higher than reals"
    )
    lines = [
        f"{c.method}: {c.meaning} = {formula}"
        + (f"; temperature {1 / c.slope:.3f}" if c.method == "temperature" and c.slope else ""),
        f"scan: threshold {probability(c.threshold)}, chosen for {100 * c.fpr:g}% false "
        "positives, each video at its worst quality",
        "scan: " + ("" if c.band else "inconclusive only; ") + c.basis,
    ]
    if c.band:
        low, high = c.band
        real = f"likely-real below {probability(low)}" if low > 0 else "never likely-real"
        fake = f"likely-fake above {probability(high)}" if high < 1 else "never likely-fake"
        lines.append(f"scan: {real}, {fake}, inconclusive between")
    if c.least_face_px is not None:
        lines.append(f"scan: inconclusive for faces less than {c.least_face_px:.0f} px wide")
    experimental = [Text(f"experimental: {reason}", "bold yellow") for reason in c.experimental]
    return Group(figures, bins, by_quality, *map(Text, lines), *experimental)


def audit_table(findings: Sequence) -> Table:
    """One row per finding; of the ids the first few and how many more there are."""
    table = Table(title="audit", title_justify="left", show_lines=True)
    table.add_column("trap", justify="right")
    table.add_column("check", min_width=14)
    table.add_column("status", min_width=9)
    table.add_column("what", overflow="fold", ratio=2)
    table.add_column("ids", overflow="fold", ratio=1)
    for finding in findings:
        shown = [printable(name) for name in finding.ids[:IDS_SHOWN]]
        if more := len(finding.ids) - IDS_SHOWN:
            shown += [f"and {more} more"] if more > 0 else []
        table.add_row(
            ", ".join(map(str, finding.traps)),
            finding.name,
            Text(finding.status, style=STATUS_STYLE[finding.status]),
            Text(printable(finding.message)),
            Text("\n".join(shown)),
        )
    return table


def audit_line(findings: Sequence) -> str:
    """How many checks came out how."""
    counts = {status: sum(f.status == status for f in findings) for status in STATUS_STYLE}
    return f"audit: {', '.join(f'{n} {status}' for status, n in counts.items() if n)}"


def audit_note(findings: Sequence) -> RenderableType:
    """Only what is wrong, and one line: for the end of another command."""
    wrong = [f for f in findings if f.status in ("WARN", "FAIL")]
    line = Text(audit_line(findings))
    return Group(audit_table(wrong), line) if wrong else line


def sweep_tables(result) -> RenderableType:
    """One table per folder and level: a row per cell, an AUC per quality with its interval below,
    and what the split may be used for."""
    measured = [f for state in result.cells for f in state.figures]
    parts: list[RenderableType] = []
    for data, level in dict.fromkeys((f.data, f.level) for f in measured):
        here = [f for f in (*measured, *result.means) if (f.data, f.level) == (data, level)]
        single = next(f for f in here if f.quality not in ("mean", "pooled"))
        n = f"n {single.n_real}/{single.n_fake} real/fake"
        parts.append(Text(f"{result.name} on {printable(data)}, {result.split} split, "
                          f"{level} level, {n} at one quality"))  # fmt: skip
        parts.append(_sweep_table(result.cells, here))
    if measured:
        parts.append(Text(
            "AUC, below it the middle 95 % of a bootstrap of videos (of a mean over seeds: their "
            "range). ACC at each model's threshold from val. ACC and EER are means over qualities."
        ))  # fmt: skip
        parts.append(Text(*SPLIT_NOTE[result.split]))
    for state in result.cells:
        if state.status != "finished":
            why = f": {printable(state.error)}" if state.error else ""
            parts.append(Text(f"{state.cell.name}: {state.status}{why}"))
    return Group(*parts)


def _sweep_table(cells: Sequence, figures: Sequence) -> Table:
    qualities = list(dict.fromkeys(f.quality for f in figures))
    table = Table(show_lines=True)
    table.add_column("cell", overflow="fold")
    for quality in qualities:
        table.add_column(f"AUC {quality}", justify="right")
    for heading in ("ACC", "EER", "best step"):
        table.add_column(heading, justify="right")
    of_cell: dict[str, dict] = {}
    for figure in figures:
        of_cell.setdefault(figure.cell, {})[figure.quality] = figure
    for group in dict.fromkeys(state.cell.group for state in cells):
        same = [s for s in cells if s.cell.group == group and s.cell.name in of_cell]
        rows = [(s.cell.name, s.cell.name, str(s.best_step)) for s in same]
        if len(same) > 1:
            rows.append((group, f"{group}\nmean of {len(same)} seeds", ""))
        for name, title, best_step in rows:
            found = of_cell[name]
            summary = found.get("mean") or found[qualities[0]]
            rates = [_three(summary.accuracy), _three(summary.eer)]
            table.add_row(
                title, *(_with_interval(found.get(q)) for q in qualities), *rates, best_step
            )
    return table


def _with_interval(figure) -> str:
    if figure is None or figure.auc is None:
        return "-"
    below = "" if figure.low is None else f"\n{_three(figure.low)}..{_three(figure.high)}"
    return _three(figure.auc) + below


def probability(value: float) -> str:
    """Three decimals, and of what is rarer two digits."""
    return f"{value:.3f}" if value >= 0.01 or value == 0 else f"{value:.2g}"


def _three(value: float | None) -> str:
    """Three decimals, and no minus before 0."""
    return "-" if value is None else f"{round(value, 3) + 0.0:.3f}"


def train_plan_tables(plan, resolved: Mapping[str, Any], chosen: Mapping[str, Any]) -> Group:
    """The resolved preset, option by option, what a run of it would be, and the memory it needs.

    Options that are not among the `chosen` ones are marked as defaults.
    """
    preset = Table(title="preset", title_justify="left", show_header=False)
    for _ in range(2):
        preset.add_column(overflow="fold")
    preset.add_column(style="dim")
    set_by_preset = {key for key, _ in _flat(chosen)}
    for key, value in _flat(resolved):
        preset.add_row(key, _plain(value), "" if key in set_by_preset else "default")
    run = Table(title="run", title_justify="left", show_header=False)
    for _ in range(2):
        run.add_column(overflow="fold")
    numbers = {k: v for k, v in plan._asdict().items() if k.startswith(("n_", "steps", "counts"))}
    for key, value in _flat(numbers):
        name = key.removeprefix("counts.").removeprefix("n_")
        run.add_row(name.replace("_", " "), f"{value:,}")
    for stride, (channels, height, width) in plan.tapped_maps.items():
        run.add_row(f"map of stride {stride}", f"{channels} x {height} x {width}")
    return Group(preset, run, _memory_table(plan.memory))


def _memory_table(memory) -> RenderableType:
    table = Table(title="memory of each device, estimated", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("weights", size(memory.weights))
    table.add_row("optimizer", size(memory.optimizer))
    table.add_row("moving average", size(memory.average))
    table.add_row("a step, whatever its batch", size(memory.step_fixed))
    table.add_row("  of it copies of perturbed weights", size(memory.perturbation))
    table.add_row("a step, for each sample", size(memory.step_per_sample))
    table.add_row("a step", size(memory.step), end_section=True)
    table.add_row("in all", size(memory.total))
    finite = "" if memory.is_finite else "; it or a gradient is NOT FINITE: this run would diverge"
    return Group(table, Text(f"loss of a first step: {memory.loss:.4g}{finite}"))


def train_summary(summary, info, gradient_ratios: Sequence[float]) -> Group:
    """How a run ended: `info` is the metadata of its checkpoint."""
    val = summary.val
    frame, video, by_quality = val["frame"], val["video"], val["by_quality"]
    rule = info.preset["select"]
    which = "the last" if rule == "last" else f"the best by {rule}"
    title = f"val at step {summary.best_step}, {which}"
    table = Table(title=title, title_justify="left")
    for heading in ("level", "quality"):
        table.add_column(heading, overflow="fold")
    for heading in ("AUC", "n real/fake"):
        table.add_column(heading, justify="right", overflow="fold")
    for quality, auc in by_quality["auc"].items():
        n = f"{by_quality['n_real'][quality]}/{by_quality['n_fake'][quality]}"
        table.add_row(by_quality["level"], printable(quality), f"{auc:.3f}", n)
    for level, figures in (("frame", frame), ("video", video)):
        n = f"{figures['n_real']}/{figures['n_fake']}"
        table.add_row(level, figures["qualities"], f"{figures['auc']:.3f}", n)
    worked = timedelta(seconds=round(summary.elapsed_s))
    lines = [
        f"{summary.n_steps} steps, {worked} since it was started or resumed",
        f"frames, pooled: ACC {frame['accuracy']:.3f} at threshold 0.5, EER {frame['eer']:.3f}",
        f"scan: threshold {info.threshold:.3f}; {info.band_basis}",
        *(f"note: {printable(note)}" for note in info.data["notes"]),
    ]
    if gradient_ratios:
        lines.append(
            f"the regulariser's gradient is {median(gradient_ratios):.2g} of the classification's "
            f"(median of {len(gradient_ratios)})"
        )
    return Group(table, *map(Text, lines))


def size(n_bytes: float) -> str:
    """Bytes as MB, or GB from 1000 of them."""
    return f"{n_bytes / 1e9:,.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:,.1f} MB"


def mapping_table(title: str, values: Mapping[str, Any]) -> Table:
    """Keys and values, nested mappings with dotted keys."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for key, value in _flat(values):
        table.add_row(key, printable(value))
    return table


def rows_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*map(printable, row))
    return table


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return "-" if value is None else printable(value)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat = []
    for key, value in values.items():
        nested = isinstance(value, Mapping)
        flat += _flat(value, f"{prefix}{key}.") if nested else [(prefix + key, value)]
    return flat
