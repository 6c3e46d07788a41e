"""Files are saved where the page finds them, for every file name in a workflow."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sluice.flux_core.errors import InputError, SluiceError
from sluice.flux_core.io.folders import confined
from sluice.flux_core.io.saving import place

NAMES = st.text(st.sampled_from("ab\\/:. %~é☂'"), min_size=0, max_size=12)


@pytest.mark.parametrize(
    ("prefix", "subfolder", "name"),
    [
        ("a\\b", "a", "b_00001_.png"),
        ("2024\\may/day", "2024/may", "day_00001_.png"),
        ("C:\\a", "C_", "a_00001_.png"),
        ("a:b", "", "a_b_00001_.png"),
    ],
)
def test_prefixes_from_windows_make_folders(tmp_path: Path, prefix: str, subfolder: str, name: str) -> None:
    where = place(prefix, tmp_path)
    assert where.save(b"x") == name and where.subfolder == subfolder
    assert (tmp_path / subfolder / name).is_file()


@pytest.mark.parametrize("prefix", ["..\\x", "a\\..\\..\\x", "\\x"])
def test_backslashes_do_not_lead_out(tmp_path: Path, prefix: str) -> None:
    with pytest.raises(InputError):
        place(prefix, tmp_path)


@given(NAMES)
def test_what_is_saved_can_be_asked_for_by_the_name_that_is_told(prefix: str) -> None:
    with tempfile.TemporaryDirectory() as root:
        try:
            where = place(prefix, root)
            name = where.save(b"picture")
        except SluiceError:
            return
        told = f"{where.subfolder}/{name}" if where.subfolder else name
        assert confined(Path(root), told).read_bytes() == b"picture"
