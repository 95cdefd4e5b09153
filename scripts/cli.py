"""How every script reads its command line and reports bad input."""

import sys
from collections.abc import Callable
from typing import Any

import tyro

from rlpre import RlpreError


def run(main: Callable[..., Any]) -> None:
    """Calls ``main`` with the command line's arguments; bad input ends with one sentence and exit code 2."""
    try:
        tyro.cli(main, config=(tyro.conf.FlagConversionOff,))
    except RlpreError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; nothing already written is lost", file=sys.stderr)
        sys.exit(130)
