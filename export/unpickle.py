"""A pickle machine that can only describe tensors.

It interprets the opcodes that `torch.save` emits for a state dict (protocols 1 to 5) and knows
five globals, none of which it calls: they become the plain values `Storage` and `Tensor`. Any
other opcode or global is refused by name. The standard library's `pickle.Unpickler` with an allow
list in `find_class` would not do: a few bytes make its C code allocate and touch gigabytes
(LONG_BINPUT's memo index), and hashing a deeply nested tuple overflows its stack.

Source: the opcodes' meaning is documented in the standard library's `pickletools`.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from memcli.errors import ModelError

MAX_OPCODES = 4_000_000
"""A few seconds of work; a state dict takes about 30 per tensor."""

MAX_DIMS = 32
"""What every numpy version can hold."""

_INT64 = 1 << 63
_STORAGE_TYPE = re.compile(r"torch\.([A-Z][A-Za-z0-9]*Storage)")


@dataclass(frozen=True)
class Storage:
    """A flat buffer in the archive: `numel` elements of `kind` (such as "FloatStorage")."""

    key: str
    kind: str
    numel: int


@dataclass(frozen=True)
class Tensor:
    """A strided view of a storage; offset and strides in elements. In bounds, as checked here."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class _Global:
    name: str


class _Mark:
    """The stack's MARK."""


_ORDERED_DICT = _Global("collections.OrderedDict")
_REBUILD_TENSOR = _Global("torch._utils._rebuild_tensor_v2")
_REBUILD_PARAMETER = _Global("torch._utils._rebuild_parameter")
_ALLOWED = {g.name: g for g in (_ORDERED_DICT, _REBUILD_TENSOR, _REBUILD_PARAMETER)}

