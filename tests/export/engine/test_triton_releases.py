"""Which Triton release loads which engine: the table's form, and what is refused."""

from __future__ import annotations

import re

import pytest

from bertmp.core.errors import InputError
from bertmp.export.engine.compatibility import (
    RELEASES,
    find_release,
    mismatch,
    release_of_server,
    releases_for,
    require_match,
)


def test_the_table_is_in_order_and_every_row_is_whole() -> None:
    names = [release.name for release in RELEASES]
    assert names == sorted(set(names), reverse=True)
    assert len({release.server for release in RELEASES}) == len(RELEASES)
    for release in RELEASES:
        assert re.fullmatch(r"2\d\.(0[1-9]|1[0-2])", release.name)
        assert re.fullmatch(r"2\.\d+\.\d", release.server)
        assert re.fullmatch(r"1[01]\.\d+\.\d+\.\d+", release.tensorrt)
        assert re.fullmatch(r"1[23]\.\d", release.cuda)
        # CUDA 12 came with drivers from 525 on, CUDA 13 with drivers from 580 on.
        oldest = {"12": 525, "13": 580}[release.cuda.split(".")[0]]
        assert int(release.driver.split(".")[0]) >= oldest


def test_versions_rise_with_the_releases() -> None:
    def numbers(text: str) -> tuple[int, ...]:
        return tuple(map(int, text.split(".")))

    for field in ("server", "tensorrt", "cuda", "driver"):
        values = [numbers(getattr(release, field)) for release in RELEASES]
        assert values == sorted(values, reverse=True), field


def test_an_engine_loads_where_its_own_version_is() -> None:
    assert releases_for("tensorrt", "10.13.3.9") == ["25.10", "25.09"]
    assert releases_for("tensorrt", "10.13.3.8") == []
    assert releases_for("tensorrt-rtx", "1.7.1.116") == []
    assert "has TensorRT 10.13.3.9, and this is 10.16.1.11" in mismatch(
        find_release("25.10"), "tensorrt", "10.16.1.11"
    )


def test_a_version_compatible_engine_loads_in_later_ones() -> None:
    assert releases_for("tensorrt", "10.15.1.29", version_compatible=True) == [
        "26.07",
        "26.05",
        "26.04",
        "26.03",
        "26.02",
    ]
    # NVIDIA promises it forward alone, and across majors from 10 to 11 alone.
    assert mismatch(find_release("25.01"), "tensorrt", "10.15.1.29", version_compatible=True)
    assert releases_for("tensorrt", "11.4.0.1", version_compatible=True) == []


def test_a_mismatch_says_what_to_install_and_where_else_it_would_serve() -> None:
    with pytest.raises(InputError) as caught:
        require_match(find_release("25.12"), "tensorrt", "10.13.3.9", False, "--triton-release 25.12")
    assert "tensorrt-cu13==10.14.1.48" in str(caught.value)
    assert "Triton 25.10 or 25.09" in str(caught.value)
    require_match(find_release("25.10"), "tensorrt", "10.13.3.9", False, "")
    with pytest.raises(InputError, match="no Triton release loads engines of tensorrt-rtx"):
        require_match(find_release("25.10"), "tensorrt-rtx", "1.7.1.116", True, "")


def test_releases_are_found_by_name_and_by_the_servers_version() -> None:
    assert find_release("24.10").server == "2.51.0"
    found = release_of_server("2.62.0")
    assert found is not None
    assert found.name == "25.10"
    assert release_of_server("2.0.0") is None
    for name in ("25.11", "26.06"):
        with pytest.raises(InputError, match=rf"no Triton release '{re.escape(name)}' in the table"):
            find_release(name)
