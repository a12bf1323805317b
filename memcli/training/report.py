"""What `memcli train` prints at the end: folds, mean, the published figure, the next command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcli.models.papers import cited
from memcli.text import plural

if TYPE_CHECKING:
    from memcli.spec import PublishedResult
    from memcli.train.run import Run

_COLUMNS = ("srcc", "plcc", "mse", "mae")


def closing_lines(run: Run) -> list[str]:
    """The table of a complete run, for a terminal."""
    lines = [f"{run.model} on {run.spec.trained_on}", ""]
    if run.folds:
        lines.append(f"{'held out':<10}{'videos':>8}" + "".join(f"{c:>9}" for c in _COLUMNS))
        official = run.dataset.get("split") == "official"
        for entry in run.folds:
            name = "dev" if official else f"fold {entry['fold']}"
            lines.append(_row(name, entry["metrics"]))
        if len(run.folds) > 1:
            lines.append(_row("together", run.metrics["held_out"]))
        lines += ["", _mean(run)]
    else:
        lines.append("no videos were held out: there is nothing to measure it by")
    lines += [_published(run, one) for one in run.spec.published[:1] if one.metric == "SRCC"]
    if run.dataset.get("left_out"):
        lines.append(f"left out: {plural(len(run.dataset['left_out']), 'video')}")
    lines += ["", f"run: {run.folder}"]
    if run.features is None:
        lines.append(f"next: memcli export {run.model}")
    else:
        lines.append(
            f"it was trained on precomputed features ({run.features}): it cannot be exported"
        )
    return lines


def summary(run: Run) -> dict[str, Any]:
    """The same for programs: run.json without the epochs' history, and the folder."""
    entry = run.to_dict()
    entry["folds"] = [{k: v for k, v in fold.items() if k != "history"} for fold in run.folds]
    entry["full"] = {k: v for k, v in run.full.items() if k != "history"}
    return {"run": str(run.folder)} | entry


def _published(run: Run, result: PublishedResult) -> str:
    same = str(run.dataset["name"]).lower() in result.dataset.lower()
    caution = (
        "same dataset; split, encoder and seed may differ" if same else "other data, not comparable"
    )
    return (
        f"published SRCC {result.value:.3f} ({result.dataset}; {cited(result.source)}): {caution}"
    )


def _row(name: str, metrics: dict[str, Any]) -> str:
    values = [metrics[column]["value"] for column in _COLUMNS]
    cells = "".join(f"{'-' if value is None else format(value, '.4f'):>9}" for value in values)
    return f"{name:<10}{metrics['n']:>8,}{cells}"


def _mean(run: Run) -> str:
    mean, interval = run.metrics["mean_srcc"], run.metrics["interval"]
    if mean is None:
        return "mean SRCC undefined: all predictions of a fold are equal"
    text = f"mean SRCC {mean:.3f}"
    if run.metrics["std_srcc"] is not None:
        text += f" ± {run.metrics['std_srcc']:.3f} over the folds"
    if interval is not None:
        text += f", 95 % interval {interval[0]:.3f} to {interval[1]:.3f} (Fisher)"
    return text
