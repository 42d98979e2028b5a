"""Models that are split into several files."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe2.agent.engine.llama.model import ModelError, check_model_files
from moe2.agent.engine.llama.parts import parts_of, size_bytes

NAMES = [f"m-0000{number}-of-00003.gguf" for number in (1, 2, 3)]


def split(folder: Path) -> list[Path]:
    """Three files of a split model, of 5, 6 and 7 bytes."""
    paths = [folder / name for name in NAMES]
    for number, path in enumerate(paths, start=1):
        path.write_bytes(b"GGUF" + b"." * number)
    return paths


@pytest.mark.parametrize("name", NAMES)
def test_every_part_tells_of_all(name: str) -> None:
    """The first one first."""
    assert [path.name for path in parts_of(Path("/models") / name)] == NAMES


@pytest.mark.parametrize("name", ["m.gguf", "m-00004-of-00003.gguf", "m-00000-of-00002.gguf", "m-1-of-2.gguf"])
def test_any_other_file_is_whole(name: str) -> None:
    """Whatever its name looks like."""
    assert parts_of(Path(name)) == (Path(name),)


def test_a_models_size_is_that_of_all_its_parts(tmp_path: Path) -> None:
    """Not only of the file that the configuration names."""
    assert size_bytes(split(tmp_path)[0]) == 5 + 6 + 7


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    """Before llama.cpp looks for it."""
    paths = split(tmp_path)
    check_model_files(paths[0])
    paths[2].unlink()
    with pytest.raises(ModelError, match=NAMES[2]):
        check_model_files(paths[0])


def test_a_later_part_is_refused_with_the_first_ones_name(tmp_path: Path) -> None:
    """llama.cpp could not load it."""
    with pytest.raises(ModelError, match=NAMES[0]):
        check_model_files(split(tmp_path)[1])
