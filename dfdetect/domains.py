"""Predicted domains -> how often each manipulation is taken for which (CrossDF Fig. 5).

A domain head names the forgery technique of every crop, also of those that training never saw:
their rows show what it takes them for, and have no right answer.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dfdetect.cells import was_seen
from dfdetect.results import Prediction

REAL = "real"
"""The manipulation of real crops in a confusion, and the first domain."""


@dataclass(frozen=True)
class Confusion:
    """Crops of one folder at one quality (or all of them pooled), counted.

    `counts` [manipulations, domains]: rows by what a crop is, columns by what it was taken for;
    reals come first. `mean_diagonal` is the mean over the manipulations that training saw of the
    share that was named rightly, `mean_diagonal_with_real` with reals as one more of them (None
    where there are none, or training named no domain of theirs), `n_diagonal` and
    `n_diagonal_with_real` the crops counted in them; None with a `reason`.
    """

    data: str
    split: str
    level: str
    quality: str
    domains: list[str]
    manipulations: list[str]
    seen_in_training: list[bool | None]
    counts: list[list[int]]
    mean_diagonal: float | None
    n_diagonal: int
    mean_diagonal_with_real: float | None
    n_diagonal_with_real: int
    reason: str = ""

    def shares(self) -> np.ndarray:
        """`counts` with each row divided by its sum; 0 in a row without crops."""
        counts = np.array(self.counts, float)
        return counts / np.maximum(counts.sum(1, keepdims=True), 1)

    def right(self, row: int) -> int | None:
        """The column of the right answer for a row, None where training never saw it."""
        name = self.manipulations[row]
        known = name in self.domains and self.seen_in_training[row] is not False
        return self.domains.index(name) if known else None


def confusions(
    predictions: Sequence[Prediction], data: str, split: str, domains: Sequence[str],
    trained: Collection[str] | None,
) -> list[Confusion]:  # fmt: skip
    """One for each quality, and one of all pooled where there are several. `domains` are the names
    that were predicted from, `trained` the manipulations of the training."""
    qualities = list(dict.fromkeys(p.quality for p in predictions))
    pools = {quality: [p for p in predictions if p.quality == quality] for quality in qualities}
    if len(qualities) > 1:
        pools["pooled"] = list(predictions)
    fakes = {p.manipulation for p in predictions if p.label}
    known = [name for name in domains[1:] if name in fakes and was_seen(name, trained) is not False]
    reals = [REAL] if any(not p.label for p in predictions) else []
    rows = [*reals, *known, *sorted(fakes - set(known))]
    return [_confusion(pool, (data, split, "frame", quality), rows, domains, trained)
            for quality, pool in pools.items()]  # fmt: skip


def _confusion(
    predictions: Sequence[Prediction], place: tuple[str, str, str, str], rows: list[str],
    domains: Sequence[str], trained: Collection[str] | None,
) -> Confusion:  # fmt: skip
    n = Counter((p.manipulation if p.label else REAL, p.predicted_domain) for p in predictions)
    counts = [[n[row, domain] for domain in domains] for row in rows]
    told = [True if row == REAL else was_seen(row, trained) for row in rows]
    found = Confusion(*place, list(domains), rows, told, counts, None, 0, None, 0)
    shares, sizes = found.shares(), [sum(row) for row in counts]
    right = {i: found.right(i) for i, size in enumerate(sizes) if size}
    hits = {i: float(shares[i, column]) for i, column in right.items() if column is not None}
    fakes = [i for i in hits if rows[i] != REAL]
    if not fakes:
        return replace(found, reason="no manipulation here is a domain that training named")
    found = replace(
        found,
        mean_diagonal=float(np.mean([hits[i] for i in fakes])),
        n_diagonal=sum(sizes[i] for i in fakes),
    )
    if len(hits) == len(fakes):
        return found
    return replace(
        found,
        mean_diagonal_with_real=float(np.mean(list(hits.values()))),
        n_diagonal_with_real=sum(sizes[i] for i in hits),
    )


def confusion_rows(confusions: Sequence[Confusion]) -> Iterator[list[object]]:
    """A table of counts: its heading, then a row for each manipulation at each place."""
    head = ["data", "split", "level", "quality", "manipulation", "seen_in_training", "n"]
    yield [*head, *(f"predicted {name}" for name in confusions[0].domains)]
    for c in confusions:
        for row, seen, counts in zip(c.manipulations, c.seen_in_training, c.counts, strict=True):
            yield [c.data, c.split, c.level, c.quality, row, seen, sum(counts), *counts]
