"""What is known of a key holds for every key that says it: ranges, choices, units, types, resume rules.

The keys are found by walking the schema, so that a new key is tested by being there.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmshearing.config import Config, build
from llmshearing.config.checks import config_problems
from llmshearing.config.durations import UNITS
from llmshearing.config.key import FREE, SAME, Described, key, keys_of, kinds, section_or
from llmshearing.config.plain import dump, parse
from llmshearing.config.resuming import changes
from llmshearing.config.strict import build_what_fits
from llmshearing.config.writing import to_yaml

MINIMAL = """
train_loader: {dataset: {local: data, max_seq_len: 16}}
eval_loader: {dataset: {local: data, max_seq_len: 16}}
model: {l0_module: {target_model: {d_model: 8}}}
max_duration: 3ba
global_train_batch_size: 8
"""


@dataclass(frozen=True)
class Place:
    """A key of the schema and where it stands in a file."""

    path: tuple[str, ...]
    known: Described
    rule: str

    @property
    def name(self) -> str:
        return ".".join(self.path)

    @property
    def is_list(self) -> bool:
        return list in kinds(self.known.hint)

    @property
    def element(self) -> Any:
        return get_args(section_or(self.known.hint))[0] if self.is_list else self.known.hint


def places(schema: type = Config, above: tuple[str, ...] = (), rule: str = "noted") -> list[Place]:
    found = []
    for name, known in keys_of(schema).items():
        path = (*above, *([known.key.within] if known.key.within else []), name)
        own = known.key.resume or rule
        if known.section is None:
            found.append(Place(path, known, own))
        else:
            inner = places(known.section, path, own)
            same = {(*path, *each.split(".")) for each in known.key.same_below}
            found += [Place(p.path, p.known, SAME) if p.path in same else p for p in inner]
    return found


EVERY = places()
TEXTS = st.sampled_from(
    ["no", "on", "1e5", "2024_11", "2024-11-01", "null", "0b_", "~", "1:30", "a: b"]
) | st.text("abxye019_-.:{#'\"é ", min_size=1, max_size=8)
IDS = {"ids": lambda place: place.name}


def values_with(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    values = parse(MINIMAL)
    inside = values
    for part in path[:-1]:
        inside = inside.setdefault(part, {})
    inside[path[-1]] = value
    return values


def problems_with(place: Place, value: Any) -> list[str]:
    return build_what_fits(Config, values_with(place.path, value), "file")[1]


def at(config: Config, path: tuple[str, ...]) -> Any:
    value: Any = config
    for part in path if path[:2] != ("callbacks", "data_loading") else path[1:]:
        value = getattr(value, part)
    return value


def inside(place: Place) -> st.SearchStrategy[Any]:
    """Single values that the key may have, or that the elements of its list may be."""
    key, hint = place.known.key, place.element
    if key.choices:
        return st.sampled_from(key.choices)
    if key.units:
        units = [unit for unit in key.units if unit != "dur"]
        whole = st.builds(
            lambda n, u: f"{n}{u}", st.integers(int(key.least or 0), 10**9), st.sampled_from(units)
        )
        return whole | st.sampled_from(["0.03dur", "1dur", "0.5dur"]) if "dur" in key.units else whole
    if bool in kinds(hint):
        return st.booleans()
    lowest, highest = key.least if key.least is not None else key.above, key.most or key.below
    lowest, highest = -(10**6) if lowest is None else lowest, 10**6 if highest is None else highest
    if int in kinds(hint):
        return st.integers(math.ceil(lowest), math.floor(highest)) | st.sampled_from(
            key.also or [math.ceil(lowest)]
        )
    if float in kinds(hint):
        return st.floats(
            lowest,
            highest,
            exclude_min=key.above is not None,
            exclude_max=key.below is not None,
            allow_subnormal=False,
        )
    return TEXTS


def outside(place: Place) -> st.SearchStrategy[Any]:
    """Values of the right type that the key's range, choices or units leave out."""
    key = place.known.key
    if key.choices:
        return st.text("abcxyz", min_size=1, max_size=8).filter(lambda text: text not in key.choices)
    if key.units:
        others = [unit for unit in (*UNITS, "min", "") if unit not in key.units and (unit or not key.bare)]
        return st.builds(lambda n, unit: f"{n}{unit}", st.integers(1, 9), st.sampled_from(others))
    whole = int in kinds(place.element)
    found: list[st.SearchStrategy[Any]] = []
    for end, side, excluded in (
        (key.least, -1, False), (key.most, 1, False), (key.above, -1, True), (key.below, 1, True),
    ):  # fmt: skip
        if end is not None:
            start = end if excluded and not whole else end + side * (1 if whole else 1e-6 * max(1, abs(end)))
            far = st.integers(0, 10**6).map(lambda n, start=start, side=side: start + side * n)
            found.append(far.map(int) if whole else far.map(float))
    if not whole:
        found.append(st.sampled_from([math.inf, -math.inf, math.nan]))
    return st.one_of(found).filter(lambda value: value not in key.also)


