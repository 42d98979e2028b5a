#!/usr/bin/env python3
"""Changes the pure cores one operator at a time and counts which changes their tests notice (mutation testing).

    python dev/mutate.py planning            # one core, see CORES; without a name all of them
    python dev/mutate.py ledger --show       # with the text of each change that no test noticed
    python dev/mutate.py serving --sample 400    # so many of its changes, drawn at random with --seed

It copies the tree into a folder of its own, where `moe2` is a real package, and runs mutmut there; a core takes
minutes. What the type checker refuses counts as noticed. The last line is one JSON object: for each core its mutants,
how many were killed, survived or ran into no test, how many of these only changed the wording of a text (and are left
out of the share, because a test that repeats a sentence guards nothing), and the share that was killed. docs/design.md
keeps the last shares and says what the survivors are.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("agent", "coordinator", "common")
# Strict types, but for what mutmut writes around each mutant.
MYPY = """
[tool.mypy]
explicit_package_bases = true
check_untyped_defs = true
ignore_missing_imports = true
follow_imports = "silent"
disable_error_code = ["no-redef"]
"""
# A mutant of a log line says nothing about a decision.
WORDING = [r"^\s*(log|_log|logger)\."]


@dataclass(frozen=True)
class Core:
    """A core: the files that are mutated (globs from the package), shells among them that are not, and the tests."""

    files: tuple[str, ...]
    tests: tuple[str, ...]
    shells: tuple[str, ...] = ()


CORES = {
    "session": Core(("common/link/session.py",), ("tests/common/link",)),
    "jobs": Core(("agent/jobs/core.py", "agent/jobs/residency.py"), ("tests/agent/jobs",)),
    "attribution": Core(("agent/energy/attribution.py", "agent/energy/account.py"), ("tests/agent/energy",)),
    "serving": Core(
        ("coordinator/serving/*.py", "coordinator/serving/modes/*.py"),
        ("tests/coordinator/serving",),
        shells=("service.py", "exchange.py", "bookkeeper.py"),
    ),
    "ledger": Core(("coordinator/ledger/*.py",), ("tests/coordinator/ledger", "tests/coordinator/database")),
    "planning": Core(("coordinator/planning/*.py",), ("tests/coordinator/planning",)),
    "doors": Core(
        (
            "coordinator/fleet/checks.py",
            "coordinator/fleet/report_checks.py",
            "coordinator/fleet/breaker.py",
            "coordinator/fleet/suspensions.py",
        ),
        ("tests/coordinator/fleet",),
    ),
}


def copy_tree(folder: Path) -> None:
    """Copy what the tests need into `folder`, with the three parts inside a real package `moe2`."""
    (folder / "moe2").mkdir(parents=True)
    # What a room imports is not asked there: every mutant imports mutmut.
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc", ".*_cache", "test_imports.py")
    for part in PARTS:
        shutil.copytree(ROOT / part, folder / "moe2" / part, ignore=ignore)
    for name in ("tests", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)


def _paths(core: Core) -> list[str]:
    """The files of the core, as the scratch tree names them."""
    paths = [path for pattern in core.files for path in sorted(ROOT.glob(pattern)) if path.name not in core.shells]
    return [f"moe2/{path.relative_to(ROOT)}" for path in paths]


def configuration(core: Core) -> str:
    """The scratch tree's pyproject.toml: the project's own settings of pytest, in one process, and mutmut's."""
    text = (ROOT / "pyproject.toml").read_text()
    pytest_options = text[text.index("[tool.pytest.ini_options]") :]
    pytest_options = pytest_options[: pytest_options.index("\n[tool.", 1)].replace('    "-n",\n    "3",\n', "")
    pytest_options = pytest_options.replace('    "--dist",\n    "worksteal",\n', "")
    options = {
        "source_paths": ["moe2"],
        "only_mutate": _paths(core),
        "also_copy": ["benchmarks"],
        "pytest_add_cli_args": ["-m", "not slow and not systemd"],
        "pytest_add_cli_args_test_selection": list(core.tests),
        "do_not_mutate_patterns": WORDING,
        "type_check_command": ["mypy", "--output=json", *_paths(core)],
        "track_dependencies": False,
        "use_git_change_detection": False,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in options.items()]
    return f"{pytest_options}\n{MYPY}\n[tool.mutmut]\n" + "\n".join(lines) + "\n"


