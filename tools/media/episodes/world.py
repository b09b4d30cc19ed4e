"""Rooms with doors and things, drawn by a seed. Imports minigrid, which is an extra."""

import os
import random
from collections.abc import Callable
from typing import Any, Final

from PIL import Image

# It greets on standard output else.
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

from minigrid.core.world_object import Ball, Box, Door, Key, WorldObj
from minigrid.envs.babyai.core.roomgrid_level import RoomGridLevel
from minigrid.envs.babyai.core.verifier import GoToInstr, ObjDesc

SIDE: Final = 96
"""Pixels of height and width of a frame."""
_TILE: Final = 8
_ROOM: Final = 6
"""Cells of a room's side, its walls included."""
_MOST_STEPS: Final = 100_000
COLOURS: Final = ("red", "green", "blue", "purple", "yellow")
"""Without grey, which walls are."""
_KINDS: Final[dict[str, Callable[[str], WorldObj]]] = {"key": Key, "ball": Ball, "box": Box}
NUM_THINGS: Final = 4

Rooms = tuple[int, int]
"""Rows and columns of rooms."""


class World(RoomGridLevel):
    """Rooms with a door in every wall between two of them.

    Args:
        rooms: how many.
        seed: of all that is drawn.
        has_things: whether there are things, and doors stand open; else there are doors alone, and
            they are closed.

    Attributes:
        things: names of what lies there, such as `red ball`; no two are alike.
    """

    def __init__(self, rooms: Rooms, *, seed: int, has_things: bool):
        self._has_things = has_things
        self._chance = random.Random(seed)
        self.things: list[str] = []
        self._doors: list[Door] = []
        rows, columns = rooms
        super().__init__(room_size=_ROOM, max_steps=_MOST_STEPS, num_rows=rows, num_cols=columns)
        self.reset(seed=seed)

    def gen_mission(self) -> None:
        """Put doors, things and the agent into empty rooms."""
        self._doors.clear()
        places = [(column, row) for column in range(self.num_cols) for row in range(self.num_rows)]
        colours = iter(self._chance.sample(COLOURS, len(COLOURS)))
        for column, row in places:
            room = self.get_room(column, row)
            for wall in (0, 1):  # to the right, and below
                if room.neighbors[wall]:
                    door, _ = self.add_door(column, row, wall, next(colours), locked=False)
                    door.is_open = self._has_things
                    self._doors.append(door)
        self.place_agent()
        self.things = []
        names = [f"{colour} {kind}" for colour in COLOURS for kind in _KINDS]
        for name in self._chance.sample(names, NUM_THINGS) if self._has_things else ():
            colour, kind = name.split()
            self.place_in_room(*self._chance.choice(places), _KINDS[kind](colour))
            self.things.append(name)
        # A level must ask for something; what is done is asked for step by step.
        self.instrs = GoToInstr(ObjDesc("door"))

    @property
    def at(self) -> tuple[int, int]:
        """Column and row of the agent's cell."""
        column, row = map(int, self.agent_pos)
        return column, row

    def frame(self) -> Image.Image:
        """What is to be seen, in the middle of a black square."""
        # As `get_frame` without what the agent sees, which takes longer than all the rest.
        seen: Any = self.grid.render(_TILE, self.at, self.agent_dir)
        height, width, _ = seen.shape
        ground = Image.new("RGB", (SIDE, SIDE))
        ground.paste(Image.fromarray(seen), ((SIDE - width) // 2, (SIDE - height) // 2))
        return ground

    def doors(self) -> list[Door]:
        """All doors of the room that the agent is in."""
        room: Any = self.room_from_pos(*self.at)
        return [door for door in room.doors if isinstance(door, Door)]

    def opened(self) -> set[str]:
        """Colours of the doors that stand open."""
        return {door.color for door in self._doors if door.is_open}
