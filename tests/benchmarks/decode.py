"""How fast 16 frames are had from real files, side by side with other readers.

    python -m tests.benchmarks.decode DIR [--json] [--repeats N]

DIR holds folders of videos (normal, portrait_square, interlaced, vfr_or_odd_pts), or videos.
Every reader gets two workers of one thread each. Per file both workers read the same file at the
same time; readers take turns, so that a busy machine slows all alike; the figure is the median of
the repetitions, as time on the clock and as processor time. Where other work competes for the
processors only the latter compares: a reader that starts threads of its own, as decord2 does
even with num_threads=1, then gets a larger share of the machine. "pool" is the whole set handed
to the two workers. Ours are the exact frames by
timestamps and are compared, bit for bit, with a full decode; the others take frames by number,
which costs them less.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np

from memcli.spec import FramePrep
from memcli.video import read_clip
from tests.media import full_decode, make_video

SIDE = 256
COUNT = 16
WORKERS = 2
FOLDERS = ("normal", "portrait_square", "interlaced", "vfr_or_odd_pts")
PREP = FramePrep(COUNT, SIDE, SIDE, SIDE, SIDE)
Reader = Callable[[str], Any]


def ours(path: str) -> Any:
    """Exact sampling."""
    return read_clip(path, PREP).frames


def ours_keyframe(path: str) -> Any:
    """Key frame sampling."""
    return read_clip(path, PREP, sampling="keyframe").frames


def pyav(path: str) -> Any:
    """Everything decoded, the wanted frames scaled by PyAV's defaults."""
    wanted = _numbers(_count_packets(path))
    frames = {}
    with av.open(path) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                scaled = frame.reformat(width=SIDE, height=SIDE, format="rgb24", threads=1)
                frames[number] = scaled.to_ndarray()
            if number >= max(wanted):
                break
    return np.stack([frames[number] for number in wanted])


def decord(path: str) -> Any:
    """decord2: its own index, seeking and scaling."""
    import decord as library

    reader = library.VideoReader(path, width=SIDE, height=SIDE, num_threads=1)
    numbers = [int((i + 0.5) * len(reader) / COUNT) for i in range(COUNT)]
    return reader.get_batch(numbers).asnumpy()


def opencv(path: str) -> Any:
    """OpenCV: grab all up to the last wanted, retrieve and scale the wanted."""
    import cv2

    cv2.setNumThreads(1)
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    wanted = _numbers(total if total > 0 else _count_packets(path))
    frames = {}
    for number in range(max(wanted) + 1):
        if not capture.grab():
            break
        if number in wanted:
            _, image = capture.retrieve()
            image = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
            frames[number] = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    capture.release()
    if any(number not in frames for number in wanted):
        raise ValueError(f"only {len(frames)} of {COUNT} frames came, of {total} announced")
    return np.stack([frames[number] for number in wanted])


def peers() -> tuple[dict[str, Reader], list[str]]:
    """The readers that are installed, and the names of those that are not."""
    known: dict[str, tuple[str, Reader]] = {
        "decord2": ("decord", decord),
        "OpenCV": ("cv2", opencv),
        "PyAV": ("av", pyav),
    }
    found = {n: reader for n, (module, reader) in known.items() if importlib.util.find_spec(module)}
    return found, [name for name in known if name not in found]


def find_videos(folder: Path) -> list[Path]:
    """The files of the known folders of `folder`, or of `folder` itself."""
    inside = [folder / name for name in FOLDERS if (folder / name).is_dir()] or [folder]
    return sorted(f for place in inside for f in place.iterdir() if f.is_file())


def measure(videos: list[Path], readers: dict[str, Reader], repeats: int) -> dict[str, Any]:
    """Median milliseconds per file (both workers at once) and of the whole set, per reader.

    Under "clock" and "cpu" each: rows, total, pool, ratios (per other reader how many times as
    long it takes, over the files both read), worst (over files, the fastest other against ours).
    A file that a reader cannot read has None there and is left out of that reader's sums.
    """
    names = list(readers)
    able: dict[str, list[Path]] = {name: [] for name in names}
    samples: dict[tuple[Path | None, str], list[tuple[float, float]]] = {}
    with ThreadPoolExecutor(WORKERS) as pool:
        for video in videos:  # caches warm, lazy imports done
            for name in names:
                if _can_read(pool, name, readers[name], video):
                    able[name].append(video)
        for repeat in range(repeats):
            turn = names[repeat % len(names) :] + names[: repeat % len(names)]
            for video in videos:
                for name in turn:
                    if video in able[name]:
                        taken = _timed(pool, readers[name], [video] * WORKERS)
                        samples.setdefault((video, name), []).append(taken)
            for name in turn:
                taken = _timed(pool, readers[name], able[name])
                samples.setdefault((None, name), []).append(taken)
    return {
        "clock": _summary(videos, names, {k: [t[0] for t in v] for k, v in samples.items()}),
        "cpu": _summary(videos, names, {k: [t[1] for t in v] for k, v in samples.items()}),
    }


