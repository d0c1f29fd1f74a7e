"""A checkpoint's model card in Markdown: what it learned from, how well it does, what it is for."""

from dfdetect.checkpoint import Calibration, CheckpointInfo
from dfdetect.quality import ordered


def model_card(info: CheckpointInfo) -> str:
    """All of it from the checkpoint; figures are of videos, and name their quality and n."""
    preset, published = info.preset, info.publication
    n = info.data
    lines = [f"# {preset['name']}", "", f"{preset['reproduces']}.", ""]
    if published:
        lines += [f"Published {published.date}.", ""]
    lines += [_standing(info.calibration), ""]
    lines += ["## Data", ""]
    lines += [
        f"- {split}: {n[f'{split}_real_videos']} real and {n[f'{split}_fake_videos']} fake videos "
        f"or pictures ({n[f'{split}_real_samples']} and {n[f'{split}_fake_samples']} faces)"
        for split in ("train", "val")
    ]
    lines += [
        f"- fakes: {', '.join(name for name in info.domains if name != 'real')}",
        f"- qualities: {', '.join(preset['qualities'])}",
        f"- fingerprint {info.data['fingerprint']}, seed {preset['seed']}, step {info.step}",
        "",
    ]
    if info.calibration:
        lines += _figures(info.calibration)
    if published:
        lines += [published.about, ""]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(info.versions.items()))
    lines += [
        "## Made with",
        "",
        f"{info.detector['backbone']} at {info.detector['image_size']} px, method "
        f"{preset['method']['name']}; {versions}.",
    ]
    return "\n".join(lines)


def _standing(calibration: Calibration | None) -> str:
    if calibration is None:
        return "**Not calibrated**: its score is no probability."
    if calibration.experimental:
        return f"**Experimental**: {'; '.join(calibration.experimental)}."
    return f"Calibrated: its score is {calibration.meaning}."


def _figures(c: Calibration) -> list[str]:
    lines = [
        "## Figures",
        "",
        f"Video level; {c.basis}.",
        "",
        "| quality | real / fake | AUC (95 %) | EER (95 %) | real above the threshold (95 %) |",
        "|---|---|---|---|---|",
    ]
    for quality in ordered(c.auc):
        bounds, n = c.auc[quality], c.n_videos[quality]
        cells = [f"{bounds.auc:.3f} ({bounds.low:.3f} to {bounds.high:.3f})"]
        for found in (c.eer.get(quality), c.false_positives.get(quality)):
            within = f"{found.rate:.1%} ({found.low:.1%} to {found.high:.1%})" if found else "-"
            cells.append(within)
        lines.append(f"| {quality} | {n['real']} / {n['fake']} | {' | '.join(cells)} |")
    if c.after:
        lines += [
            "",
            f"Of real videos {c.after.real_above_threshold:.1%} lie above the threshold, which was "
            f"chosen for {c.fpr:.0%} without them.",
        ]
    return [*lines, ""]
