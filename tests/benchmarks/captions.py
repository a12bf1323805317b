"""Captions in batches against one by one, and a step of the decoder against transformers'.

    python -m tests.benchmarks.captions                      # the tiny checkpoint of the tests
    python -m tests.benchmarks.captions --real-size          # SmolVLM2-256M's sizes, random weights
    python -m tests.benchmarks.captions --real-size --precision int8 --frames 1

Random weights take as long as trained ones, and never stop: every caption has `--tokens` tokens.
Checkpoint and captioner are kept in `--work` for the next call. Whole captions: the best of
`--repeat`. A step: the quickest tenth of `--tokens` steps, which other work on the machine hardly
touches.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memcli.captioning.captioner import Captioner
from memcli.captioning.generate import GenerationRules, generate
from memcli.export.captioner import export_captioner
from memcli.export.captioner_checkpoint import locate_captioner
from memcli.export.captioner_gate import frame_sets
from tests.tiny_smolvlm import Shape, make_real_size, make_smolvlm


def main() -> None:
    """Command line: see the top of the file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--real-size", action="store_true")
    parser.add_argument("--precision", choices=["fp32", "int8"], default="fp32")
    parser.add_argument("--videos", type=int, default=16)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-torch", action="store_true", help="leave transformers out")
    parser.add_argument("--no-whole", action="store_true", help="leave whole captions out")
    parser.add_argument("--work", type=Path, default=Path("/tmp/memcli-captions"))
    options = parser.parse_args()
    checkpoint = options.work / ("real" if options.real_size else "tiny")
    if not (checkpoint / "config.json").is_file():
        make = make_real_size if options.real_size else lambda f: make_smolvlm(f, Shape(stops=0))
        make(checkpoint)
    target = options.work / f"{checkpoint.name}-{options.precision}"
    if not target.is_dir():
        found = locate_captioner(str(checkpoint))
        export_captioner(found, precision=options.precision, frames=1, target=target, report=print)
    with Captioner.open(target, threads=options.threads, check=False) as captioner:
        rules = GenerationRules(options.tokens, (), end_loops=False)
        object.__setattr__(captioner.bundle, "generation", rules)
        figures: dict[str, Any] = {"parity": dict(captioner.bundle.parity)}
        clips = [frame_sets(options.frames, seed)[0] for seed in range(options.videos)]
        if not options.no_whole:
            figures["captions"] = _whole(captioner, clips, options.repeat)
        figures["generation"] = _generation(captioner, clips[0], options)
    if not options.no_torch:
        figures["transformers"] = _transformers(checkpoint, figures["generation"], options)
    print(json.dumps(figures, indent=2))


def _best(work: Callable[[], Any], repeat: int) -> float:
    """Seconds of the quickest run."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def _whole(captioner: Captioner, clips: list[Any], repeat: int) -> dict[str, float]:
    """Frames to texts: preparing, vision tower, prompt, generation."""
    alone = _best(lambda: [captioner.caption([clip]) for clip in clips], repeat)
    together = _best(lambda: captioner.caption(clips), repeat)
    return {"one_by_one_s": alone, "batched_s": together, "times": alone / together}


class _Timed:
    """A decoder that notes when each call ended."""

    def __init__(self, decoder: Any):
        self._decoder = decoder
        self.times = [time.perf_counter()]

    def start(self, embeddings: Any) -> Any:
        return self._noted(self._decoder.start(embeddings))

    def step(self, ids: Any) -> Any:
        return self._noted(self._decoder.step(ids))

    def keep(self, rows: Any) -> bool:
        return bool(self._decoder.keep(rows))

    def _noted(self, logits: Any) -> Any:
        self.times.append(time.perf_counter())
        return logits


def _step_ms(times: list[float]) -> float:
    """Of the times at which a text was started, the prompt read, and each token taken."""
    steps: npt.NDArray[np.float64] = np.diff(times[1:])
    return float(np.quantile(steps, 0.1)) * 1000


def _generation(captioner: Captioner, clip: Any, options: argparse.Namespace) -> dict[str, float]:
    """The decoder alone, with the features of one video for all."""
    start = time.perf_counter()
    prompt = captioner._read(clip)
    found = {
        "prompt_tokens": float(len(prompt.ids)),
        "frames_of_one_video_s": time.perf_counter() - start,
    }
    rules = GenerationRules(options.tokens, (), end_loops=False)
    for count in (1, options.videos):
        prompts = [prompt] * count
        decoder = _Timed(captioner._sessions.decoder())
        generate(decoder, captioner._embedded(prompts), rules)
        found[f"prompts_s_of_{count}"] = decoder.times[1] - decoder.times[0]
        found[f"step_ms_of_{count}"] = _step_ms(decoder.times)
    steps = found["step_ms_of_1"] * options.videos / found[f"step_ms_of_{options.videos}"]
    found["steps_batched_times"] = steps
    return found


def _transformers(
    checkpoint: Path, ours: dict[str, float], options: argparse.Namespace
) -> dict[str, float]:
    """Greedy `generate` with its cache on as many prompt tokens, in float32."""
    import torch
    import transformers

    torch.set_num_threads(options.threads)
    model = transformers.AutoModelForImageTextToText.from_pretrained(
        str(checkpoint), torch_dtype=torch.float32
    ).eval()
    model.generation_config.eos_token_id = None
    found = {}
    for count in (1, options.videos):
        ids = torch.full((count, int(ours["prompt_tokens"])), 50)
        times = [time.perf_counter()]

        def note(*_: Any, times: list[float] = times, **__: Any) -> Any:
            times.append(time.perf_counter())
            return torch.zeros(ids.shape[0], dtype=torch.bool)  # noqa: B023

        with torch.inference_mode():
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=options.tokens,
                stopping_criteria=transformers.StoppingCriteriaList([note]),
            )
        found[f"step_ms_of_{count}"] = _step_ms(times)
        found[f"step_of_{count}_times"] = _step_ms(times) / ours[f"step_ms_of_{count}"]
    return found


if __name__ == "__main__":
    main()
