"""A model of videos, opened on an engine: what `memcli score` and the Python API score with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from memcli.store import ensure

if TYPE_CHECKING:
    from memcli.scoring import Scorer, ScoreSettings

Report = Callable[[str], None]


def open_scorer(
    settings: ScoreSettings, report: Report, videos: Sequence[str] = (), *, whole: bool = True
) -> Scorer:
    """Open a model on the engine that fits `settings`, fetching the model if need be.

    `videos` are those to be scored; whether captions can be had for them, and the decoder that was
    asked for, is known before an engine is opened. `whole` of False: they are one part of many.
    Raises UsageError, ModelError, EngineError, DeviceError or MissingDependencyError.
    """
    from memcli.decoding import check_decoder
    from memcli.engines.candidates import TENSORRT
    from memcli.engines.loading import installed_runtimes, installed_tensorrt, no_runtime_error
    from memcli.engines.select import open_engine
    from memcli.kinds import require_videos_by_name
    from memcli.scoring import Scorer, check_settings
    from memcli.scoring_captions import check_captions, check_without_captions, maker_for

    require_videos_by_name(settings.model)
    if not installed_runtimes() and not any(map(installed_tensorrt, TENSORRT)):
        raise no_runtime_error()  # before a model is fetched that nothing here could run
    bundle = ensure(settings.model, offline=settings.offline, report=report)
    check_settings(settings, bundle.spec)
    if bundle.prep is not None:
        check_decoder(settings.decoder, settings.sampling, device=settings.device)
    check_captions(settings, bundle.spec, videos, whole=whole)
    selection = open_engine(
        bundle,
        engine=settings.engine,
        device=settings.device,
        precision=settings.precision,
        threads=settings.threads,
        report=report,
    )
    try:
        maker = maker_for(settings, bundle.spec, selection.engine.describe().device, report)
        scorer = Scorer(settings, bundle, selection, maker)
        check_without_captions(scorer)
        return scorer
    except BaseException:
        selection.engine.close()
        raise
