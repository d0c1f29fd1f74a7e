"""explain: checkpoint + videos or pictures -> maps of what in a face the network's logits rest on.

Two kinds of map. Grad-CAM (Selvaraju et al., ICCV 2017, Eq. 1 and 2): the last map's channels,
weighted by the mean of the logit's gradient over space, summed, without what is negative. And of
the attention head its masks, averaged over channels (CrossDF Fig. 6). Both say what a logit is
sensitive to, and not where a forgery is.

The map of a transformer is taken where its last block begins: behind it the class token may carry
the logit alone, and no gradient would reach the others.
"""

import hashlib
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from math import isqrt
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from dfdetect.checkpoint import Checkpoint, Model, load_checkpoint
from dfdetect.data import images_to_tensor
from dfdetect.detector import Detector
from dfdetect.errors import DfdetectError
from dfdetect.faces import to_input
from dfdetect.files import make_folder, sha256_of, write_json, write_whole
from dfdetect.reports.heat import Panel, Row, draw_sheet
from dfdetect.results import SCHEMA_VERSION
from dfdetect.scoring import FaceScorer, ScoredFace, ScoredInput, attempts, lasting

NOTE = (
    "A map shows what a logit is sensitive to, not where a forgery is. Each is stretched over its "
    "own range, so compare places within a map, and between maps only the ranges."
)
TITLES = {
    "gradcam": "Grad-CAM",
    "gradcam_deepfake": "Grad-CAM, deepfake part",
    "gradcam_domain": "Grad-CAM, domain part",
    "mask_deepfake": "attention mask M_df",
    "mask_domain": "attention mask M_dom",
}
"""Every map there is, and its heading."""
BATCH = 8


class Heatmap(NamedTuple):
    """One map of one crop: `values` float32 [S,S] in 0..1; in its own unit `low` + `values` x
    (`peak` - `low`). Grad-CAM has `low` 0. `target`: the logit it is of, empty for a mask; `grid`:
    the rows and columns that the network has there, and between which it is interpolated."""

    name: str
    target: str
    values: np.ndarray
    low: float
    peak: float
    grid: tuple[int, int]

    @property
    def is_empty(self) -> bool:
        """Whether it is the same everywhere, and `values` are 0: of Grad-CAM, that no place of the
        map raises the logit."""
        return self.low == self.peak


class Heatmaps(NamedTuple):
    """All maps of one crop, and its logit (positive = fake)."""

    logit: float
    maps: list[Heatmap]


class Explanation(NamedTuple):
    """What there is of one input: `score` as `scan` gives it; `sheet` and `arrays` are names of
    files; a row of `maps` for every map. None and empty without a face."""

    input: str
    sha256: str
    score: float | None
    sheet: str | None
    arrays: str | None
    warnings: list[str]
    maps: list[dict[str, Any]]


def explain(
    model: Detector | Checkpoint, crops: Sequence[np.ndarray], batch_size: int = BATCH
) -> list[Heatmaps]:
    """Maps of aligned crops uint8 [S,S,3] RGB, at each crop's own size.

    A detector with the attention head gives gradcam_deepfake and mask_deepfake, with a domain head
    also gradcam_domain (of the most likely domain) and mask_domain; every other gives gradcam. The
    detector is used in eval mode at float32 and left as it was.

    Errors: DfdetectError for a network whose last map is neither a grid nor tokens of one.
    """
    detector, names = model, None
    if isinstance(model, Checkpoint):
        detector, names = model.detector, model.info.domains
    explained = []
    for i in range(0, len(crops), batch_size):
        some = crops[i : i + batch_size]
        images = images_to_tensor([to_input(crop, detector.image_size) for crop in some])
        with _undisturbed(detector):
            logits, maps = _maps(detector, images.to(detector.mean.device).float().div(255), names)
        for n, (crop, logit) in enumerate(zip(some, logits.tolist(), strict=True)):
            own = [_heatmap(m.name, m.targets[n], m.maps[n], crop.shape[0]) for m in maps]
            explained.append(Heatmaps(logit, own))
    return explained


