"""Cross-validation folds: complete, balanced, repeatable, and no group on two sides."""

from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcli.train.datasets import DatasetError, Item
from memcli.train.datasets.folds import make_folds, together


def items(groups: list[str | None], folds: list[int | None] | None = None) -> list[Item]:
    return [
        Item(
            id=f"v{place}.mp4",
            path=Path(f"v{place}.mp4"),
            scores={"raw": 0.5},
            captions=(),
            split=None,
            fold=folds[place] if folds else None,
            group=group,
            file="list.csv",
            line=place + 2,
        )
        for place, group in enumerate(groups)
    ]


GROUPS = st.lists(st.sampled_from([None, *"abcdefgh"]), min_size=2, max_size=60)


@settings(max_examples=150, deadline=None)
@given(GROUPS, st.integers(2, 6), st.integers(0, 2**31))
def test_properties(groups: list[str | None], count: int, seed: int) -> None:
    videos = items(groups)
    # None: a group of its own, as in the result of Counter below
    sizes = Counter(group if group else place for place, group in enumerate(groups))
    if len(sizes) < count:
        with pytest.raises(DatasetError, match=f"too few for {count} folds"):
            make_folds(videos, count, seed)
        return
    folds = make_folds(videos, count, seed)
    assert set(folds) == set(range(count))
    assert all(type(fold) is int for fold in folds)
    by_fold = Counter(folds)
    assert max(by_fold.values()) - min(by_fold.values()) <= max(sizes.values())
    for group in filter(None, sizes):
        assert len({fold for fold, own in zip(folds, groups, strict=True) if own == group}) <= 1
    assert make_folds(videos, count, seed) == folds


def test_the_seed_decides() -> None:
    for videos in (items([None] * 40), items([str(place // 2) for place in range(40)])):
        draws = {make_folds(videos, 5, seed) for seed in range(5)}
        assert len(draws) == 5


def test_folds_of_the_dataset_are_used() -> None:
    videos = items(["a", "a", "b", None, "c"], [3, 3, 7, 7, 9])
    assert make_folds(videos, 3, 0) == make_folds(videos, 3, 1) == (0, 0, 1, 1, 2)


@pytest.mark.parametrize(
    ("groups", "folds", "says"),
    [
        ([None] * 4, [0, 1, 0, 1], "list.csv: 2 folds in the dataset, 3 asked\n  Ask for 2"),
        ([None] * 4, [0, None, 1, None], "list.csv:3: 2 videos without a fold, first 'v1.mp4'"),
        (
            ["a", "b", "a", "c"],
            [0, 1, 2, 1],
            "list.csv:4: group 'a' is in fold 2 here and in fold 0",
        ),
    ],
)
def test_folds_of_the_dataset_that_cannot_be_used(groups, folds, says: str) -> None:
    with pytest.raises(DatasetError) as caught:
        make_folds(items(groups, folds), 3, 0)
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize(
    ("groups", "count", "says"),
    [
        ([None] * 3, 5, "3 labelled videos: too few for 5 folds"),
        (["a"] * 9 + ["b"], 5, "10 labelled videos in 2 groups: too few for 5 folds"),
        ([], 2, "0 labelled videos: too few"),
        ([None] * 3, 1, "1 fold asked: cross-validation needs at least 2"),
    ],
)
def test_too_few_says_the_numbers(groups, count: int, says: str) -> None:
    with pytest.raises(DatasetError, match=says):
        make_folds(items(groups), count, 0)


@settings(max_examples=50, deadline=None)
@given(GROUPS, st.data(), st.integers(0, 2**31))
def test_a_file_with_several_names_stays_on_one_side(
    groups: list[str | None], data: st.DataObject, seed: int
) -> None:
    videos = items(groups)
    files = data.draw(st.lists(st.integers(0, 9), min_size=len(videos), max_size=len(videos)))
    videos = [
        replace(one, path=Path(f"{'x/../' * (i % 2)}{file}.mp4"))
        for i, (one, file) in enumerate(zip(videos, files, strict=True))
    ]
    try:
        folds = make_folds(videos, 2, seed)
    except DatasetError:  # all of one piece
        assert len(set(together(videos))) < 2
        return
    for kind in (lambda one: one.group, lambda one: one.path.resolve()):
        sides = defaultdict(set)
        for one, fold in zip(videos, folds, strict=True):
            sides[kind(one)].add(fold)
        sides.pop(None, None)
        assert all(len(found) == 1 for found in sides.values())


def test_folds_of_the_dataset_that_divide_a_file() -> None:
    videos = items([None] * 3, [0, 1, 1])
    videos[2] = replace(videos[2], path=videos[0].path)
    with pytest.raises(DatasetError, match=r"file .*v0.mp4' is in fold 1 here and in fold 0"):
        make_folds(videos, 2, 0)
