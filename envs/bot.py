"""The BabyAI bot, made to advise learners.

References:
    minigrid.utils.baby_ai_bot, from https://github.com/mila-iqia/babyai
"""

from collections.abc import Iterator
from contextlib import suppress

import numpy as np
from minigrid.core.actions import Actions
from minigrid.core.world_object import WorldObj
from minigrid.envs.babyai.core.roomgrid_level import RoomGridLevel
from minigrid.envs.babyai.core.verifier import AfterInstr, Instr, ObjDesc, PutNextInstr, SeqInstr
from minigrid.minigrid_env import MiniGridEnv
from minigrid.utils.baby_ai_bot import BabyAIBot, DropSubgoal, GoNextToSubgoal

from envs import views
from envs.symbols import UnknownObjectError

HOPELESS = 16  # times that something seen cannot be reached in one plan: more doors than a way leads through


class Bot(BabyAIBot):
    """The BabyAI bot, which plans anew where it was not followed, and looks around at a fraction of the cost.

    The stock bot would first undo what was done instead of its advice, one action after the other, and often has no
    plan in the end. This one plans as at the start, knowing what it has seen. Followed from the start they do the same.

    Args:
        mission: a BabyAI world that was just reset.
    """

    def __init__(self, mission: RoomGridLevel) -> None:
        super().__init__(mission)
        self.world: MiniGridEnv = mission.unwrapped
        self.advised: int | None = None
        self.unreached = 0

    def replan(self, action_taken: Actions | None = None) -> Actions:
        """The best action now, given the action that led here (None: its own, or the episode begins).

        Raises:
            DisappearedBoxError: if a box was opened.
            AssertionError: if there is no plan.
        """
        if action_taken is not None and action_taken != self.advised:
            self._check_erroneous_box_opening(action_taken)
            self._plan(keep=self._needed())
            action_taken = None
        self.unreached = 0
        try:
            self.advised = super().replan(action_taken)
        except AssertionError:  # it asserts where its plan fails: most often it holds something
            self._plan(keep=False)
            self.advised = super().replan()
        return self.advised

    def _plan(self, keep: bool) -> None:
        """Plans what is left of the mission; what it holds is put down first, if not to be kept."""
        self._process_obs()
        self.stack = []
        for instruction in reversed([*_left(self.world.instrs)]):
            self._process_instr(instruction)
        if self.world.carrying is None:
            return
        if not keep:
            with suppress(AssertionError):  # where it is shut in: what comes first opens a door
                place = self._find_drop_pos()
                self.stack += [DropSubgoal(self), GoNextToSubgoal(self, place)]
        elif self._carries():
            del self.stack[-2:]  # to go and get it

    def _needed(self) -> bool:
        """Whether the mission needs what it holds."""
        held = self.world.carrying
        if held is None or held.type != "key" or self._carries():
            return self._carries()
        doors = (cell for cell in self.world.grid.grid if cell and cell.type == "door")
        return any(door.is_locked and door.color == held.color for door in doors)

    def _carries(self) -> bool:
        """Whether it holds what is to be put next to something now."""
        now = next(_left(self.world.instrs), None)
        return isinstance(now, PutNextInstr) and any(thing is self.world.carrying for thing in now.desc_move.obj_set)

    def _find_obj_pos(self, obj_desc: ObjDesc, adjacent: bool = False) -> tuple[WorldObj | None, tuple | None]:
        try:
            return super()._find_obj_pos(obj_desc, adjacent)
        except AssertionError:  # it was seen, but somebody closed a door: explore, which opens doors
            self.unreached += 1
            if self.unreached > HOPELESS:
                raise
            return None, None

    def _find_drop_pos(self, except_pos: tuple | None = None) -> tuple:
        place: tuple | None = super()._find_drop_pos(except_pos)
        if place is None:  # and would fail where it goes there
            raise AssertionError("there is nowhere to put it down")
        return place

    def _process_obs(self) -> None:
        try:
            cells = np.array(views.seen(self.world))
        except UnknownObjectError:
            super()._process_obs()
        else:
            y, x = np.divmod(cells[cells < self.world.width * self.world.height], self.world.width)
            self.vis_mask[x, y] = True


def _left(instruction: Instr) -> Iterator[Instr]:
    """What is not done yet of an instruction, in the order in which it is to be done."""
    if not isinstance(instruction, SeqInstr):
        yield instruction
        return
    parts = [(instruction.instr_a, instruction.a_done), (instruction.instr_b, instruction.b_done)]
    for part, done in reversed(parts) if isinstance(instruction, AfterInstr) else parts:
        if done != "success":
            yield from _left(part)
