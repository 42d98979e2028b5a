"""What both command lines share: how errors become exit codes, and the options that every command has."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from moe2.common import __version__
from moe2.common.errors import ConfigError, Moe2Error

EXIT_CONFIG = 78
"""EX_CONFIG of sysexits.h; systemd can be told not to restart on it."""
EXIT_INTERRUPTED = 130


# argparse has no public name for what `add_subparsers` returns.
Commands = argparse._SubParsersAction


def program(name: str, description: str) -> tuple[argparse.ArgumentParser, Commands[argparse.ArgumentParser]]:
    """A parser with `--version`, and where its commands are added. Each command sets its function as `act`."""
    parser = argparse.ArgumentParser(prog=name, description=description)
    parser.add_argument("--version", action="version", version=f"{name} {__version__}")
    return parser, parser.add_subparsers(required=True, metavar="COMMAND")


def execute(parser: argparse.ArgumentParser) -> int:
    """Parse argv and act; returns the process's exit code. Errors are told on stderr in a sentence."""
    arguments = parser.parse_args()
    try:
        code: int = arguments.act(arguments)
    except ConfigError as error:
        sys.stderr.write(f"{parser.prog}: the configuration cannot be used:\n{error}\n")
        return EXIT_CONFIG
    except Moe2Error as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 1
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return code


def add_config(parser: argparse.ArgumentParser, default: Path) -> None:
    """`--config FILE`"""
    parser.add_argument("--config", type=Path, default=default, metavar="FILE", help="default: %(default)s")


def add_socket(parser: argparse.ArgumentParser, default: Path) -> None:
    """`--socket PATH`, of the running daemon."""
    parser.add_argument("--socket", type=Path, default=default, metavar="PATH", help="default: %(default)s")
