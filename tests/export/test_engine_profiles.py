"""Profiles: what is refused before a build, and that the defaults hold every shape."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertmp.errors import InputError
from bertmp.export.engine.profiles import (
    Profile,
    Shape,
    axes_of,
    choose_profile,
    default_profiles,
    parse_profile,
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
