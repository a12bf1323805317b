"""The cache of compiled engines: found by everything they depend on, never believed."""

import contextlib
import dataclasses
import json
import multiprocessing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcli.engines import plans
from memcli.engines.files import staging
from memcli.engines.plans import PlanKey
from memcli.engines.tensorrt_plan import HashedFile
from memcli.engines.tensorrt_profile import BuildOptions
from memcli.errors import ModelError, OutputError, UsageError

KEY = PlanKey(
    graph="a" * 64,
    flavour="tensorrt",
    version="10.3.0",
    platform="linux-x86_64",
    capability="8.9",
    gpu="NVIDIA GeForce RTX 4090",
    driver="570.86.15, CUDA 12.8",
    profile={"batch": [1, 8, 16], "time": [1, 16, 16]},
    options=BuildOptions().to_dict(),
)
PLAN = b"a plan" * 1000


def keep(key=KEY, content=PLAN):
    plan = plans.new_plan(key, content, label="tiny fp16", seconds=1.5)
    plans.store(plan, content)
    return plan


def test_a_plan_is_found_again_with_its_bytes():
    plan = keep()
    found = plans.find(KEY)
    assert found.content == PLAN
    assert found.plan is not None
    assert found.plan.to_dict() == plan.to_dict()
    assert plans.stored() == [found.plan]
    assert found.plan.problem() is None
    keep(content=b"new")  # replaced as a whole
    assert plans.find(KEY).content == b"new"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"graph": "b" * 64}, "none was built yet"),
        ({"flavour": "tensorrt-rtx"}, "none was built yet"),
        ({"version": "10.16.1"}, "its version is 10.16.1 now"),
        ({"platform": "linux-aarch64"}, "the system is another now"),
        ({"capability": "8.6"}, "the GPU's compute capability is 8.6 now"),
        ({"gpu": "Orin"}, "the GPU is Orin now"),
        ({"driver": "580.1, CUDA 13.0"}, "the driver is 580.1, CUDA 13.0 now"),
        ({"profile": {"batch": [1, 8, 32]}}, "the range of shapes is another now"),
        ({"options": BuildOptions(level=5).to_dict()}, "the set of build options is another now"),
    ],
)
def test_any_other_key_is_a_miss_with_a_reason(change, reason):
    keep()
    found = plans.find(dataclasses.replace(KEY, **change))
    assert found.plan is None
    assert found.content is None
    assert found.reason == reason


def test_a_plan_of_another_profile_is_usable_and_of_another_gpu_is_not():
    wide = dataclasses.replace(KEY, profile={"batch": [1, 8, 64], "time": [1, 16, 512]})
    keep(wide)
    found = plans.find_usable(KEY)
    assert found.plan is not None
    assert found.plan.key == wide
    assert plans.find_usable(dataclasses.replace(KEY, gpu="Orin")).plan is None


@pytest.mark.parametrize("damage", ["flip", "cut", "more", "gone", "folder"])
def test_a_damaged_plan_is_a_miss(damage):
    path = keep().path
    if damage == "flip":
        path.write_bytes(PLAN[:-1] + b"x")
    elif damage == "cut":
        path.write_bytes(PLAN[:-1])
    elif damage == "more":
        path.write_bytes(PLAN + b"x")
    else:
        path.unlink()
    if damage == "folder":
        path.mkdir()
    found = plans.find(KEY)
    assert found.plan is None
    assert found.reason.startswith("the cached one")
    assert plans.stored()[0].problem() is not None
    keep()
    assert plans.find(KEY).plan is not None


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "[]",
        "{}",
        "[" * 99999,
        '{"schema": 2}',
        '{"schema": 1, "key": {}}',
        '{"schema": 1, "key": []}',
    ],
)
def test_a_damaged_entry_is_a_miss(entry):
    folder = keep().folder
    (folder / plans.ENTRY_FILE).write_text(entry)
    assert plans.find(KEY).plan is None
    assert plans.stored() == []
    with pytest.raises(ModelError):
        plans.read_plan(folder)


PATHS = st.sampled_from(["key", "sha256", "size_bytes", "seconds", "created", "label", "schema"])
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.none())
)


@given(part=PATHS, value=VALUES)
def test_any_entry_is_read_or_refused(tmp_path_factory, part, value):
    entry = json.loads((keep().folder / plans.ENTRY_FILE).read_text())
    entry[part] = value
    folder = tmp_path_factory.mktemp("plan")
    (folder / plans.ENTRY_FILE).write_text(json.dumps(entry))
    with contextlib.suppress(ModelError):
        plans.read_plan(folder)


@given(
    part=st.sampled_from([one.name for one in dataclasses.fields(PlanKey)]),
    value=st.one_of(VALUES, st.dictionaries(st.text(max_size=3), VALUES, max_size=2)),
)
def test_any_key_is_read_or_refused(part, value):
    entry = {**dataclasses.asdict(KEY), part: value}
    with contextlib.suppress(ValueError, TypeError):
        PlanKey.from_dict(entry).name()


def test_an_entry_under_the_name_of_another_key_is_a_miss():
    other = dataclasses.replace(KEY, version="11.0")
    keep().folder.rename(plans.plans_dir() / other.name())
    assert plans.find(other).reason == "the cached one is of another key"


def test_a_disk_that_refuses_is_one_error():
    plans.plans_dir().parent.mkdir(parents=True)
    plans.plans_dir().write_text("")
    for write in (keep, lambda: plans.check_place(KEY)):
        with pytest.raises(OutputError, match=r"cannot be kept: \w+") as caught:
            write()
        assert "MEMCLI_HOME" in (caught.value.next_step or "")