def mutmut(folder: Path, *arguments: str, quiet: bool = False) -> str:
    """Run mutmut in the scratch tree and return what it printed."""
    environment = os.environ | {"PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "mutmut", *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE if quiet else None, check=False
    )
    return done.stdout or ""


def drawn(folder: Path, size: int, seed: int, only: str) -> tuple[list[str], int]:
    """Return the names of `size` mutants, drawn without replacement, and of how many. only: a glob of their names."""
    mutmut(folder, "run", "no mutant has this name", quiet=True)  # makes them and the map of tests, then gives up
    metas = sorted((folder / "mutants").rglob("*.meta"))
    names = [name for meta in metas for name in json.loads(meta.read_text())["exit_code_by_key"]]
    names = [name for name in names if fnmatch(name, only)]
    return random.Random(seed).sample(names, min(size, len(names))), len(names)


def error_of(share: float, drawn_count: int, whole_count: int) -> float:
    """Return half the 95 % interval of a share that was found in a sample without replacement, by Wilson's formula."""
    z = 1.96 * math.sqrt((whole_count - drawn_count) / max(1, whole_count - 1))
    return z / (1 + z * z / drawn_count) * math.sqrt(share * (1 - share) / drawn_count + (z / (2 * drawn_count)) ** 2)


def score(folder: Path) -> tuple[dict[str, float | int | None], list[str]]:
    """Read the scratch tree's results: counts with the killed share, and the diffs of the mutants that are alive."""
    states: dict[str, list[str]] = {}
    for line in mutmut(folder, "results", "--all", "true", quiet=True).splitlines():
        name, _, state = line.strip().partition(": ")
        if state:
            states.setdefault(state, []).append(name)
    killed = sum(
        len(states.get(state, ())) for state in ("killed", "timeout", "segfault", "suspicious", "caught by type check")
    )
    names = states.get("survived", []) + states.get("no tests", [])
    diffs = [mutmut(folder, "show", name, quiet=True) for name in names]
    alive = [diff for diff in diffs if not is_wording(diff)]
    counts: dict[str, float | int | None] = {
        "mutants": killed + len(alive),
        "killed": killed,
        "survived": len(states.get("survived", ())),
        "no_tests": len(states.get("no tests", ())),
        "wording": len(diffs) - len(alive),
        "unchecked": len(states.get("not checked", ())),
        "killed_share": round(killed / (killed + len(alive)), 4) if killed + len(alive) else None,
    }
    return counts, alive


def is_wording(diff: str) -> bool:
    """Return whether a mutant only wrote a text in other letters, which mutmut does in three ways."""
    lines = [line for line in diff.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    before = "".join(line[1:].strip() for line in lines if line[0] == "-").lower()
    after = "".join(line[1:].strip() for line in lines if line[0] == "+").lower()
    return before == after or before == after.replace("xx", "")


def main() -> int:
    """Mutate each named core in turn and print its counts, and with --show the changes that nothing noticed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("cores", nargs="*", choices=[*CORES, []], help="default: all")
    parser.add_argument("--only", default="", help="mutants whose name has this glob, as mutmut names them")
    parser.add_argument("--sample", type=int, help="so many mutants, drawn at random (default: all)")
    parser.add_argument("--seed", type=int, default=1, help="of the sample")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="mutants at a time (default: processors)")
    parser.add_argument("--show", action="store_true", help="print each change that no test noticed")
    parser.add_argument("--folder", type=Path, help="keep the scratch trees here and go on with what they hold")
    options = parser.parse_args()
    scores = {}
    with tempfile.TemporaryDirectory(prefix="moe2-mutate-") as temporary:
        for name in options.cores or CORES:
            folder = (options.folder or Path(temporary)).resolve() / name
            if not folder.exists():
                copy_tree(folder)
            (folder / "pyproject.toml").write_text(configuration(CORES[name]))
            names, whole_count = [options.only] if options.only else [], 0
            if options.sample:
                names, whole_count = drawn(folder, options.sample, options.seed, options.only or "*")
            mutmut(folder, "run", "--max-children", str(options.jobs), *names)
            scores[name], alive = score(folder)
            share = scores[name]["killed_share"]
            if options.sample and share is not None:
                error = error_of(share, min(options.sample, whole_count), whole_count)
                scores[name] |= {"drawn_of": whole_count, "share_error": round(error, 4)}
            print(*(alive if options.show else ()), sep="\n")
    print(json.dumps(scores))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