def _summary(
    videos: list[Path], names: list[str], samples: dict[tuple[Path | None, str], list[float]]
) -> dict[str, Any]:
    median = {key: statistics.median(values) for key, values in samples.items()}
    rows: list[dict[str, Any]] = [
        {"file": video.name} | {name: median.get((video, name)) for name in names}
        for video in videos
    ]
    total = {n: sum(row[n] for row in rows if row[n] is not None) for n in names}
    return {
        "rows": rows,
        "total": total,
        "pool": {n: median[None, n] for n in names},
        "ratios": {
            n: total[n] / sum(row["ours"] for row in rows if row[n] is not None)
            for n in names
            if n != "ours" and total[n]
        },
        "worst": min(_ratio(row) for row in rows),
    }


def measure_keyframes(repeats: int) -> dict[str, float]:
    """Both samplings on a made file of 40 seconds with 40 key frames, in milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        path = make_video(
            Path(folder) / "long.mp4",
            frames=1000,
            width=640,
            height=360,
            options={"g": "25", "preset": "veryfast"},
        )
        taken: dict[str, list[float]] = {"exact": [], "keyframe": []}
        for _ in range(repeats):
            for name, reader in (("exact", ours), ("keyframe", ours_keyframe)):
                begin = time.perf_counter()
                reader(str(path))
                taken[name].append((time.perf_counter() - begin) * 1e3)
    return {name: statistics.median(values) for name, values in taken.items()}


def different_from_full_decode(videos: list[Path]) -> list[str]:
    """Names of files where a frame differs from that of a full decode in any bit."""
    return [
        video.name
        for video in videos
        if not np.array_equal(full_decode(video, PREP, COUNT)[0], ours(str(video)))
    ]


def report(result: dict[str, Any], missing: list[str]) -> str:
    """The result as Markdown."""
    lines = [f"{COUNT} frames of {SIDE} × {SIDE}; {WORKERS} workers of one thread each."]
    for kind, title in (("clock", "Milliseconds on the clock"), ("cpu", "Processor milliseconds")):
        part = result[kind]
        total = part["total"]
        lines += [
            "",
            f"| {title} | " + " | ".join(total) + " | fastest other / ours |",
            "| --- |" + " ---: |" * (len(total) + 1),
        ]
        for row in part["rows"]:
            figures = " | ".join("fails" if row[n] is None else f"{row[n]:.1f}" for n in total)
            lines.append(f"| {row['file']} | {figures} | {_ratio(row):.2f} |")
        for name in ("total", "pool"):
            figures = " | ".join(f"{value:.1f}" for value in part[name].values())
            lines.append(f"| **{name}** | {figures} | |")
        against = ", ".join(f"{name} {ratio:.2f}" for name, ratio in part["ratios"].items())
        lines += ["", f"Times as fast as, over the files both read: {against}."]
        lines += [f"Slowest file against the fastest other: {part['worst']:.2f}."]
    lines.append("")
    different = result["different"]
    lines += [
        "Frames: identical to a full decode in every file."
        if not different
        else f"Frames DIFFER from a full decode in: {', '.join(different)}."
    ]
    key = result["keyframe"]
    lines += [
        f"Key frame sampling, 40 s file with 40 key frames: {key['keyframe']:.1f} ms against "
        f"{key['exact']:.1f} ms exact, {key['exact'] / key['keyframe']:.1f} times as fast."
    ]
    lines += [f"Not installed, left out: {', '.join(missing)}."] if missing else []
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run and print; 1 if any frame differs from a full decode."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    videos = find_videos(options.folder)
    others, missing = peers()
    result = measure(videos, {"ours": ours, **others}, options.repeats)
    result["different"] = different_from_full_decode(videos)
    result["keyframe"] = measure_keyframes(options.repeats)
    result["missing"] = missing
    print(json.dumps(result, indent=1) if options.json else report(result, missing))
    return 1 if result["different"] else 0


def _ratio(row: dict[str, Any]) -> float:
    others = [value for name, value in row.items() if name not in ("file", "ours")]
    return float(min(value for value in others if value is not None) / row["ours"])


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _can_read(pool: ThreadPoolExecutor, name: str, reader: Reader, video: Path) -> bool:
    try:
        _timed(pool, reader, [video])
    except Exception as error:  # every reader has errors of its own
        if name == "ours":
            raise
        print(f"{name} cannot read {video.name}: {_line(error)}", file=sys.stderr)
        return False
    return True


def _timed(pool: ThreadPoolExecutor, reader: Reader, videos: list[Path]) -> tuple[float, float]:
    begin, cpu = time.perf_counter(), time.process_time()
    list(pool.map(reader, [str(video) for video in videos]))
    return (time.perf_counter() - begin) * 1e3, (time.process_time() - cpu) * 1e3


def _numbers(total: int) -> list[int]:
    return [int((i + 0.5) * total / COUNT) for i in range(COUNT)]


def _count_packets(path: str) -> int:
    with av.open(path) as container:
        return sum(1 for packet in container.demux(video=0) if packet.size)


if __name__ == "__main__":
    sys.exit(main())