def test_a_place_that_can_be_written_is_left_as_it_is():
    plan = keep()
    plans.check_place(KEY)
    assert plans.find(KEY).plan == plan
    assert list(plans.plans_dir().iterdir()) == [plan.folder]


def _keep_many(content: bytes) -> None:
    for _ in range(5):
        keep(content=content)


def test_writers_at_the_same_time_leave_one_whole_plan():
    context = multiprocessing.get_context("fork")
    contents = [bytes([65 + number]) * 50_000 for number in range(4)]
    writers = [context.Process(target=_keep_many, args=(content,)) for content in contents]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        found = plans.find(KEY)
        assert found.content in (None, *contents)
    for writer in writers:
        writer.join(30)
        assert writer.exitcode == 0
    assert plans.find(KEY).content in contents
    assert len(list(plans.plans_dir().glob("*"))) == 1


def test_from_one_machine_to_another(tmp_path, monkeypatch):
    key = dataclasses.replace(KEY, flavour="tensorrt-rtx", gpu=None, driver=None)
    folder = plans.export_plan(keep(key), tmp_path / "out").folder
    assert folder.name.startswith("tensorrt-rtx-8.9-")
    plans.export_plan(keep(dataclasses.replace(key, capability="8.6")), tmp_path / "out")
    monkeypatch.setenv("MEMCLI_HOME", str(tmp_path / "device"))
    assert plans.find(key).plan is None
    assert len(plans.add(tmp_path / "out")) == 2
    assert plans.find(key).content == PLAN
    plans.clear()
    assert len(plans.add(folder)) == 1


def built_at(created, **changes):
    key = dataclasses.replace(KEY, **changes)
    plan = plans.new_plan(key, PLAN, label="tiny fp16", seconds=1.5)
    return dataclasses.replace(plan, created=created, added=created)


def test_what_is_added_was_built_when_it_was_built(tmp_path):
    """Of several added at once the one that was built last is used, whatever their names."""
    by_name = sorted(
        (built_at(0.0, profile={"batch": [1, 1, most]}) for most in range(2, 6)),
        key=lambda plan: plan.key.name(),
    )
    here = built_at(2_000_000_000.0, profile={"batch": [1, 1, 9]})
    times = [1_600_000_000.0, 1_600_000_300.0, 1_600_000_200.0, 1_600_000_100.0]
    for plan, created in zip(by_name, times, strict=True):
        plans.export_plan(dataclasses.replace(plan, created=created), tmp_path, PLAN)
    plans.store(dataclasses.replace(here, added=1_700_000_000.0), PLAN)
    plans.add(tmp_path)
    assert [plan.created for plan in plans.stored()] == [*sorted(times, reverse=True), here.created]
    found = plans.find_usable(here.key)
    assert found.plan.key == by_name[1].key


@pytest.mark.parametrize("created", [-1.0, 1e300, float("nan"), float("inf")])
def test_times_that_are_none(created):
    plan = built_at(created)
    plans.store(plan, PLAN)
    with pytest.raises(ModelError, match="its times"):
        plans.read_plan(plan.folder)


def test_entries_of_before_have_one_time():
    plan = keep()
    path = plan.folder / plans.ENTRY_FILE
    entry = json.loads(path.read_text())
    del entry["added"]
    path.write_text(json.dumps(entry))
    assert plans.read_plan(plan.folder) == plan


def test_what_is_no_plan_is_not_added(tmp_path):
    with pytest.raises(ModelError, match="no compiled engine here"):
        plans.add(tmp_path)
    folder = plans.export_plan(keep(), tmp_path).folder
    plans.clear()
    (folder / plans.PLAN_FILE).write_bytes(b"x" * len(PLAN))
    with pytest.raises(ModelError, match="SHA-256 differs"):
        plans.add(folder)
    assert plans.stored() == []


def test_names_and_deletion():
    plan = keep()
    other = keep(dataclasses.replace(KEY, version="11.0"))
    assert plans.named(plan.key.name()[:8]) == plan
    for wrong in ("", "zz"):
        with pytest.raises(UsageError):
            plans.named(wrong)
    plans.remove(plan)
    assert plans.stored() == [other]
    assert plans.clear() == 1
    assert plans.clear() == 0


def test_clearing_leaves_what_is_being_written():
    keep()
    other = dataclasses.replace(KEY, version="11.0")
    target = plans.plans_dir() / other.name()
    dead = plans.plans_dir() / f".{other.name()}.make.4194399"
    dead.mkdir()
    with staging(target, "make") as folder:
        (folder / "plan").mkdir()
        assert plans.clear() == 1
        assert (folder / "plan").is_dir()
    assert not dead.exists()
    assert list(plans.plans_dir().iterdir()) == []


def _clear_many() -> None:
    for _ in range(20):
        plans.clear()


def test_clearing_beside_writers_breaks_none_of_them():
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_keep_many, args=(b"x" * 50_000,)) for _ in range(2)]
    workers += [context.Process(target=_clear_many) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    keep()
    assert plans.clear() == 1


def test_small_caches_notice_damage(tmp_path):
    file = HashedFile(tmp_path / "a" / "b")
    assert file.read() is None
    file.write(b"content")
    assert file.read() == b"content"
    file.path.write_bytes(file.path.read_bytes() + b"x")
    assert file.read() is None
    file.path.unlink()
    file.path.mkdir()
    file.write(b"content")  # refused by the disk: only costs time
    assert file.read() is None
