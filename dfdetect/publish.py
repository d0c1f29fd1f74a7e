"""publish: a checkpoint -> one small file to give away, which says what it is and can be checked.

Weights in half precision, a text on data, limits and licence, and the logit of the shipped
portrait, which is compared whenever the file is loaded.
"""

from datetime import UTC, datetime
from pathlib import Path

from dfdetect.checkpoint import (
    Publication,
    checkpoint_path,
    load_checkpoint,
    portrait_logit,
    save_checkpoint,
)
from dfdetect.errors import DfdetectError
from dfdetect.files import cannot_write


def publish(model: Path, about: Path, out: Path) -> Path:
    """Write `out`; `about` is a file of Markdown for the model card.

    Errors: DfdetectError for an unreadable checkpoint or text, an `out` that is the checkpoint
    itself or cannot be written.
    """
    if out.exists() and out.samefile(checkpoint_path(model)):
        raise DfdetectError(f"{out}: is the checkpoint itself", "name another file with --out")
    try:
        text = about.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        cause = getattr(error, "strerror", "not text in UTF-8")
        raise DfdetectError(
            f"{about}: cannot be read ({cause})", "give a Markdown file on data, limits and licence"
        ) from error
    checkpoint = load_checkpoint(model, "cpu")
    detector = checkpoint.detector.half().float()
    publication = Publication(
        date=datetime.now(UTC).date().isoformat(),
        about=text,
        portrait_logit=portrait_logit(detector, "cpu"),
    )
    info = checkpoint.info.model_copy(update={"publication": publication})
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(out.parent, error) from error
    save_checkpoint(out, detector, info)
    return out
