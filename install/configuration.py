"""Writes a daemon's first configuration: the packaged example with this host's values in it, on stdout.

`python install/configuration.py examples/agent.toml --set coordinator.url=ws://… --model /srv/a.gguf --gpu-layers -1`.
Standard library only: it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

_HEADER = re.compile(r"\[+([A-Za-z0-9_.]+)\]+")
_KEY = re.compile(r"(?:# )?([a-z_]+) = [^#]*?(\s+#.*)?")


class PlacelessError(Exception):
    """The example has no place for a value."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("example", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=TEXT", dest="values")
    parser.add_argument("--model", action="append", default=[], type=Path)
    parser.add_argument("--gpu-layers", type=int, help="for every model; the example's default if not given")
    arguments = parser.parse_args()
    values = dict(value.split("=", 1) for value in arguments.values)
    try:
        text = configured(arguments.example.read_text(encoding="utf-8"), values)
        if arguments.model:
            text = with_models(text, arguments.model, gpu_layers=arguments.gpu_layers)
        tomllib.loads(text)
    except (OSError, ValueError, PlacelessError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(text)
    return 0


def configured(example: str, values: Mapping[str, str]) -> str:
    """The example with `values`, text by "section.key", in the places of its own. Raises `PlacelessError`."""
    left = dict(values)
    lines, section = [], ""
    for line in example.splitlines():
        section = _section(line) or section
        if (found := _KEY.fullmatch(line)) and (value := left.pop(f"{section}.{found[1]}", None)) is not None:
            lines.append(f"{found[1]} = {_quoted(value)}{found[2] or ''}")
        else:
            lines.append(line)
    if left:
        raise PlacelessError(f"The example has no {', '.join(sorted(left))}.")
    return "\n".join(lines) + "\n"


def with_models(text: str, paths: Sequence[Path], *, gpu_layers: int | None) -> str:
    """`text` with one [[models]] for each path; the first one has the example's comments.

    Raises `PlacelessError` where two files would have one name.
    """
    names = [model_name(path) for path in paths]
    if len(set(names)) < len(names):
        raise PlacelessError(f"Two models would have the same name among {', '.join(names)}: rename a file.")
    lines = text.splitlines()
    try:
        start = lines.index("[[models]]")
    except ValueError:
        raise PlacelessError("The example has no [[models]].") from None
    end = next((n for n in range(start + 1, len(lines)) if _section(lines[n])), len(lines))
    block = []
    for line in lines[start:end]:
        key = _KEY.fullmatch(line)
        match key and key[1]:
            case "name":
                block.append(f"name = {_quoted(names[0])}")
            case "path":
                block.append(f"path = {_quoted(str(paths[0]))}")
            case "gpu_layers" if key and gpu_layers is not None:
                block.append(f"gpu_layers = {gpu_layers}{key[2] or ''}")
            case _:
                block.append(line)
    for name, path in list(zip(names, paths, strict=True))[1:]:
        block += ["[[models]]", f"name = {_quoted(name)}", f"path = {_quoted(str(path))}"]
        block += [] if gpu_layers is None else [f"gpu_layers = {gpu_layers}"]
        block += [""]
    return "\n".join([*lines[:start], *block, *lines[end:]]) + "\n"


def model_name(path: Path) -> str:
    """What clients ask for: the file's name in small letters, without what a model's name may not have."""
    name = re.sub(r"[^a-z0-9._:-]+", "-", path.name.lower().removesuffix(".gguf")).strip("-._:")
    return name[:128] or "model"


def _section(line: str) -> str | None:
    found = _HEADER.match(line)
    return found[1] if found else None


def _quoted(text: str) -> str:
    # JSON's strings are TOML's basic strings, as long as nothing outside ASCII is escaped as a surrogate pair.
    return json.dumps(text, ensure_ascii=False)


if __name__ == "__main__":
    sys.exit(main())
