"""Options of heads: what is listed, shown and documented is what the heads take."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from memcli.app import run as memcli
from memcli.errors import ModelError
from memcli.models import MODELS, get_model
from memcli.models.head_options import HEAD_OPTIONS, HeadOption, options_of
from memcli.spec import HeadSpec
from memcli.training.plan import check_options

DOCS = (Path(__file__).parent.parent / "docs" / "models.md").read_text(encoding="utf-8")
ALL = [(kind, name) for kind, options in HEAD_OPTIONS.items() for name in options]
NARROW: dict[str, dict[str, int | float | str]] = {
    "FusionTransformer": {"width": 8, "depth": 1, "heads": 1, "feed_forward": 8},
    "LateFusion": {"width": 8, "depth": 1, "heads": 1, "feed_forward": 8, "text_width": 8},
    "TextPerceptron": {"text_width": 8},
    "TemporalHead": {"hidden": 2, "layers": 1},
}


def make(kind: str, **options: Any) -> Any:
    from memcli.train.heads import make_head

    dims = (None, 6) if kind == "TextPerceptron" else (6, None)
    dims = (6, 6) if kind == "LateFusion" else dims
    return make_head(HeadSpec(kind, {**NARROW[kind], **options}), *dims)


def test_the_heads_have_these_options() -> None:
    pytest.importorskip("torch")
    from memcli.train.heads import HEADS, option_defaults

    own = {kind: option_defaults(head) for kind, head in HEADS.items()}
    listed = {kind: {k: v.default for k, v in some.items()} for kind, some in HEAD_OPTIONS.items()}
    assert listed == own
    assert [list(some) for some in listed.values()] == [list(some) for some in own.values()]


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_values_are_those_that_the_head_takes(kind: str, name: str) -> None:
    pytest.importorskip("torch")
    option = HEAD_OPTIONS[kind][name]
    if isinstance(option.default, str):
        for value in option.values.split(", "):
            make(kind, **{name: value})
        with pytest.raises(ModelError) as caught:
            make(kind, **{name: "none of these"})
        assert option.values in str(caught.value)
        return
    limits = re.match(r"([\d.]+) to ([\d.]+|`width`)", option.values)
    assert limits is not None
    width = NARROW[kind].get("width")
    low, high = (float(str(x).replace("`width`", str(width))) for x in limits.groups())
    number = type(option.default)
    make(kind, **{name: number(low)})
    step = 1 if number is int else 0.005
    for value in (number(low) - step, number(high) + step):
        with pytest.raises(ModelError, match=rf"{name} is "):
            make(kind, **{name: value})


def test_the_page_lists_them() -> None:
    section = DOCS.partition("## Options of heads")[2].partition("\n## ")[0]
    rows = re.findall(
        r"^\| `(\w+)` \| `(\w+)` \| `(.*)` \| (.*) \| (.*) \|$", section, re.MULTILINE
    )
    assert rows == [
        (kind, name, str(one.default), one.meaning, one.values)
        for kind, options in HEAD_OPTIONS.items()
        for name, one in options.items()
    ]
    for kind in HEAD_OPTIONS:
        assert f"`{kind}`" in section


@pytest.mark.parametrize("model", MODELS)
def test_show_lists_the_options_of_a_model(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert memcli(["models", "show", model]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    head = MODELS[model].head
    if head is None:
        assert "--set" not in shown
        return
    assert f"head {head.kind}" in shown
    options = options_of(head)
    assert ("without options" in shown) == (not options)
    for name, (option, value) in options.items():
        assert value == head.options.get(name, option.default)
        assert f"{name}={value} {option.meaning} ({option.values})" in shown


def test_the_value_of_a_model_is_not_the_default() -> None:
    head = MODELS["clip-b32-average"].head
    assert head is not None
    assert options_of(head)["aggregator"][1] == "average"
    assert options_of(HeadSpec("of another version", {"x": 1})) == {}
    assert isinstance(HEAD_OPTIONS["TemporalHead"]["aggregator"], HeadOption)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("vision", "Its options: width=512, depth=5, heads=8, feed_forward=2048, dropout=0.1"),
        ("clip-b32-gru", "Its options: aggregator=gru, predictor=linear, hidden=64, layers=6"),
        ("brr", "It has none."),
    ],
)
def test_an_unknown_option_names_those_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, told: str
) -> None:
    """Before anything else: the data are not looked at, no encoder is fetched."""
    data = ["--data", str(tmp_path / "not there")]
    assert memcli(["train", model, *data, "--set", "nonsense=1"]) == 2
    error = capsys.readouterr().err
    assert f"the head of {model} has no option 'nonsense'" in error
    assert told in error


@pytest.mark.parametrize(
    ("model", "option", "told"),
    [
        ("vision", "width=abc", "--set width: 'abc' is not a whole number"),
        ("vision", "width=1.5", "--set width: '1.5' is not a whole number"),
        ("vision", "dropout=x\x1b", r"--set dropout: 'x\x1b' is not a number"),
        ("clip-gru", "predictor=3", "--set predictor: '3' is none of its values"),
    ],
)
def test_a_value_of_another_type_is_told_in_the_words_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, option: str, told: str
) -> None:
    assert memcli(["train", model, "--data", str(tmp_path / "not there"), "--set", option]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "Possible: " in error


def test_a_whole_number_will_do_for_a_number() -> None:
    check_options(get_model("vision"), {"dropout": 0, "width": 16})


def test_help_says_where_they_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert memcli(["train", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "`memcli models show MODEL`" in shown.partition("--set")[2].partition("--choose")[0]
    assert "docs/models.md" in shown
