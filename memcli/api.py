"""The Python API: `from memcli import score`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from memcli.inputs import collect

if TYPE_CHECKING:
    from memcli.captions import Captions
    from memcli.results import Row


def score(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    model: str | None = None,
    captions: Captions | Mapping[str, str | Sequence[str]] | str | os.PathLike[str] | None = None,
    report: Callable[[str], None] | None = None,
    **settings: Any,
) -> Iterator[Row]:
    """Score videos: one row each, in the order in which they are finished.

    `paths` are files, folders (searched recursively), globs or lists, as for `memcli score`;
    `model` is the name of a model or the folder of a bundle (default: the offline default, which
    is fetched once). `settings` are the fields of `memcli.scoring.ScoreSettings`, e.g.
    `frames=16, curve=True, device="cpu", precision="fp32"`. `captions`, for models that read them,
    is a file as for `--captions`, or a mapping from a path, file name or name without ending to
    one caption or several; without, they are taken from beside the videos or made by a captioner
    (`caption_mode`, `captioner`). `report` is told in words what happens
    before the first row. Nothing is written but the cache.

    A video that cannot be scored yields a row with `status == "failed"` and the reason; errors that
    concern all of them (UsageError, ModelError, EngineError, DeviceError) are raised, all of them
    subclasses of MemcliError.
    """
    from memcli.captions import captions_from
    from memcli.models import DEFAULT_MODEL
    from memcli.opening import open_scorer
    from memcli.scoring import ScoreSettings

    listed = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    sources = collect(listed)
    if captions is not None:
        settings["captions"] = captions_from(captions)
    wanted = ScoreSettings(model=model or DEFAULT_MODEL, **settings)
    with (
        open_scorer(wanted, report or _silent, [source.path for source in sources.items]) as scorer,
        closing(scorer.score(sources.items)) as rows,
    ):
        decoding = scorer.choose_decoder(lambda: [source.path for source in sources.items])
        (report or _silent)(f"decoder: {decoding.name} ({decoding.reason})")
        for _, _, row in rows:
            yield row


def _silent(_: str) -> None:
    pass