def fake_maps(model: Model, crops: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Of each aligned crop uint8 [S,S,3] RGB the Grad-CAM of its fake logit, float32 [S,S] in 0..1.

    Errors: as `explain`; DfdetectError for an ONNX model without its checkpoint beside it.
    """
    if not isinstance(model, Checkpoint):
        model = _made_of(model.path.with_suffix(".safetensors"), model.checkpoint_sha256)
    return [heatmaps.maps[0].values for heatmaps in explain(model, crops)]


@lru_cache(1)
def _made_of(path: Path, sha256: str) -> Checkpoint:
    """The checkpoint that an ONNX model was exported from."""
    if not path.is_file() or sha256_of(path) != sha256:
        raise DfdetectError(
            "an ONNX model gives no gradients", "put the checkpoint it was made from beside it"
        )
    return load_checkpoint(path, "cpu")


def explain_many(
    model: str | Path | Checkpoint,
    inputs: Iterable[Path],
    out: Path,
    frames: int = 4,
    device: str = "auto",
    on_result: Callable[[Path, Explanation | DfdetectError], None] = lambda path, result: None,
) -> dict[str, Any]:
    """Maps of each person's `frames` most suspicious frames, into `out`: of every input with a face
    a sheet (PNG) and the arrays (npz), and explain.json, whose content it returns.

    An input that fails is reported as its error and does not stop the rest.

    Errors: DfdetectError for a checkpoint that cannot be used or explained, or a full disk.
    """
    scorer = FaceScorer(model, device=device, engine="torch")
    checkpoint = scorer.checkpoint
    size = checkpoint.detector.image_size
    explain(checkpoint, [np.zeros((size, size, 3), np.uint8)])  # whether it can be, before any file
    make_folder(out)

    def look(path: Path) -> tuple[Explanation, dict[str, bytes]]:
        scored = scorer(path)
        chosen = most_suspicious(scored.faces, frames)
        explained = explain(checkpoint, [seen.image for seen in chosen])
        return _told(path, scored, chosen, explained, checkpoint)

    entries, rows = [], []
    try:
        for path, result in attempts(inputs, look):
            if isinstance(result, DfdetectError):
                error = {"message": _valid(result.message), "hint": _valid(result.hint)}
                entries.append({"input": _valid(path), "error": error})
                on_result(path, result)
                continue
            explanation, files = result
            for name, content in files.items():
                write_whole(out / name, content)
            entries.append(explanation._asdict() | {"maps": len(explanation.maps)})
            rows += explanation.maps
            on_result(path, explanation)
    finally:  # what is finished, also after an interruption
        told = {
            "schema_version": SCHEMA_VERSION, "note": NOTE,
            "model": {"name": checkpoint.name, "sha256": checkpoint.sha256},
            "inputs": entries, "maps": rows,
        }  # fmt: skip
        write_json(out / "explain.json", told)
    return told


def most_suspicious(faces: Sequence[ScoredFace], n: int) -> list[ScoredFace]:
    """Of each person the `n` frames with the highest scores, in the order of time."""
    by_track: dict[int, list[ScoredFace]] = {}
    for seen in faces:
        by_track.setdefault(seen.track_id, []).append(seen)
    chosen = []
    for track in by_track.values():
        best = sorted(track, key=lambda seen: (-seen.frame.score, seen.frame.index))[:n]
        chosen += sorted(best, key=lambda seen: seen.frame.index)
    return chosen


def file_stem(path: Path) -> str:
    """A name for what is made of `path`: its own, in safe characters, and a hash of the whole path,
    by which files of one name in several folders differ."""
    digest = hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()[:10]
    readable = re.sub(r"[^A-Za-z0-9_]+", "-", path.stem).strip("-")[:60]
    return f"{readable or 'input'}-{digest}"


# --- maps of a batch --------------------------------------------------------------------------


class _Maps(NamedTuple):
    """One map of each crop of a batch: [N,h,w], in any unit."""

    name: str
    targets: list[str]
    maps: Tensor


@contextmanager
def _undisturbed(detector: Detector) -> Iterator[None]:
    """In eval mode, with gradients and without autocast, whatever holds around it; every module is
    then in the mode that it was in."""
    training = [module for module in detector.modules() if module.training]
    detector.eval()
    device = detector.mean.device.type
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device, enabled=False),
        ):
            yield
    finally:
        for module in training:
            module.training = True


def _maps(
    detector: Detector, images: Tensor, domains: Sequence[str] | None
) -> tuple[Tensor, list[_Maps]]:
    """Logits [N] and maps of `images` [N,3,S,S] in 0..1. Gradients are of maps and never of
    weights, which therefore get none."""
    if detector.head == "attention":
        return _attention_maps(detector, images, domains)
    starts: list[Tensor] = []
    final = _features(detector, images, starts)
    logits = detector.class_logits(final)
    fake = logits[:, 1] - logits[:, 0]
    place = starts[0]
    n = len(images)
    cam = _grad_cam(_as_grid(detector, place, n), _as_grid(detector, _gradient(fake, place), n))
    return fake.detach(), [_Maps("gradcam", ["fake - real logit"] * n, cam)]


def _attention_maps(
    detector: Detector, images: Tensor, domains: Sequence[str] | None
) -> tuple[Tensor, list[_Maps]]:
    with torch.no_grad():
        final = detector.features(images).final
        parts = detector.decompose(final)
        masks = [_Maps("mask_deepfake", [""] * len(images), detector.attention(final).mean(1))]
    deepfake = parts.deepfake.requires_grad_()
    fake = detector.classifier(deepfake).squeeze(1)
    cam = _grad_cam(deepfake, _gradient(fake, deepfake))
    cams = [_Maps("gradcam_deepfake", ["deepfake logit"] * len(images), cam)]
    if parts.domain is not None:
        with torch.no_grad():
            mask = detector.domain_attention(parts.rest).mean(1)
        masks.append(_Maps("mask_domain", [""] * len(images), mask))
        domain = parts.domain.requires_grad_()
        highest, likely = detector.domain_logits(domain).max(1)
        names = [_valid(domains[i]) if domains else str(i) for i in likely.tolist()]
        cam = _grad_cam(domain, _gradient(highest, domain))
        cams.append(_Maps("gradcam_domain", [f"domain logit: {name}" for name in names], cam))
    return fake.detach(), [*cams, *masks]


def _features(detector: Detector, images: Tensor, starts: list[Tensor]) -> Tensor:
    """The last map; `starts` gets the map that gradients are taken at, from which on a graph is
    recorded: the last one itself, or what enters the last block of a transformer."""

    def record(block: nn.Module, arguments: tuple) -> tuple:
        torch.set_grad_enabled(True)  # until the no_grad around it ends
        starts.append(arguments[0].detach().requires_grad_())
        return starts[0], *arguments[1:]

    hook = None
    if hasattr(detector.backbone, "num_prefix_tokens") and hasattr(detector.backbone, "blocks"):
        hook = detector.backbone.blocks[-1].register_forward_pre_hook(record)
    try:
        with torch.no_grad():
            final = detector.features(images).final
    finally:
        if hook:
            hook.remove()
    if not starts:
        starts.append(final.requires_grad_())
    return final


def _as_grid(detector: Detector, place: Tensor, n_crops: int) -> Tensor:
    """[N,C,h,w] of maps [N,C,h,w] or [N,h,w,C], or of a transformer's tokens [N,T,C], with those
    before the patches or (some have them only later) without.

    Errors: DfdetectError for anything else.
    """
    if place.ndim == 4 and place.shape[1] == detector.n_features:
        return place
    if place.ndim == 4 and place.shape[3] == detector.n_features:
        return place.permute(0, 3, 1, 2)
    n_before = getattr(detector.backbone, "num_prefix_tokens", None)
    if place.ndim == 3 and len(place) == n_crops and n_before is not None:
        for patches in (place[:, n_before:], place):
            side = isqrt(patches.shape[1])
            if side and side * side == patches.shape[1]:
                return patches.transpose(1, 2).unflatten(2, (side, side))
    name, shape = detector.settings["backbone"], " x ".join(map(str, place.shape[1:]))
    raise DfdetectError(
        f"{name} ends in {shape}: no map, nor tokens whose places are known",
        "explain needs a convolutional network or a vision transformer",
    )


def _gradient(logits: Tensor, place: Tensor) -> Tensor:
    """Of each crop's logit [N] with respect to its own part of `place` [N,...]."""
    return torch.autograd.grad(logits.sum(), place)[0]


def _grad_cam(place: Tensor, gradient: Tensor) -> Tensor:
    """[N,C,h,w] twice -> [N,h,w]."""
    weights = gradient.mean((2, 3), keepdim=True)
    return (weights * place).sum(1).relu().detach()


def _heatmap(name: str, target: str, coarse: Tensor, size: int) -> Heatmap:
    """Interpolated to the crop, then stretched."""
    fine = cv2.resize(coarse.cpu().numpy(), (size, size), interpolation=cv2.INTER_LINEAR)
    if not np.isfinite(fine).all():
        raise DfdetectError(f"the map {name} is not finite", "train the detector again")
    low = float(fine.min()) if name.startswith("mask") else 0.0
    peak = float(fine.max())
    if peak - low <= 1e-6 * abs(peak):  # flat but for rounding
        low, values = peak, np.zeros_like(fine)
    else:
        values = (fine - low) / (peak - low)
    return Heatmap(name, target, values, low, peak, (coarse.shape[0], coarse.shape[1]))


# --- what there is of one input ---------------------------------------------------------------


def _told(
    path: Path,
    scored: ScoredInput,
    chosen: Sequence[ScoredFace],
    explained: Sequence[Heatmaps],
    checkpoint: Checkpoint,
) -> tuple[Explanation, dict[str, bytes]]:
    """What is said of an input, and the files to write, by name."""
    of_input = (_valid(path), scored.sha256)
    if not chosen:
        return Explanation(*of_input, None, None, None, scored.warnings, []), {}
    score = max(t.score for t in lasting(scored.track_scores(), scored.n_frames))
    stem = file_stem(path)
    sheet, arrays = f"{stem}.png", f"{stem}.npz"
    rows = [
        {
            "input": _valid(path), "sha256": scored.sha256, "model_sha256": checkpoint.sha256,
            "frame_index": seen.frame.index, "time_s": seen.frame.time_s, "track": seen.track_id,
            "score": seen.frame.score, "box": seen.frame.box, "map": heatmap.name,
            "target": heatmap.target, "low": heatmap.low, "peak": heatmap.peak,
            "grid": list(heatmap.grid), "empty": heatmap.is_empty,
            "file": arrays, "key": heatmap.name, "row": i,
        }
        for i, (seen, heatmaps) in enumerate(zip(chosen, explained, strict=True))
        for heatmap in heatmaps.maps
    ]  # fmt: skip
    picture = draw_sheet(
        _valid(path),
        f"score {score:.3f}, model {checkpoint.name}",
        [TITLES[heatmap.name] for heatmap in explained[0].maps],
        [_row(seen, of_it, scored.is_still) for seen, of_it in zip(chosen, explained, strict=True)],
        NOTE,
    )
    files = {sheet: picture, arrays: _arrays(chosen, explained)}
    return Explanation(*of_input, score, sheet, arrays, scored.warnings, rows), files


def _row(seen: ScoredFace, explained: Heatmaps, still: bool) -> Row:
    where = [] if still else [f"{seen.frame.time_s:.2f} s", f"frame {seen.frame.index}"]
    label = [f"score {seen.frame.score:.3f}", *where, f"face {seen.track_id}"]
    panels = [Panel(heatmap.values, _caption(heatmap)) for heatmap in explained.maps]
    return Row(seen.image, label, panels)


def _caption(heatmap: Heatmap) -> list[str]:
    height, width = heatmap.grid
    if not heatmap.is_empty:
        said = f"{heatmap.low:.3g} to {heatmap.peak:.3g}, on {height} x {width}"
    elif heatmap.target:
        said = "empty: no place raises it"
    else:
        said = f"the same everywhere: {heatmap.peak:.3g}"
    return [said, heatmap.target]


def _arrays(chosen: Sequence[ScoredFace], explained: Sequence[Heatmaps]) -> bytes:
    """An npz: a row for each frame of each person in every array. `crops` uint8 [R,S,S,3] RGB,
    `frame_index`, `time_s`, `track`, `score` [R], `box` [R,4] and `landmarks` [R,5,2] in frame px,
    and by its name each map, float16 [R,S,S] in 0..1."""
    columns = {
        "crops": [seen.image for seen in chosen],
        "frame_index": [seen.frame.index for seen in chosen],
        "time_s": [seen.frame.time_s for seen in chosen],
        "track": [seen.track_id for seen in chosen],
        "score": [seen.frame.score for seen in chosen],
        "box": [seen.face.box_xyxy for seen in chosen],
        "landmarks": [seen.face.landmarks for seen in chosen],
    }
    maps = {
        heatmap.name: np.stack([one.maps[i].values for one in explained]).astype(np.float16)
        for i, heatmap in enumerate(explained[0].maps)
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{k: np.stack(v) for k, v in columns.items()}, **maps)
    return buffer.getvalue()


def _valid(text: object) -> str:
    """Undecodable bytes of file names as \\udcXX text, so that all JSON is valid UTF-8."""
    return str(text).encode("utf-8", "backslashreplace").decode()
