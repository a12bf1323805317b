"""Options of `memcli train` for EEG models, and of `memcli dataset check` for their data."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from memcli.training.eeg_settings import EegSettings

F = TypeVar("F", bound=Callable[..., Any])
EEG_ONLY = (
    *("pretext", "ensemble", "baselines", "subject_conditioning", "channels", "high_pass"),
    *("low_pass", "average_reference", "event", "onsets", "recognised", "on_missing"),
    "pretext_epochs",
)
"""Their names."""


_READING = (
    click.option(
        "--channels", metavar="A,B,...", help="EEG: these, instead of all that all recordings have."
    ),
    click.option("--event", metavar="REGEX|ID", help="EEG: events that epochs begin at."),
    click.option(
        "--onsets",
        type=click.Path(exists=True, dir_okay=False),
        metavar="CSV",
        help="EEG: a table of onsets and labels instead of events.",
    ),
    click.option("--recognised", metavar="REGEX", help="EEG: events whose label is 1; others 0."),
    click.option(
        "--on-missing",
        type=click.Choice(["fail", "interpolate"]),
        default="fail",
        help="EEG: channels that a recording lacks.",
    ),
)
"""How labelled recordings are read; `memcli dataset check` has them, too."""


def eeg_reading_options(function: F) -> F:
    """All of `_READING`."""
    for option in reversed(_READING):
        function = option(function)
    return function


def eeg_options(function: F) -> F:
    """All of `EEG_ONLY`."""
    for option in reversed(
        [
            click.option(
                "--pretext",
                type=click.Choice(["none", "tcl", "tcl-regress", "tcl-regress-exp"]),
                default="none",
                help="EEG: self-supervised training first.",
            ),
            click.option("--ensemble", is_flag=True, help="EEG: the folds' models are the model."),
            click.option(
                "--baseline",
                "baselines",
                multiple=True,
                type=click.Choice(["eegnet", "shallow", "deep4", "riemann"]),
                help="EEG: measure this peer in the same folds, too.",
            ),
            click.option(
                "--subject-conditioning", is_flag=True, help="EEG: learn what differs by subject."
            ),
            eeg_reading_options,
            click.option(
                "--high-pass", type=click.FloatRange(0, min_open=True), metavar="HZ", help="EEG."
            ),
            click.option(
                "--low-pass", type=click.FloatRange(0, min_open=True), metavar="HZ", help="EEG."
            ),
            click.option(
                "--average-reference", is_flag=True, help="EEG: less the mean of all channels."
            ),
            click.option(
                "--pretext-epochs",
                type=click.IntRange(min=1),
                metavar="N",
                help="EEG: at most this many of the self-supervised training.",
            ),
        ]
    ):
        function = option(function)
    return function


def channel_names(text: str | None) -> tuple[str, ...]:
    """The names in a list with commas."""
    return tuple(filter(None, map(str.strip, (text or "").split(","))))


def eeg_settings(model: str, given: dict[str, Any]) -> EegSettings:
    """EegSettings of a command's parameters, `options` as a dict."""
    from memcli.training.eeg_settings import EegSettings

    same = (
        *("pretext", "ensemble", "subject_conditioning", "average_reference", "event", "onsets"),
        *("recognised", "on_missing", "folds", "epochs", "pretext_epochs", "batch_size"),
        *("learning_rate", "options", "seed"),
    )
    return EegSettings(
        model,
        str(given["data"].absolute()),
        split=given["split"] or "epochs",
        baselines=tuple(dict.fromkeys(given["baselines"])),
        channels=channel_names(given["channels"]),
        high_pass_hz=given["high_pass"],
        low_pass_hz=given["low_pass"],
        **{name: given[name] for name in same},
    )
