"""Items that come with a request, such as pictures: as bytes alone.

No file and no address is opened for whoever asks: it would be the server's own files, and its own
network, that they name.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Final

from train.data.document import MEDIA, Kind
from train.data.segments import MediaSegment
from train.errors import UserError
from train.items import Bounds, item_of

_SHOWN: Final = 80
"""Signs of a name that are told of."""


@dataclass(frozen=True, kw_only=True)
class Sent:
    """An item as it was sent.

    Attributes:
        key: where it stands in the request.
        url: `data:` and the bytes in base 64; None where they stand alone.
        data: the bytes in base 64, where they stand alone.
    """

    key: str
    url: str | None = None
    data: str = ""

    def content(self) -> bytes:
        """The file.

        Raises:
            UserError: it is written otherwise.
        """
        data = self.data
        if self.url is not None:
            head, comma, data = self.url.partition(",")
            if not head.lower().startswith("data:"):
                raise UserError(
                    f"{self.key}: no address and no file is opened here: send the bytes, as "
                    "data:image/png;base64,..."
                )
            if not comma or not head.lower().endswith(";base64"):
                raise UserError(
                    f"{self.key}: is not in base 64: send it as data:image/png;base64,..."
                )
        try:
            return base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise UserError(
                f"{self.key}: is not in base 64 ({error}): send the file's bytes so"
            ) from None


class GivenItems:
    """What the prompts of a request may name.

    Args:
        items: by name.
        bounds: of each; `video_pixels` of all videos that prompts show.
        most: that all prompts may show together.
    """

    def __init__(self, items: Mapping[str, Sent], bounds: Bounds, *, most: int):
        self._items, self._bounds = items, bounds
        self._left = self._most = most
        self._unused = dict.fromkeys(items)

    def __len__(self) -> int:
        return len(self._items)

    def __call__(self, kind: Kind, name: str) -> MediaSegment:
        """The item that a prompt names.

        Raises:
            UserError: there is none, it cannot be read, or too many are shown.
        """
        sent = self._items.get(name)
        if sent is None:
            shown = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…"
            raise UserError(
                f"the prompt's [[{MEDIA[kind]}:{shown}]] is none of the request's items, and no "
                "file is opened here: send its bytes in items"
            )
        if not self._left:
            raise UserError(
                f"the request shows more than {self._most} items: ask for less at a time"
            )
        self._left -= 1
        self._unused.pop(name, None)
        item = item_of(kind, sent.content(), name=sent.key, bounds=self._bounds)
        if kind == Kind.VIDEO:
            left = self._bounds.video_pixels - prod(item.size[:3])
            self._bounds = replace(self._bounds, video_pixels=left)
        return item

    def require_used(self) -> None:
        """Refuse what no prompt shows.

        Raises:
            UserError: an item is not shown; the message names it.
        """
        for name in self._unused:
            raise UserError(
                f"{self._items[name].key}: no prompt shows it: write its mark, such as "
                f"[[image:{name[:_SHOWN]}]], or leave it out"
            )
