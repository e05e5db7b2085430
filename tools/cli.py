"""`sana-edge VERB`: parses the command line, runs the verb, and turns what happens into text and an exit code.

The verbs are rows of `verbs.VERBS`. Nothing heavy is imported before a verb runs, so `--help` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

from .failures import explain, fields
from .verbs import COMMON, VERBS, Argument, Verb


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb. Exit code: 0, 1 an error the user can fix, 2 usage, 3 a missed gate, 130 Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    options = parser().parse_args(arguments)
    verb: Verb = options.verb
    _set_up_logging(options.verbose)
    try:
        outcome = run_verb(options, _sayer(options.json))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt) as error:
        message, code = explain(error)
        if options.verbose:
            traceback.print_exc()
        print(f"\n{message}" if isinstance(error, KeyboardInterrupt) else message, file=sys.stderr)
        if options.json:
            _print_json({"verb": verb.name, "ok": False, "error": fields(error)})
        return code
    if options.json:
        _print_json({"verb": verb.name, "ok": True, **outcome})
    return 0


def parser() -> argparse.ArgumentParser:
    """The parser of all verbs, made from their table."""
    top = argparse.ArgumentParser(
        prog="sana-edge",
        description="Quantize SANA-Video, build TensorRT-RTX engines for RTX desktops, and prove what was kept.",
        epilog="exit codes: 0 ok, 1 an error you can fix, 2 usage, 3 the quality gate failed",
    )
    top.add_argument("--version", action="version", version=f"sana-edge {version('sana-edge')}")
    verbs = top.add_subparsers(metavar="VERB", required=True)
    for verb in VERBS:
        sub = verbs.add_parser(verb.name, help=verb.summary, description=verb.description, allow_abbrev=False)
        for argument in verb.arguments:
            _add(sub, argument)
        for argument in COMMON:
            _add(sub, argument)
        sub.set_defaults(verb=verb)
    return top


def _add(sub: argparse.ArgumentParser, argument: Argument) -> None:
    sub.add_argument(*argument.names, **argument.settings)


def run_verb(options: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Runs the verb of parsed options; what it returns goes into the JSON line, what it says through `say`."""
    module, _, function = options.verb.run.partition(":")
    return getattr(importlib.import_module(f".{module}", __package__), function)(options, say)


def _sayer(as_json: bool) -> Callable[[str], None]:
    """Where a verb's prose goes: stdout, or stderr when stdout belongs to the JSON line."""

    def say(text: str) -> None:
        print(text, file=sys.stderr if as_json else sys.stdout, flush=True)

    return say


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, default=str), flush=True)


def _set_up_logging(verbosity: int) -> None:
    """Warnings of this package; with -v its messages, with -vv everybody's. Bars of other packages never show."""
    own = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbosity, 2)]
    logging.basicConfig(format="%(message)s", level=logging.INFO if verbosity > 1 else logging.ERROR, stream=sys.stderr)
    logging.getLogger("sana_edge").setLevel(own)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if verbosity < 2:
        warnings.simplefilter("ignore")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")


if __name__ == "__main__":
    sys.exit(main())
