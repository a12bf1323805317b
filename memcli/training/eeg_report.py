"""What `memcli train` prints of an EEG model: its splits, peers, calibration, what comes next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from memcli.models.papers import cited

if TYPE_CHECKING:
    from memcli.train.run import Run

DEMONSTRATION = "demonstration: trained on planted data; probabilities mean nothing for people"
_TITLES = {
    "epochs": "epochs held out",
    "subjects": "subjects held out",
    "videos": "videos held out",
}
_MEASURES = ("accuracy", "balanced_accuracy")
_HEAD = ("", "AUROC (folds)", "95 %", "accuracy", "95 %", "balanced", "95 %", "ECE")
_WIDTHS = (30, 15, 15, 10, 15, 10, 15, 7)


def closing_lines(run: Run) -> list[str]:
    """The table of a complete run, for a terminal."""
    metrics, data = run.metrics, run.dataset
    lines = [f"{run.model} on {run.spec.trained_on}"]
    lines += [DEMONSTRATION] if data.get("demonstration") else []
    lines += ["", _line(_HEAD)]
    for split, found in metrics["splits"].items():
        lines.append(_row(run.model, _TITLES[split], found))
        for name, peer in metrics["baselines"].items():
            if split in peer:
                lines.append(_row(name, _TITLES[split], peer[split]))
    if "test" in metrics:
        lines.append(_row(run.model, "test", {"held_out": metrics["test"]}))
    share = max(data["recognised"], data["epochs"] - data["recognised"]) / data["epochs"]
    lines.append(
        _line((f"{'majority':<10} always one label", "0.500", "", f"{share:.3f}", "", "0.500"))
    )
    lines += ["", "AUROC: mean ± standard deviation over the folds; the rest is of all held-out"]
    lines.append("epochs together, with 95 % intervals of a bootstrap over epochs.")
    for split, found in metrics["splits"].items():
        if "absent" in found:
            lines.append(f"no {_TITLES[split]}: {found['absent']}")
        else:
            before, after = found["calibration_error_before"], _calibration(found)
            lines.append(
                f"expected calibration error, {_TITLES[split]}: {before:.3f} before temperature,"
                f" {after:.3f} after (each fold's from the other folds)"
            )
    lines += _of_videos(data, metrics["splits"])
    lines += [
        f"published {one.metric} {one.value:.3f} ({one.dataset}; {cited(one.source)}):"
        " other data, unless yours is that"
        for one in run.spec.published[:1]
    ]
    if "ensemble" in run.full:
        lines.append(f"the model: an ensemble of the folds' {run.full['ensemble']} models")
    else:
        lines.append(
            f"the model: trained on all epochs, {run.full['epochs']} times over"
            f" ({run.full['epochs_because']}), temperature {run.full['temperature']:.2f}"
        )
    return [*lines, "", f"run: {run.folder}", f"next: memcli export {run.model}"]


def _of_videos(data: Mapping[str, Any], splits: Mapping[str, Any]) -> list[str]:
    """Whether epochs of one video are on both sides of folds."""
    others = " and ".join(_TITLES[split] for split in splits if split != "videos")
    if not data["videos"]:
        return [f"{others}: one video may be on both sides; the data does not say which is which"]
    if not data["repeated_videos"]:
        return []
    told = f"{others}: {data['repeated_videos']} of {data['videos']} videos have several epochs,"
    told += " which may be on both sides"
    return [told if "videos" in splits else f"{told}; --split videos keeps them together"]


def _calibration(found: Mapping[str, Any]) -> float:
    value: float = found["held_out"]["calibration_error"]
    return value


def _row(who: str, what: str, found: Mapping[str, Any]) -> str:
    name = f"{who:<10} {what}"
    if "absent" in found:
        return _line((name, "not possible"))
    held_out = found["held_out"]
    value = found.get("auroc", held_out["auroc"]["value"])
    std = found.get("auroc_std")
    spread = f" ± {std:.3f}" if std is not None else ""
    cells = [name, ("undefined" if value is None else f"{value:.3f}") + spread]
    cells.append(_interval(held_out["auroc"]["interval"]))
    for measure in _MEASURES:
        own = held_out[measure]
        cells.append("undefined" if own["value"] is None else f"{own['value']:.3f}")
        cells.append(_interval(own["interval"]))
    return _line((*cells, f"{held_out['calibration_error']:.3f}"))


def _interval(interval: list[float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.3f}-{interval[1]:.3f}"


def _line(cells: tuple[str, ...]) -> str:
    first, *rest = zip(cells, _WIDTHS[: len(cells)], strict=True)
    return (f"{first[0]:<{first[1]}}" + "".join(f"{c:>{w}}" for c, w in rest)).rstrip()
