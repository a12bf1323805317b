"""`memcli export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memcli.spec import PRECISIONS, Precision

if TYPE_CHECKING:
    from memcli.exporting import ExportRequest


@click.command(name="export")
@click.argument("models", metavar="[MODEL]...", nargs=-1)
@click.option("--fp32", is_flag=True, help="The model of a training run.")
@click.option("--fp16", is_flag=True, help="Half precision, for GPUs.")
@click.option("--bf16", is_flag=True, help="bfloat16, for GPUs and for CPUs that compute in it.")
@click.option("--int8", is_flag=True, help="8-bit integers, calibrated.")
@click.option("--fp8", is_flag=True, help="8-bit floats, calibrated, for TensorRT.")
@click.option(
    "--run",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="The training run to export, instead of the model's latest.",
)
@click.option(
    "--calibration",
    metavar="DIR|N",
    help="Your own videos or recordings, or N of the videos that the model was trained on here:"
    " half of them calibrate int8 and fp8, the rest verify; all verify fp16 and bf16.",
)
@click.option(
    "--captions",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Captions, of these videos if there are some, for models that read them.",
)
@click.option(
    "--method",
    type=click.Choice(["mse", "entropy", "percentile", "minmax"]),
    help="How int8 and fp8 choose ranges. Default: minmax; mse for CNNs.",
)
@click.option(
    "--target",
    type=click.Choice(["onnx", "openvino", "tensorrt", "tensorrt-rtx"]),
    default="onnx",
    show_default=True,
    help="Also compile the engine now, for TensorRT, or refuse what OpenVINO cannot run.",
)
@click.option(
    "--target-capability",
    metavar="X.Y",
    help="Compile for GPUs of this compute capability; this machine needs none. TensorRT-RTX only.",
)
@click.option(
    "--batch",
    metavar="MIN:OPT:MAX",
    help="Clips in a batch that the TensorRT engine takes: least, usual, most.",
)
@click.option(
    "--workspace",
    type=click.IntRange(1, 1 << 20),
    metavar="MIB",
    help="Scratch memory that a kernel of the engine may take.",
)
@click.option(
    "--level",
    type=click.IntRange(0, 5),
    help="How long to look for faster kernels; TensorRT's own choice is 3.",
)
@click.option(
    "--layer-names",
    is_flag=True,
    help="Keep all that `memcli engines show --layers` can tell of the engine.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR|FILE.memcli",
    help="Also pack each model into one file for another machine, with compiled engines beside it.",
)
@click.option(
    "--light",
    is_flag=True,
    help="Pack fp32 without the weights of public encoders; the other machine fetches them.",
)
@click.option(
    "--checkpoint",
    metavar="DIR|REPO[@REV]",
    help="captioner: the SmolVLM2 to export, a folder in the hub's format or a name on the hub.",
)
@click.option(
    "--size",
    type=click.Choice(["256m", "500m", "2.2b"]),
    help="captioner: which SmolVLM2 of the hub, where --checkpoint does not say. [default: 500m]",
)
@click.option("--offline", is_flag=True, help="Never use the network.")
def command(models: tuple[str, ...], folder: Path | None, offline: bool, **options: Any) -> None:
    """Make a verified engine of a trained model, or a faster precision of one.

    Without a precision, the model's latest training run becomes an fp32 graph, which is installed
    only if it gives the scores of the trained model. Other precisions are made from an installed
    model, several at once if asked; without MODEL, of all installed models. They are installed only
    if scores and embeddings stay within the tolerance of the model (`memcli models show`);
    otherwise nothing is changed. PARITY.md in the bundle has the numbers.

    \b
    Examples:
      memcli export early-fusion
      memcli export early-fusion --run ./runs/monday
      memcli export resmem early-fusion --fp16 --bf16
      memcli export resmem --int8 --calibration ./videos
      memcli export resmem --output resmem.memcli
      memcli export early-fusion --light --output early-fusion.memcli
      memcli export resmem --fp16 --target tensorrt-rtx --target-capability 8.9
      memcli export captioner --size 256m --int8
    """
    if "captioner" in models:
        from memcli.captioner_export import run_export

        run_export(models, {**options, "run": folder, "offline": offline})
        return
    for name in ("checkpoint", "size"):
        if options.pop(name) is not None:
            raise click.UsageError(f"--{name} is for: memcli export captioner")
    from memcli.compiling import EngineOptions, parse_batch
    from memcli.exporting import ExportRequest, check_request, parse_calibration

    asked: tuple[Precision, ...] = tuple(one for one in PRECISIONS if options.pop(one))
    batch = options.pop("batch")
    calibration = options.pop("calibration")
    options["calibration"] = None if calibration is None else parse_calibration(calibration)
    engine = EngineOptions(
        parse_batch(batch) if batch is not None else None,
        *(options.pop(name) for name in ("workspace", "level", "layer_names")),
    )
    request = ExportRequest(models, asked, run=folder, engine=engine, offline=offline, **options)
    check_request(request)
    _carry_out(request)


def _carry_out(request: ExportRequest) -> None:
    """Export model by model; what fails for one is told, and the others go on.

    A model's later steps and its packing are left out then: they would take its former state for
    the new one.
    """
    from memcli.errors import MemcliError
    from memcli.exporting import check_inputs, export_one, left_undone, models_of, pack_one
    from memcli.progress import say
    from memcli.text import printable

    names = models_of(request)
    check_inputs(request, names)
    failed: list[MemcliError] = []
    for name in names:
        what, undone = name, ""
        try:
            for step in request.steps:
                what = f"{name} {step}" if step else name
                undone = left_undone(request, name, step)
                for line in export_one(request, name, step, say):
                    click.echo(printable(line))
            what, undone = name, ""
            for line in pack_one(request, name, say):
                click.echo(printable(line))
        except MemcliError as error:
            if len(names) > 1 or len(request.steps) > 1:
                # The first is told in full at the end, as the error of the command.
                say(f"{what}: failed: {error if failed else error.what}")
                failed.append(error)
            if undone:
                say(undone)
            if not failed:
                raise
    if failed:
        raise failed[0]
