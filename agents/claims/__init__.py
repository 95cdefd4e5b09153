"""Claims about pretraining, a file for each; ``CLAIMS`` holds them by number."""

from importlib import import_module
from pkgutil import iter_modules

from agents.claims.claim import Claim

_FILES = [module.name for module in iter_modules(__path__) if module.name != "report"]  # which imports this file
_FOUND = [getattr(import_module(f"{__name__}.{name}"), "CLAIM", None) for name in _FILES]
CLAIMS: dict[int, Claim] = {claim.number: claim for claim in sorted(filter(None, _FOUND), key=lambda each: each.number)}
