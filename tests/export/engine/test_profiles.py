"""Profiles: what is refused before a build, and that the defaults hold every shape."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertmp.core.errors import InputError
from bertmp.export.engine.engine_options import (
    Profile,
    Shape,
    axes_of,
    choose_profile,
    default_profiles,
    gaps,
    parse_profile,
    uncovered,
)


def test_a_profile_is_read_and_written_back() -> None:
    profile = parse_profile("1x8:8x64:32x256", max_length=512)
    assert profile == Profile(Shape(1, 8), Shape(8, 64), Shape(32, 256))
    assert str(profile) == "1x8:8x64:32x256"


def test_one_shape_alone_is_static() -> None:
    assert parse_profile("4x128") == Profile(Shape(4, 128), Shape(4, 128), Shape(4, 128))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1x8:8x64", "not a profile"),
        ("1x8:8x64:32x256:64x256", "not a profile"),
        ("", "not a shape"),
        ("1x8:8:32x256", "'8' is not a shape"),
        ("1x-8:8x64:32x256", "not a shape"),
        ("1x8:1x64:0x256", "is empty"),
        ("0x8:1x64:1x256", "is empty"),
        ("1x8:8x4:32x256", "length falls from 8 to 4"),
        ("9x8:8x64:32x256", "batch falls from 9 to 8"),
        ("1x8:8x64:32x513", "beyond the model's 512 positions"),
    ],
)
def test_bad_profiles_are_refused_in_one_line(text: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_profile(text, max_length=512)
    assert says in str(caught.value)
    assert f"--profile {text}".strip() in str(caught.value)


@given(max_length=st.integers(1, 2048), max_batch=st.integers(1, 256), data=st.data())
def test_default_profiles_hold_every_shape_once(max_length: int, max_batch: int, data: st.DataObject) -> None:
    profiles = default_profiles(max_length, max_batch)
    shape = Shape(data.draw(st.integers(1, max_batch)), data.draw(st.integers(1, max_length)))
    assert sum(profile.holds(shape) for profile in profiles) == 1
    for profile in profiles:  # what the builder would refuse
        assert parse_profile(str(profile), max_length) == profile


def test_default_profiles_keep_to_what_the_graph_fixes() -> None:
    assert default_profiles(512, 32, Shape(0, 128)) == [parse_profile("1x128:8x128:32x128")]
    assert default_profiles(512, 32, Shape(4, 128)) == [parse_profile("4x128")]
    assert {profile.min.batch for profile in default_profiles(512, 32, Shape(4, 0))} == {4}


def test_the_tightest_profile_is_chosen() -> None:
    profiles = [parse_profile("1x1:8x512:32x512"), parse_profile("1x1:8x64:32x64")]
    assert choose_profile(profiles, Shape(8, 20)) == 1
    assert choose_profile(profiles, Shape(8, 65)) == 0
    assert choose_profile(profiles, Shape(33, 20)) is None


def test_axes_follow_the_graph() -> None:
    profile = parse_profile("1x8:8x64:32x256")
    assert axes_of(profile, (-1, -1), "input_ids") == ((1, 8), (8, 64), (32, 256))
    with pytest.raises(InputError, match="fixed at anyx128"):
        axes_of(profile, (-1, 128), "input_ids")
    with pytest.raises(InputError, match="3 dimensions"):
        axes_of(profile, (-1, -1, 4), "pixels")


def test_gaps_between_profiles_are_found() -> None:
    def of(*texts: str) -> list[str]:
        return gaps([parse_profile(text) for text in texts])

    assert of("1x1:2x8:4x16") == []
    assert of("1x1:2x8:4x16", "1x17:2x32:4x32") == []
    assert of("1x1:2x8:4x16", "1x33:2x64:4x64") == ["batch 1-4, length 17-32"]
    assert of("1x8", "4x8") == ["batch 2-3, length 8"]
    assert of("1x1:2x8:4x16", "1x17:8x32:8x32") == ["batch 5-8, length 1-16"]
    assert gaps(default_profiles(512, 32)) == []


ranges = st.tuples(st.integers(1, 6), st.integers(1, 6)).map(sorted)


@given(st.lists(st.tuples(ranges, ranges), min_size=1, max_size=4))
def test_gaps_are_exactly_what_no_profile_holds(drawn: list[tuple[list[int], list[int]]]) -> None:
    profiles = [Profile(Shape(b[0], n[0]), Shape(b[0], n[0]), Shape(b[1], n[1])) for b, n in drawn]
    found = {
        (batch, length)
        for text in gaps(profiles)
        for batches, lengths in [[part.split()[1] for part in text.split(", ")]]
        for batch in _numbers(batches)
        for length in _numbers(lengths)
    }
    hull = [
        range(min(getattr(p.min, axis) for p in profiles), max(getattr(p.max, axis) for p in profiles) + 1)
        for axis in ("batch", "length")
    ]
    expected = {
        (batch, length)
        for batch in hull[0]
        for length in hull[1]
        if not any(profile.holds(Shape(batch, length)) for profile in profiles)
    }
    assert found == expected


def _numbers(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


@pytest.mark.parametrize(
    ("profiles", "missing"),
    [
        (["1x1:8x16:32x64"], []),
        (["1x1:8x16:64x128"], []),
        (["1x1:8x16:32x32", "1x33:4x48:4x64"], ["batch 5-32, length 33-64"]),
        (["1x1:8x16:32x48"], ["batch 1-32, length 49-64"]),
        (["4x1:8x16:32x64"], ["batch 1-3, length 1-64"]),
    ],
)
def test_shapes_that_no_profile_holds_are_found(profiles: list[str], missing: list[str]) -> None:
    assert uncovered([parse_profile(text) for text in profiles], Shape(32, 64)) == missing
