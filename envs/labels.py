"""What probes ask of a representation, read from the true state."""

from minigrid.core.constants import OBJECT_TO_IDX
from minigrid.minigrid_env import MiniGridEnv

# "front" and "carrying": MiniGrid's object type, 1 = nothing; "distance": steps to success; "expert": its action
LABELS = ("front", "carrying", "distance", "expert")
UNKNOWN = -1

_STRIDE = ((1, 0), (0, 1), (-1, 0), (0, -1))


def labels(world: MiniGridEnv, advice: tuple[int, int]) -> tuple[int, int, int, int]:
    """The values of `LABELS` in the current state, given the expert's (action, distance)."""
    (x, y), (dx, dy) = world.agent_pos, _STRIDE[world.agent_dir]
    front = world.grid.grid[(y + dy) * world.grid.width + x + dx]
    action, distance = advice
    return _type(front), _type(world.carrying), distance, action


def _type(thing: object) -> int:
    return OBJECT_TO_IDX[getattr(thing, "type", "empty")]
