"""What happens in a world: MiniGrid's BabyAI bot plays it, step by step.

All is put back: what is picked up lies where it lay, and doors are closed again. So no frame tells
what has happened before it.
"""

import random
from collections.abc import Sequence
from typing import Any, Final

from minigrid.envs.babyai.core.verifier import ObjDesc, OpenInstr, PickupInstr
from minigrid.utils.baby_ai_bot import BabyAIBot
from PIL import Image

from tools.media.episodes.world import World

_MOST_STEPS: Final = 60
"""That the bot may take to a thing or a door; one who takes more is lost."""
_TURNS: Final = 8
"""While a thing is held, so that a few frames of a clip see that it is gone."""


class LostError(Exception):
    """The bot does something else than what it is told, or finds no way: take another world."""


class Player:
    """Plays a world from its beginning.

    Attributes:
        frames: all that was seen, before the first step and behind each.
        picked_up: things, in their order.
        num_opened: times that a door was opened.
    """

    def __init__(self, world: World):
        self._world = world
        self._actions: Any = world.actions
        self.frames: list[Image.Image] = [world.frame()]
        self.picked_up: list[str] = []
        self.num_opened = 0

    def pick_up(self, thing: str) -> None:
        """Go and pick a thing up, turn with it, and put it back.

        Raises:
            LostError: it is not reached, or another was picked up.
        """
        colour, kind = thing.split()
        self._follow(PickupInstr(ObjDesc(kind, colour)))
        for _ in range(_TURNS):
            self._act(self._actions.left)
        self._act(self._actions.drop)
        if self._world.carrying is not None or self.picked_up[-1:] != [thing]:
            raise LostError

    def go_through(self, colour: str) -> None:
        """Open a door, go through it, and close it.

        Raises:
            LostError: it is not reached, or something is behind it.
        """
        opened = self.num_opened
        self._follow(OpenInstr(ObjDesc("door", colour)))
        for _ in range(2):
            before = self._world.at
            self._act(self._actions.forward)
            if self._world.at == before:
                raise LostError
        for action in (self._actions.left, self._actions.left, self._actions.toggle):
            self._act(action)
        if self._world.opened() or self.num_opened != opened + 1:
            raise LostError

    def turn(self, times: int) -> None:
        """Do nothing else."""
        for _ in range(times):
            self._act(self._actions.left)

    def _follow(self, instruction: Any) -> None:
        """What the bot does until the instruction is followed."""
        instruction.reset_verifier(self._world)
        self._world.instrs = instruction
        bot: Any = BabyAIBot(self._world)
        action = None
        for _ in range(_MOST_STEPS):
            try:
                action = bot.replan(action)
            except AssertionError as error:  # what it holds for impossible
                raise LostError from error
            if action == self._actions.done or self._act(action):
                return
        raise LostError

    def _act(self, action: Any) -> bool:
        """One step, and what it changes; whether what is asked is done."""
        held, opened = self._world.carrying, self._world.opened()
        _, _, is_done, _, _ = self._world.step(action)
        now = self._world.carrying
        if now is not None and now is not held:
            self.picked_up.append(f"{now.color} {now.type}")
        self.num_opened += len(self._world.opened() - opened)
        self.frames.append(self._world.frame())
        return bool(is_done)


def picking_up(world: World, things: Sequence[str]) -> list[Image.Image]:
    """An episode of things that are picked up and put back, one behind the other.

    Raises:
        LostError: it does not come out so.
    """
    player = Player(world)
    for thing in things:
        player.pick_up(thing)
    if player.picked_up != [*things] or player.num_opened:
        raise LostError
    return player.frames


def going_through(
    world: World, doors: int, *, chance: random.Random, steps: int
) -> list[Image.Image]:
    """An episode of doors that are gone through, as long as others.

    Args:
        world: whose doors are closed.
        doors: times that one is opened.
        chance: draws which, and where the player turns round instead.
        steps: of the episode.

    Raises:
        LostError: it does not come out so, or takes longer.
    """
    player = Player(world)
    # As long for one door as for four: nothing but what is seen tells them apart.
    first = chance.randrange(_TURNS)
    player.turn(first)
    for _ in range(doors):
        player.go_through(chance.choice(world.doors()).color)
    left = steps - len(player.frames)
    if left < 0 or player.num_opened != doors:
        raise LostError
    player.turn(left)
    return player.frames
