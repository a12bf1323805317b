"""A trained PyTorch model to an installed bundle: fp32 graph, parity gate, terms and report.

Needs torch, transformers and onnxscript (`pip install "memcli[export]"`); nothing at runtime
imports it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memcli.engines.bundle import GRAPH_FILE, LICENSE_FILE, Bundle
from memcli.engines.files import locked, staging
from memcli.errors import MemcliError, ModelError, OutputError
from memcli.export.build import build_bundle
from memcli.export.fuse import fuse
from memcli.export.original import gate_graph, make_reference, run_original
from memcli.export.provenance import license_text_of, training_report, without_paths
from memcli.export.tokenizer_gate import check_tokenizer
from memcli.export.trace import (
    give_names,
    keep_inside,
    simplify,
    tidy,
    tool_versions,
    trace,
    transpose_weights,
    write_graph,
)
from memcli.export.traced import traced
from memcli.home import bundles_dir
from memcli.spec import ModelSpec

if TYPE_CHECKING:
    from memcli.train.eeg.network import EegModel
    from memcli.train.model import MemorabilityModel
    from memcli.train.run import Run

Report = Callable[[str], None]
_PREFIX = "model."


def export_run(
    run: Run,
    *,
    target: Path | None = None,
    offline: bool = False,
    report: Report = lambda _: None,
) -> Bundle:
    """The model of a run, trained on everything, as an installed bundle.

    Raises what `memcli.train.run.load_model` and `export_model` raise.
    """
    from memcli.train.run import load_model

    model = load_model(run, offline=offline, report=report)
    text = next((used for used in run.encoders if used.tower == "text"), None)
    return export_model(
        model,
        replace(run.spec, trained_on=str(run.dataset.get("name", run.spec.trained_on))),
        tokenizer=run.tokenizer,
        checkpoint=Path(text.folder) if text is not None else None,
        training=training_report(run),
        made_by={},
        license_text=license_text_of(run),
        target=target,
        report=report,
    )


def export_model(
    model: MemorabilityModel | EegModel,
    spec: ModelSpec,
    *,
    tokenizer: Path | None,
    checkpoint: Path | None = None,
    training: Mapping[str, Any],
    made_by: Mapping[str, str],
    license_text: str,
    target: Path | None = None,
    report: Report = lambda _: None,
) -> Bundle:
    """Trace `model`, compare the graph with it, and install it as `target`.

    `tokenizer` is the tokenizer file of a model that reads captions, and `checkpoint` the folder
    of its text encoder, whose own tokenizer the file is compared with. `target` is by default
    `bundles_dir()/NAME`. What names a place on this machine is taken out of `spec` and `training`.

    Raises ParityError with the numbers if the graph does not give the model's scores in every
    installed runtime, or the tokenizer file other ids; ModelError for a model that cannot be
    traced or does not fit its spec; OutputError for a full disk. Then an installed bundle stays
    as it was.
    """
    if spec.text is not None and tokenizer is None:
        raise ModelError(f"{spec.name} reads captions, but there is no tokenizer file for it")
    target = target or bundles_dir() / spec.name
    model = model.eval()
    told = dict(training)
    if spec.text is not None and tokenizer is not None:
        told["tokenizer_checked_with"] = check_tokenizer(spec.text, tokenizer, checkpoint)
    report("running the model")
    original = run_original(model, spec, tokenizer)
    portable = ModelSpec.from_dict(without_paths(spec.to_dict()))
    try:
        with staging(target, "make") as folder:
            content = folder / "bundle"
            content.mkdir()
            report("tracing the model")
            write_traced(model, spec, content)
            report("comparing the graph with the model")
            told["parity"] = gate_graph(content / GRAPH_FILE, original, spec, report)
            if spec.text is not None and tokenizer is not None:
                shutil.copyfile(tokenizer, content / spec.text.tokenizer)
            (content / LICENSE_FILE).write_text(license_text, encoding="utf-8")
            with locked(target, lambda: report(f"another memcli is changing {spec.name}: waiting")):
                return build_bundle(
                    portable,
                    content,
                    target=target,
                    reference=make_reference(original, spec),
                    made_by={**tool_versions(), **made_by},
                    training=without_paths(told),
                    report=report,
                )
    except MemcliError:
        raise  # some are OSErrors too
    except OSError as error:
        raise OutputError(f"cannot write the bundle: {error}", where=str(target)) from error


def write_traced(model: MemorabilityModel | EegModel, spec: ModelSpec, folder: Path) -> None:
    """Write the fp32 graph of `model` as `model.onnx` and `model.bin`.

    Its inputs and outputs are as `memcli.export.traced.traced` says. Raises ModelError if the
    exporter cannot translate the model, OSError.
    """
    plan = traced(model, spec)
    try:
        graph = trace(plan.module, plan.inputs, plan.axes, plan.outputs + plan.inner)
    except Exception as error:  # torch.export has many errors of its own and of its parts
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"PyTorch cannot translate {spec.name} to ONNX: {lines[0][:300]}",
            next_step="This is a fault of memcli or of this version of torch: please report it.",
        ) from error
    transpose_weights(graph)
    simplify(graph)
    fuse(graph)
    graph = tidy(graph)
    give_names(graph, _PREFIX)
    keep_inside(graph, plan.inner)
    write_graph(graph, folder)
