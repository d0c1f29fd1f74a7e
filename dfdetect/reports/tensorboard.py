"""A training run's figures as TensorBoard's event files, in RUN/tensorboard/.

Every number of an event is a curve, named by where it stands in it: train/terms/ce,
train/timing/images_per_s, val/by_quality/auc/c40.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dfdetect.errors import DfdetectError


class TensorBoard:
    """Called with the events of `dfdetect.train`; a context that closes its file."""

    def __init__(self, folder: Path) -> None:
        """Writes nothing before the run's start. Errors: DfdetectError without tensorboard."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise DfdetectError(
                "--tensorboard needs the package tensorboard, which is not installed",
                "pip install 'dfdetect[tensorboard]'",
            ) from error
        self._open, self._folder, self._writer = SummaryWriter, folder, None

    def __enter__(self) -> "TensorBoard":
        return self

    def __exit__(self, *error: object) -> None:
        if self._writer:
            self._writer.close()

    def __call__(self, event: Mapping[str, Any]) -> None:
        if event["kind"] == "start":
            # Steps after the state that a run goes on from come again: their old figures are void.
            after = event["step"] + 1 if event["resumed"] else None
            self._writer = self._open(str(self._folder), purge_step=after)
        elif event["kind"] in ("train", "val"):
            for name, value in _numbers(event):
                self._writer.add_scalar(f"{event['kind']}/{name}", value, event["step"])


def _numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Numbers with their paths, but for counts and what repeats an earlier event."""
    for name, value in values.items():
        if name in ("step", "best") or name.startswith("n_"):
            continue
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + name, value
