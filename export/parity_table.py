"""PARITY.md: what the gate measured of each precision of a bundle, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcli.engines.bundle import Bundle, Variant
from memcli.export.evidence import (
    GATE,
    PYTORCH,
    inputs_of,
    is_real,
    narrow_warning,
    noun_of,
    runtime_of,
    synthetic_inputs,
    verified_on,
)
from memcli.export.parity import describe

if TYPE_CHECKING:
    from memcli.spec import Precision

PARITY_FILE = "PARITY.md"
_EXPLAINED = """\
Differences of the scores of {noun}, Spearman's rank correlation of the scores, cosines of the
embeddings. A precision is installed because of its rows `gate`, which are held to what is allowed
below. `engine check`: a runtime executes the graph as it is meant to; for int8 that is what its own
graph gave when it was made. `shown only`: synthetic pictures are not like the videos that int8 was
calibrated and checked with, and decide nothing there. `emulated`: on a machine without arithmetic
of that precision, every value was rounded to it. The numbers in full are in `manifest.json`; each
engine is verified again at its first use on a machine.

"""
_HEAD = (
    "| precision | what for | compared with | on | computed by | {noun} | max difference | mean "
    "| SRCC | cosine min | cosine mean | scores compared with: min | max | deviation |\n"
    "|" + " --- |" * 5 + " ---: |" * 9 + "\n"
)


def parity_table(bundle: Bundle) -> str:
    """The reports of all precisions as Markdown."""
    text = f"# Parity of {bundle.model}\n\n"
    text += _EXPLAINED.format(noun=noun_of(bundle.spec))
    reports = {name: _reports(bundle, name) for name in bundle.variants}
    rows = [_row(name, report) for name, some in reports.items() for report in some]
    head = _HEAD.format(noun=noun_of(bundle.spec))
    text += head + "".join(rows) if rows else "Nothing has been measured yet.\n"
    text += "".join(_gates(name, some) for name, some in reports.items())
    text += "".join(_warnings(bundle, name, some) for name, some in reports.items())
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


def _reports(bundle: Bundle, precision: Precision) -> list[dict[str, Any]]:
    return [*_of_training(bundle, precision), *bundle.variants[precision].parity]


def _gates(precision: Precision, reports: list[dict[str, Any]]) -> str:
    """What the gate of a precision rests on."""
    on = verified_on(reports)
    if not on:
        return ""
    text = f"\nThe gate of {precision} rests on {_plain(on)}."
    if not any(is_real(one) for one in reports) and precision != "fp32":
        text += " No real input was given: `memcli export --calibration DIR` takes your videos."
    return text + "\n"


def _warnings(bundle: Bundle, precision: Precision, reports: list[dict[str, Any]]) -> str:
    tolerance = bundle.spec.tolerances.get(precision)
    found = {narrow_warning(one, tolerance): inputs_of(one) for one in reports}
    return "".join(
        f"\nWarning: {precision} on {_plain(inputs)}: {_plain(text, 400)}.\n"
        for text, inputs in found.items()
        if text
    )


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
                {"role": GATE, "against": PYTORCH, "runtime": runtime}
                | {"inputs": synthetic_inputs(bundle.spec), "of": noun_of(bundle.spec)}
                | {**score, "clips": score.get("values")}
            )
    return reports


def _row(precision: str, report: dict[str, Any]) -> str:
    cells = [precision, *(str(report.get(name, "not recorded")) for name in ("role", "against"))]
    cells += [inputs_of(report), runtime_of(report), str(report.get("clips", ""))]
    cells += [_number(report.get(name), ".2g") for name in ("max_abs", "mean_abs")]
    cells += [_number(report.get(name), ".5f") for name in ("srcc", "cosine_min", "cosine_mean")]
    names = ("reference_min", "reference_max", "reference_std")
    cells += [_number(report.get(name), ".3g") for name in names]
    return f"| {' | '.join(_plain(cell) for cell in cells)} |\n"


def _number(value: object, form: str) -> str:
    return format(value, form) if isinstance(value, (int, float)) else ""


def _plain(text: str, most: int = 120) -> str:
    """One line that cannot end the cell: manifests come from anywhere."""
    return "".join(c for c in text.replace("|", "/")[:most] if c.isprintable())


def _left_in_float(variant: Variant) -> str:
    layers = next((r["float_layers"] for r in variant.parity if r.get("float_layers")), None)
    if not isinstance(layers, list):
        return ""
    names = ", ".join(_plain(str(name)) for name in layers)
    return f"\nLayers of {variant.precision} that were left in fp32: {names}\n"