RANGED = [p for p in EVERY if p.known.key.range or p.known.key.choices or p.known.key.units]


@given(data=st.data())
@settings(max_examples=5, deadline=None)
def test_values_that_fit_are_accepted(data: st.DataObject) -> None:
    for place in RANGED:
        value = data.draw(inside(place), place.name)
        known = place.known.key
        if place.is_list:
            value = [value] if known.length is None else [value] * known.length
            value = [1.0] if known.total else value
        assert at(build(Config, values_with(place.path, value)), place.path) == value, place.name


@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_a_configuration_survives_being_written(data: st.DataObject) -> None:
    values = parse(MINIMAL)
    for place in EVERY:
        if not (place.is_list or dict in kinds(place.known.hint)):
            section = values
            for part in place.path[:-1]:
                section = section.setdefault(part, {})
            section[place.path[-1]] = data.draw(inside(place))
    values["callbacks"]["data_loading"]["set_names"] = data.draw(st.lists(TEXTS, min_size=1, unique=True))
    values["loggers"] = {"wandb": {"a": data.draw(TEXTS | st.integers() | st.booleans() | st.none())}}
    config = build(Config, values)
    assert build(Config, parse(to_yaml(config))) == config


@given(data=st.data())
@settings(max_examples=5, deadline=None)
def test_values_out_of_range_are_reported_with_key_found_and_expected(data: st.DataObject) -> None:
    for place in RANGED:
        value = data.draw(outside(place), place.name)
        known = place.known.key
        wrong = [value] * (known.length or 1) if place.is_list else value
        (problem,) = problems_with(place, wrong)
        assert problem.startswith(f"file: {place.name} ")
        assert repr(value) in problem
        assert known.expected(place.element) in problem


@pytest.mark.parametrize("place", EVERY, **IDS)
def test_a_value_of_another_type_is_reported_with_key_found_and_expected(place: Place) -> None:
    types = kinds(place.known.hint)
    wrong: Any = {"a": 1} if dict not in types else "text"
    (problem,) = problems_with(place, wrong)
    assert problem.startswith(f"file: {place.name} is ")
    assert "expected" in problem
    if place.is_list or dict in types:
        return
    for hint, text in ((bool, "maybe"), (int, "1.5"), (float, "high")):
        if hint in types and str not in types:
            (problem,) = problems_with(place, text)
            assert problem.startswith(f"file: {place.name} is '{text}'; expected ")


@pytest.mark.parametrize("place", EVERY, **IDS)
def test_null_is_nothing_or_reported(place: Place) -> None:
    config, problems = build_what_fits(Config, values_with(place.path, None), "file")
    if type(None) in get_args(place.known.hint):
        assert (problems, at(config, place.path)) == ([], None)
    elif place.known.required:
        assert problems == [f"file: {place.name} is missing; add it."]
    elif place.known.default == "" or isinstance(place.known.default, dict | list):
        assert (problems, at(config, place.path)) == ([], place.known.default)
    else:
        assert problems == [f"file: {place.name} is empty; give a value, or leave the line out."]


