"""PARITY.md: what the gate measured of each precision of a bundle, for people."""

from __future__ import annotations

from typing import Any

from memcli.engines.bundle import Bundle, Variant
from memcli.export.parity import describe

PARITY_FILE = "PARITY.md"
_HEAD = (
    "| precision | compared on | computed by | {noun} | max difference | mean | SRCC "
    "| cosine min | cosine mean |\n"
    "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
)


def parity_table(bundle: Bundle) -> str:
    """The reports of all precisions as Markdown."""
    text = f"# Parity of {bundle.model}\n\n"
    text += (
        "How far each graph is from its original: differences of the scores, Spearman's rank\n"
        "correlation of the scores, cosines of the embeddings. fp32 is compared with the PyTorch\n"
        "model, everything else with the fp32 graph. `emulated`: on a machine without arithmetic\n"
        "of that precision, every value was rounded to it. The numbers in full are in\n"
        "`manifest.json`; each engine is verified again at its first use on a machine.\n\n"
    )
    rows = [
        _row(precision, {**report, "inputs": _inputs(bundle, report)})
        for precision, variant in bundle.variants.items()
        for report in (*_of_training(bundle, precision), *variant.parity)
    ]
    text += (
        _HEAD.format(noun=_noun(bundle)) + "".join(rows)
        if rows
        else "Nothing has been measured yet.\n"
    )
    text += "\nAllowed:\n\n"
    for precision in bundle.variants:
        tolerance = bundle.spec.tolerances.get(precision)
        text += f"- {precision}: {describe(tolerance) if tolerance else 'no tolerance'}\n"
    for variant in bundle.variants.values():
        text += _left_in_float(variant)
    return text


def write_parity_table(bundle: Bundle) -> None:
    """Write the table into the bundle's folder. Raises OSError."""
    (bundle.root / PARITY_FILE).write_text(parity_table(bundle), encoding="utf-8")


def _noun(bundle: Bundle) -> str:
    return "clips" if bundle.spec.eeg is None else "epochs"


def _inputs(bundle: Bundle, report: dict[str, Any]) -> str:
    """What a report was compared on."""
    return str(report.get("inputs") or report.get("frames_of") or f"reference {_noun(bundle)}")


def _of_training(bundle: Bundle, precision: str) -> list[dict[str, Any]]:
    """The comparison with PyTorch, which the manifest keeps with the training."""
    told = bundle.training.get("parity")
    if precision != "fp32" or not isinstance(told, dict):
        return []
    reports = []
    for runtime, outputs in told.items():
        score = outputs.get("score") if isinstance(outputs, dict) else None
        if isinstance(score, dict):
            reports.append(
                {**score, "inputs": f"synthetic {_noun(bundle)}", "runtime": runtime}
                | {"clips": score.get("values")}
            )
    return reports


def _row(precision: str, report: dict[str, Any]) -> str:
    runtime = report.get("runtime") or report.get("engine") or ""
    cells = [precision, str(report["inputs"]), str(runtime), str(report.get("clips", ""))]
    cells += [_number(report.get(name), ".2g") for name in ("max_abs", "mean_abs")]
    cells += [_number(report.get(name), ".5f") for name in ("srcc", "cosine_min", "cosine_mean")]
    return f"| {' | '.join(_plain(cell) for cell in cells)} |\n"


def _number(value: object, form: str) -> str:
    return format(value, form) if isinstance(value, (int, float)) else ""


def _plain(text: str) -> str:
    """One line that cannot end the cell: manifests come from anywhere."""
    return "".join(c for c in text.replace("|", "/")[:120] if c.isprintable())


def _left_in_float(variant: Variant) -> str:
    layers = next((r["float_layers"] for r in variant.parity if r.get("float_layers")), None)
    if not isinstance(layers, list):
        return ""
    names = ", ".join(_plain(str(name)) for name in layers)
    return f"\nLayers of {variant.precision} that were left in fp32: {names}\n"
