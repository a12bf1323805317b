"""What an engine is built for: ranges of shapes per model, and options of the build."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from memcli.errors import EngineError, UsageError
from memcli.spec import MAX_CAPTIONS, MAX_FRAMES, MAX_TOKENS

if TYPE_CHECKING:
    from memcli.spec import ModelSpec

BATCH, TIME, CAPTIONS, TOKENS = "batch", "time", "captions", "tokens"
_LIMITS = {TIME: MAX_FRAMES, CAPTIONS: MAX_CAPTIONS, TOKENS: MAX_TOKENS}
AXES = {"frames": (BATCH, TIME), "input_ids": (BATCH, CAPTIONS, TOKENS)}
AXES["attention_mask"] = AXES["input_ids"]
AXES |= dict.fromkeys(("eeg", "samples", "subject"), (BATCH,))
_FRAMES_PER_RUN = 256
"""Frames that go through an encoder at once: enough to fill a large GPU at 224 x 224."""
_CLIPS_PER_RUN = 64
_LOW_MEMORY_FRAMES = 32
_EPOCHS_PER_RUN = 256
"""Epochs of EEG: their network is small."""
_COMMON_CAPTIONS = 5
_COMMON_TOKENS = 32


@dataclass(frozen=True)
class Range:
    """Sizes of one axis: what it may be, and what the kernels are chosen for."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise UsageError(
                f"a profile of {self.min}, {self.opt} and {self.max}: "
                "least, usual and most must be in order, from 1"
            )

    def reaching(self, size: int) -> Range:
        """The same up to `size`."""
        return Range(min(self.min, size), self.opt, max(self.max, size))


@dataclass(frozen=True)
class Profile:
    """Ranges of the dynamic axes: `batch`, `time`, `captions`, `tokens`."""

    axes: Mapping[str, Range] = field(default_factory=dict)

    def to_dict(self) -> dict[str, list[int]]:
        """Plain values, ready for JSON."""
        return {name: [one.min, one.opt, one.max] for name, one in sorted(self.axes.items())}

    @classmethod
    def from_dict(cls, entry: Mapping[str, Sequence[int]]) -> Profile:
        """The inverse of `to_dict`. Raises ValueError, TypeError for what is none."""
        return cls({str(name): Range(*map(int, sizes)) for name, sizes in entry.items()})

    def shapes(
        self, name: str, shape: Sequence[int]
    ) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Least, usual and largest shape of the input `name`, whose dynamic axes are -1 in `shape`.

        Raises EngineError for an axis that the profile does not know.
        """
        names = AXES.get(name, ())
        ranges: list[Range] = []
        for index, size in enumerate(shape):
            if size >= 0:
                ranges.append(Range(size, size, size))
            elif index < len(names) and names[index] in self.axes:
                ranges.append(self.axes[names[index]])
            else:
                raise EngineError(f"axis {index} of the input {name} has no range in the profile")
        return (
            tuple(one.min for one in ranges),
            tuple(one.opt for one in ranges),
            tuple(one.max for one in ranges),
        )

    def widened(self, feeds: Mapping[str, Sequence[int]]) -> Profile | None:
        """A profile that also covers the shapes of `feeds`; None if this one does.

        The batch is left out: a large one is run in parts, a small one filled up.
        """
        axes = dict(self.axes)
        for name, shape in feeds.items():
            for axis, size in zip(AXES.get(name, ()), shape, strict=False):
                if axis != BATCH and axis in axes:
                    axes[axis] = axes[axis].reaching(size)
        return None if axes == dict(self.axes) else Profile(axes)

    def with_ranges(self, ranges: Mapping[str, tuple[int, int, int]]) -> Profile:
        """The same with some ranges given by the user. Raises UsageError."""
        for name in ranges:
            if name not in self.axes:
                known = ", ".join(sorted(self.axes))
                raise UsageError(f"the model has no axis {name!r}", next_step=f"It has: {known}")
        given = {name: Range(*sizes) for name, sizes in ranges.items()}
        for name, one in given.items():
            if one.max > _LIMITS.get(name, one.max):
                raise UsageError(f"{name} is {_LIMITS[name]} at most, not {one.max}")
        return replace(self, axes={**self.axes, **given})


@dataclass(frozen=True)
class BuildOptions:
    """What decides about a plan besides graph, GPU and profile."""

    workspace_bytes: int | None = None
    """Scratch memory that a kernel may take; None for what the GPU has."""
    level: int = 3
    """`builder_optimization_level`, 0 to 5: how long to look for faster kernels. 3 is TensorRT's
    own choice."""
    low_memory: bool = False
    """For devices of 8 GB, whose memory the CPU shares: fewer kernels tried, none of them with
    much scratch memory, and no streams beside the one."""
    layer_names: bool = False
    """Keep what `engines show --layers` tells; plans grow a little."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


LOW_MEMORY = BuildOptions(workspace_bytes=512 << 20, level=2, low_memory=True)


def usual(
    spec: ModelSpec, *, small: bool, options: BuildOptions | None = None
) -> tuple[Profile, BuildOptions]:
    """Profile and options of a model, for a device of 8 GB (`small`) or a larger one.

    What `memcli export` builds is what the first use would build: both ask here.
    """
    options = options or (LOW_MEMORY if small else BuildOptions())
    return profile_of(spec, low_memory=small or options.low_memory), options


def profile_of(spec: ModelSpec, *, low_memory: bool = False) -> Profile:
    """The usual profile of a model: its own number of frames, batches that fill the GPU.

    `low_memory` is for devices of 8 GB: batches of a few clips.
    """
    if spec.eeg is not None:
        most = _CLIPS_PER_RUN if low_memory else _EPOCHS_PER_RUN
        return Profile({BATCH: Range(1, _CLIPS_PER_RUN, most)})
    frames = spec.prep.frames if spec.prep is not None else 1
    per_run = _LOW_MEMORY_FRAMES if low_memory else _FRAMES_PER_RUN
    most = max(1, min(_CLIPS_PER_RUN, per_run // frames))
    axes = {BATCH: Range(1, most, most)}
    if spec.prep is not None:
        axes[TIME] = Range(1, frames, frames)
    if spec.text is not None:
        tokens = spec.text.max_tokens
        axes[CAPTIONS] = Range(1, 1, _COMMON_CAPTIONS)
        axes[TOKENS] = Range(1, min(_COMMON_TOKENS, tokens), tokens)
    return Profile(axes)