@pytest.mark.parametrize("place", EVERY, **IDS)
def test_a_misspelt_key_is_reported_with_the_right_one(place: Place) -> None:
    wrong = place.name + "x"
    (problem,) = build_what_fits(Config, values_with((*place.path[:-1], place.path[-1] + "x"), 1), "file")[1]
    assert problem.startswith(f"file: unknown key {wrong}; did you mean {'.'.join(place.path[:-1])}")


@given(data=st.data())
@settings(max_examples=2, deadline=None)
@pytest.mark.slow
def test_a_resume_may_change_what_the_rule_of_the_key_says(data: st.DataObject) -> None:
    for place in EVERY:
        check_resume_rule(place, data)


def check_resume_rule(place: Place, data: st.DataObject) -> None:
    if dict in kinds(place.known.hint):
        before, now = {"a": 1}, {"a": 2}
    elif place.is_list:
        before, now = ([1.0], [0.5, 0.5]) if place.known.key.total else ([0.1] * 2, [0.2] * 2)
        before, now = (["a"], ["b"]) if place.element is str else (before, now)
    else:
        before, now = data.draw(st.lists(inside(place), min_size=2, max_size=2, unique_by=repr), place.name)
    if before == now:
        return
    texts = [dump(values_with(place.path, value)) for value in (before, now)]
    fixed, noted = changes(*texts)
    expected = f"{place.name}{'.a' if isinstance(before, dict) else ''} was "
    assert [line.startswith(expected) for line in fixed] == ([True] if place.rule == SAME else [])
    assert [line.startswith(expected) for line in noted] == ([True] if place.rule not in (SAME, FREE) else [])
    assert changes(texts[0], texts[0]) == ([], [])


@pytest.mark.parametrize("place", [p for p in EVERY if not p.known.required], **IDS)
def test_a_key_that_a_record_does_not_have_counts_with_its_default(place: Place) -> None:
    """A checkpoint of an earlier version, which did not know the key, can be resumed."""
    default = place.known.default
    if place.name == "model.l0_module.target_model.d_model":
        return  # MINIMAL has it
    assert changes(dump(parse(MINIMAL)), dump(values_with(place.path, default))) == ([], [])


def test_every_key_is_documented_in_one_line() -> None:
    assert len(EVERY) > 90
    for place in EVERY:
        about = place.known.key.about
        assert about[0].isupper() or about[0] == "`", place.name
        assert about.endswith("."), place.name
        assert "\n" not in about, place.name


def test_checking_changes_nothing() -> None:
    config = build(Config, parse(MINIMAL))
    config.scheduler.alpha_f, config.global_train_batch_size, config.optimizer.betas = 5.0, 0, [2.0, 3.0]
    before = dataclasses.asdict(config)
    problems = config_problems(config)
    assert [problem.split(" ")[0] for problem in problems] == [
        "scheduler.alpha_f", "optimizer.betas", "global_train_batch_size",
    ]  # fmt: skip
    assert dataclasses.asdict(config) == before


def test_a_number_out_of_range_is_read_as_the_nearest_so_that_a_plan_shows_the_rest() -> None:
    for given_, nearest in ((-1, 0), (5, 1)):
        config, problems = build_what_fits(Config, values_with(("scheduler", "alpha_f"), given_))
        assert (len(problems), config.scheduler.alpha_f) == (1, nearest)


def test_a_new_key_needs_its_field_alone() -> None:
    @dataclass
    class Section:
        """A section."""

        size: int = key(3, "How large.", least=1, most=9)

    assert build(Section, parse("size: 4")) == Section(4)
    with pytest.raises(ValueError, match="size is 10; expected a whole number, from 1 to 9"):
        build(Section, {"size": 10})
