"""Moved to agents.likelihood."""  # ALIAS

import sys

from agents import likelihood  # noqa: TID251

sys.modules[__name__] = likelihood
