"""The registry: every model memcli knows, one small file each. Standard library only."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType

from memcli.errors import ModelError
from memcli.models import clip_gru, early_fusion, eeg, fclip
from memcli.models.resmem import RESMEM
from memcli.spec import ModelSpec

MODELS: Mapping[str, ModelSpec] = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            RESMEM,
            *early_fusion.SPECS,
            *fclip.SPECS,
            *clip_gru.SPECS,
            *eeg.SPECS,
        )
    }
)

DEFAULT_MODEL = RESMEM.name


def get_model(name: str) -> ModelSpec:
    """The registry entry called `name`.

    Raises ModelError with the closest name and the list of all if there is none.
    """
    if name in MODELS:
        return MODELS[name]
    close = difflib.get_close_matches(name.lower(), MODELS, n=1)
    raise ModelError(
        f"there is no model called {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""),
        next_step=f"Models: {', '.join(MODELS)}",
    )