_PUSH_ARGUMENT = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
_PUSH_VALUE: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "MARK": _Mark,
}
_TUPLE_SIZES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_tensors(pickled: bytes) -> dict[str, Tensor]:
    """The tensors of a pickled state dict, by name, in its order.

    Raises ModelError for anything but a flat mapping of names to tensors, naming the first
    forbidden global or opcode. Time is bounded by MAX_OPCODES, memory by a small multiple of
    `len(pickled)`. No value is ever printed, compared deeply or hashed unless it is a plain string
    or number: a few bytes can nest or share values so that this would take for ever.
    """
    machine = _Machine()
    try:
        value = machine.run(pickled)
    # What pickletools raises on malformed bytes, and what pops of an empty stack raise here.
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise ModelError(f"the pickle inside is damaged: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"holds a {type(value).__name__.strip('_')}, not a state dict")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            shown = repr(name[:80]) if isinstance(name, str) else "without a name"
            raise ModelError(f"entry {shown} of the state dict is not a named tensor")
    return value


class _Machine:
    """Stack and memo of one run."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, pickled: bytes) -> object:
        """Interpret up to STOP; return the value on top of the stack."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
            if count >= MAX_OPCODES:
                raise ModelError(f"the pickle inside has more than {MAX_OPCODES} opcodes")
            if opcode.name == "STOP":
                return self.stack.pop()
            self.step(opcode.name, argument)
        raise ModelError("the pickle inside has no end")

    def step(self, name: str, argument: Any) -> None:
        """Carry out one opcode."""
        stack, memo = self.stack, self.memo
        if name in _PUSH_ARGUMENT:
            stack.append(argument)
        elif name in _PUSH_VALUE:
            stack.append(_PUSH_VALUE[name]())
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[argument])
        elif name in _TUPLE_SIZES:
            stack.append(tuple(self.pop_count(_TUPLE_SIZES[name])))
        elif name == "TUPLE":
            stack.append(tuple(self.pop_to_mark()))
        elif name == "LIST":
            stack.append(self.pop_to_mark())
        elif name == "DICT":
            items = self.pop_to_mark()
            stack.append({})
            self.set_items(items)
        elif name in ("APPEND", "APPENDS"):
            items = self.pop_count(1) if name == "APPEND" else self.pop_to_mark()
            self.top(list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            self.set_items(self.pop_count(2) if name == "SETITEM" else self.pop_to_mark())
        elif name == "GLOBAL":
            stack.append(_resolve(argument.replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            stack.append(_resolve(".".join(self.pop_count(2))))
        elif name == "REDUCE":
            function, arguments = self.pop_count(2)
            stack.append(_reduce(function, arguments))
        elif name == "BUILD":
            self.pop_count(1)  # attributes of an OrderedDict (`_metadata`): versions, unused
            self.top(dict)
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif name == "INST":
            raise _forbidden(argument.replace(" ", ".", 1))
        elif name not in ("PROTO", "FRAME"):
            raise ModelError(f"the pickle inside uses the opcode {name}, which no state dict needs")

    def pop_count(self, count: int) -> list[Any]:
        """The top `count` values, lowest first."""
        if len(self.stack) < count:
            raise ValueError("stack underflow")
        values = self.stack[-count:]
        del self.stack[-count:]
        if any(isinstance(value, _Mark) for value in values):
            raise ValueError("MARK used as a value")
        return values

    def pop_to_mark(self) -> list[Any]:
        """The values above the last MARK, which goes too."""
        for depth, value in enumerate(reversed(self.stack)):
            if isinstance(value, _Mark):
                values = self.stack[len(self.stack) - depth :]
                del self.stack[len(self.stack) - depth - 1 :]
                return values
        raise ValueError("no MARK on the stack")

    def top(self, kind: type) -> Any:
        """The top value, which must be a `kind`."""
        if not isinstance(self.stack[-1], kind):
            raise ValueError(f"a {kind.__name__} is expected on the stack")
        return self.stack[-1]

    def set_items(self, items: list[Any]) -> None:
        """Put keys and values, alternating, into the dict on top of the stack."""
        if len(items) % 2:
            raise ValueError("a key without value")
        target = self.top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Only keys whose hash costs nothing: a nested tuple's hash can overflow the C stack.
            if not isinstance(key, (str, int)):
                raise ValueError(f"a {type(key).__name__} as key")
            target[key] = value


def _forbidden(name: str) -> ModelError:
    return ModelError(
        f"the checkpoint asks for {name!r:.100}: refused, since loading it could run code",
        next_step="Only state dicts of tensors are read (torch.save(model.state_dict(), ...)).",
    )


def _resolve(name: str) -> _Global:
    """The allowed global `name`."""
    if name in _ALLOWED:
        return _ALLOWED[name]
    if _STORAGE_TYPE.fullmatch(name):
        return _Global(name)
    raise _forbidden(name)


def _reduce(function: object, arguments: object) -> object:
    """What `function(*arguments)` stands for. Nothing is called."""
    if not isinstance(arguments, tuple):
        raise ValueError("REDUCE without a tuple of arguments")
    if function == _ORDERED_DICT and arguments == ():
        return {}
    if function == _REBUILD_TENSOR and len(arguments) in (6, 7):
        return _tensor(*arguments[:4])
    if function == _REBUILD_PARAMETER and isinstance(arguments[0], Tensor):
        return arguments[0]
    what = function.name[:80] if isinstance(function, _Global) else type(function).__name__
    raise ValueError(f"REDUCE of {what} with {len(arguments)} arguments")


def _storage(identifier: object) -> Storage:
    """The storage that a persistent id describes: ("storage", type, key, device, numel)."""
    match identifier:
        case ("storage", _Global(name=kind), str(key), str(), int(numel)) if 0 <= numel < _INT64:
            found = _STORAGE_TYPE.fullmatch(kind)
            if found:
                return Storage(key, found[1], numel)
    raise ValueError("not the id of a storage")


def _tensor(storage: object, offset: object, shape: object, stride: object) -> Tensor:
    """A tensor whose every element lies inside its storage.

    A view may not have more elements than its storage: strides of zero or overlapping ones would
    let a few bytes claim terabytes.
    """
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without storage")
    shape, stride = _sizes(shape), _sizes(stride)
    if len(shape) != len(stride) or len(shape) > MAX_DIMS:
        raise ValueError(f"{len(shape)} dimensions with {len(stride)} strides")
    (offset,) = _sizes((offset,))
    numel = 1
    for size in shape:
        numel *= size
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if numel > storage.numel or (numel and last >= storage.numel) or offset > storage.numel:
        raise ModelError(
            f"a tensor of shape {shape!r:.80} does not fit its storage of {storage.numel} elements"
        )
    if numel == 0 and max(shape) > 1 << 40:
        raise ValueError("absurd shape of an empty tensor")
    return Tensor(storage, offset, shape, stride)


def _sizes(values: object) -> tuple[int, ...]:
    """A tuple of non-negative integers that fit int64."""
    if not isinstance(values, tuple):
        raise ValueError("sizes that are not a tuple")
    for value in values:
        if type(value) is not int or not 0 <= value < _INT64:
            raise ValueError("a size, stride or offset that is none")
    return values
