"""What `memcli models show` says of a captioner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from memcli.captioning.bundle import CaptionerBundle, captioners_dir, read_captioner
from memcli.captioning.choice import bundle_bytes
from memcli.captioning.store import is_captioner, is_installed


def find_captioner(name: str) -> CaptionerBundle | None:
    """The installed captioner of a name, or that of a folder; None if it is neither.

    Raises ModelError if it is damaged. The hashes of its files are not compared.
    """
    if is_installed(name):
        return read_captioner(captioners_dir() / name, check=False)
    folder = Path(name).expanduser()
    return read_captioner(folder, check=False) if "/" in name and is_captioner(folder) else None


def describe(bundle: CaptionerBundle) -> list[str]:
    """A captioner in lines for people; its text is foreign, and to be made printable."""
    revision = f", revision {bundle.revision}" if bundle.revision else ""
    return [
        f"{bundle.name}: a captioner",
        f"hash        {bundle.hash}",
        f"checkpoint  {bundle.repository}{revision}",
        f"licence     {bundle.licence}",
        f"precision   {bundle.precision}",
        f"question    {bundle.question}",
        f"sees        {bundle.frames} frames, in images of {bundle.images.side} pixels"
        + (", cut into tiles" if bundle.images.splitting else ""),
        f"says        at most {bundle.generation.max_new_tokens} tokens",
        *(f"gate        {name}: {_short(value)}" for name, value in bundle.parity.items()),
        f"made by     {', '.join(f'{name} {value}' for name, value in bundle.made_by.items())}",
        f"installed   {bundle.folder} ({bundle_bytes(bundle) / 1e6:.0f} MB)",
    ]


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
