"""Every number of metrics.json from the rows of predictions.parquet, written a second time: pairs,
thresholds and drawn rows one by one, NumPy only, slow and plain, for small files."""

from zlib import crc32

import numpy as np

SUMMED = ("min_cllr", "ece")  # have no interval


def figures(rank, score, odds, label, threshold):
    """{figure: value} of entries that are ranked, NaN of a single class."""
    real, fake = rank[label == 0], rank[label == 1]
    names = ("auc", "eer", "ap", "accuracy", "balanced_accuracy", "tpr_at_1", "tpr_at_5", "brier",
             "cllr", *SUMMED)  # fmt: skip
    if not len(real) or not len(fake):
        return dict.fromkeys(names, np.nan)
    above = fake[:, None] - real
    cuts = [np.inf, *sorted(set(rank), reverse=True)]
    fp, tp = ([int((of >= cut).sum()) for cut in cuts] for of in (real, fake))
    fpr, tpr = np.array(fp) / len(real), np.array(tp) / len(fake)
    gap = fpr - (1 - tpr)
    k = int(np.flatnonzero(gap >= -1e-15)[0])
    eer = fpr[k - 1] - gap[k - 1] * (fpr[k] - fpr[k - 1]) / (gap[k] - gap[k - 1])
    ap = sum((tpr[i] - tpr[i - 1]) * tp[i] / (tp[i] + fp[i]) for i in range(1, len(cuts)))
    right = (score >= threshold) == (label == 1)
    of_class = [right[label == y].mean() for y in (0, 1)]
    hits = [tpr[[100 * f <= percent * len(real) for f in fp]].max() for percent in (1, 5)]
    costs = np.log2(1 + np.exp(np.where(label == 1, -odds, odds)))
    cllr = (costs[label == 0].mean() + costs[label == 1].mean()) / 2
    auc, error = ((above > 0) + 0.5 * (above == 0)).mean(), ((score - label) ** 2).mean()
    values = (auc, eer, ap, right.mean(), np.mean(of_class), *hits, error, cllr,
              least_cost(rank, label), ece(score, label))  # fmt: skip
    return dict(zip(names, map(float, values), strict=True))


def least_cost(rank, label):
    """Isotonic regression by its max-min formula, then the mean cost of both classes in bits."""
    cuts = sorted(set(rank))
    masses = [[(rank[label == y] == cut).mean() for cut in cuts] for y in (0, 1)]
    real, fake = (np.cumsum([0, *mass]) for mass in masses)
    n, total = len(cuts), 0.0
    for i in range(n):
        p = max(min((fake[b] - fake[a]) / (real[b] - real[a] + fake[b] - fake[a])
                    for b in range(i + 1, n + 1)) for a in range(i + 1))  # fmt: skip
        for mass, q in ((masses[0][i], 1 - p), (masses[1][i], p)):
            total -= mass * np.log2(q) / 2 if mass > 1e-12 else 0
    return total


def ece(score, label):
    weight, place = np.array([0.5 / (label == y).sum() for y in label]), (score * 10).astype(int)
    parts = [np.minimum(place, 9) == i for i in range(10)]
    return sum(abs((weight * (score - label))[part].sum()) for part in parts)


def entries(rows, level):
    """[(rank, score, log odds, label, (data, video), quality, manipulation)]"""
    groups = {}
    for r in rows:
        unit = {"frame": r["sample_id"], "track": r["track_id"], "video": 0}[level]
        groups.setdefault((r["data"], r["video_id"], unit, r["quality"]), []).append(r)
    found = []
    for (data, video, _, quality), rs in groups.items():
        s = float(np.mean([r["score"] for r in rs]))
        kept = min(max(s, 1e-6), 1 - 1e-6)
        rank, odds = (rs[0]["logit"],) * 2 if level == "frame" else (s, np.log(kept / (1 - kept)))
        found.append((rank, s, odds, rs[0]["label"], (data, video), quality, rs[0]["manipulation"]))
    return found


def draws(rows, rounds):
    """[{(data, video): how often it is drawn}], first each once."""
    videos = {d: sorted({r["video_id"] for r in rows if r["data"] == d})
              for d in {r["data"] for r in rows}}  # fmt: skip
    found = [{(d, v): 1 for d in videos for v in videos[d]}]
    for i in range(1, rounds + 1):
        found.append(dict.fromkeys(found[0], 0))
        for d, names in videos.items():
            for k in np.random.default_rng([0, crc32(d.encode()), i]).integers(
                len(names), size=len(names)
            ):
                found[-1][d, names[k]] += 1  # fmt: skip
    return found


def rounds_of(chosen, drawn, threshold):
    """{figure: [1 + rounds]} of some entries."""
    columns = [np.array(column) for column in list(zip(*chosen, strict=True))[:4]]
    found = []
    for times in drawn:
        n = [times[e[4]] for e in chosen]
        found.append(figures(*(np.repeat(column, n) for column in columns), threshold))
    few = min(len({e[4] for e in chosen if e[3] == y}) for y in (0, 1)) < 2
    nan = [np.nan] * (len(drawn) - 1)
    return {k: np.array([found[0][k], *(nan if few or k in SUMMED else [f[k] for f in found[1:]])])
            for k in found[0]}  # fmt: skip


def merged(name, parts):
    """Mean or worst of places, round by round."""
    if name == "mean":
        return {k: np.mean([p[k] for p in parts], 0) for k in parts[0]}
    largest = ("eer", "brier", "cllr", *SUMMED)
    return {k: (np.max if k in largest else np.min)([p[k] for p in parts], 0) for k in parts[0]}


def recompute(rows, threshold, rounds):
    """{(data, level, quality, manipulation): {figure: [1 + rounds]}} of every cell."""
    drawn, found = draws(rows, rounds), {}
    folders = list(dict.fromkeys(r["data"] for r in rows))
    for level in ("frame", "track", "video"):
        everything = entries(rows, level)
        for data in [*folders, *(["pooled"] if len(folders) > 1 else [])]:
            mine = [e for e in everything if data in (e[4][0], "pooled")]
            qualities = list(dict.fromkeys(e[5] for e in mine))
            kinds = sorted({e[6] for e in mine if e[3]}) if data != "pooled" else []
            for kind in [*kinds, "all"]:
                some = [e for e in mine if not e[3] or kind in (e[6], "all")]
                for q in [*qualities, "pooled"]:
                    part = [e for e in some if q in (e[5], "pooled")]
                    found[data, level, q, kind] = rounds_of(part, drawn, threshold)
                for q in ("mean", "worst"):
                    found[data, level, q, kind] = merged(
                        q, [found[data, level, one, kind] for one in qualities]
                    )
            for q in [*qualities, "pooled", "mean", "worst"]:
                for name in ("mean", "worst") if len(kinds) > 1 else ():
                    found[data, level, q, name] = merged(
                        name, [found[data, level, q, kind] for kind in kinds]
                    )
        for name in ("mean", "worst") if len(folders) > 1 else ():
            for q in [*qualities, "pooled", "mean", "worst"]:
                found[name, level, q, "all"] = merged(
                    name, [found[data, level, q, "all"] for data in folders]
                )
    return found
