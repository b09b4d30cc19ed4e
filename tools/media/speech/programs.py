"""Programs that speak: Debian's espeak-ng and flite, run without being installed."""

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

from tools.packages import debian
from tools.packages.kept import last_line
from tools.packages.used import Packages
from train.errors import DataError

TO_TRAIN: Final = "espeak-ng"
HELD_OUT: Final = "flite"
"""Of whose voices none is trained on."""

PACKAGES: Final = {
    "espeak-ng": "GPL-3.0-or-later",
    "libespeak-ng1": "GPL-3.0-or-later",
    "espeak-ng-data": "GPL-3.0-or-later",
    "libpcaudio0": "GPL-3.0-or-later",
    "libsonic0": "Apache-2.0",
    "flite": "BSD-3-Clause",
    "libflite1": "BSD-3-Clause",
}
"""With the licences of the programs; what they say is under that of the text."""

ACCENTS: Final = (
    *("en", "en-029", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-gb-x-rp"),
    *("en-us", "en-us-nyc"),
)
HELD_OUT_TIMBRES: Final = (
    *("Andrea", "Denis", "Lee", "belinda", "f2", "f4", "grandpa", "linda", "m3", "m7"),
    *("max", "victor"),
)
"""Of espeak-ng, in any accent."""
_EFFECTS: Final = re.compile(r"robo|whisper|demonic|croak|fast|tweaky|storm| ", re.IGNORECASE)
"""Timbres that are no person's, or are another timbre changed."""
FLITE_VOICES: Final = ("awb", "kal", "kal16", "rms", "slt")

_LIBRARIES: Final = "usr/lib/*-linux-gnu*"
_TIMEOUT_SECONDS: Final = 60.0


@dataclass(frozen=True, kw_only=True)
class Voice:
    """Who speaks.

    Attributes:
        engine: program, or `people`.
        name: of the voice: of espeak-ng accent and timbre, `en-us+f3`.
    """

    engine: str
    name: str


class Programs:
    """Both programs, unpacked for as long as they are needed.

    Args:
        packages: gives their packages.

    Raises:
        DataError: a package cannot be had or is damaged, or a program does not run here.
    """

    def __init__(self, packages: Packages):
        self._scratch = tempfile.TemporaryDirectory()
        try:
            self._root = Path(self._scratch.name)
            self._unpack(packages, PACKAGES)
            if not self._starts():
                # Both can play what they say, which takes libraries that a machine may lack.
                names = debian.lacking([*PACKAGES], cache=packages.cache, report=packages.report)
                self._unpack(packages, {name: "" for name in names if name not in PACKAGES})
        except BaseException:
            self._scratch.cleanup()
            raise

    def __enter__(self) -> "Programs":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._scratch.cleanup()

    def voices(self, *, held_out: bool) -> list[Voice]:
        """Voices of espeak-ng, those of all accents with a timbre that is held out, or is not."""
        timbres = sorted(path.name for path in self._data.glob("voices/!v/*"))
        return [
            Voice(engine=TO_TRAIN, name=f"{accent}+{timbre}")
            for timbre in timbres
            if not _EFFECTS.search(timbre) and (timbre in HELD_OUT_TIMBRES) == held_out
            for accent in ACCENTS
        ]

    def speak(self, voice: Voice, text: str, *, pace: float, pitch: float) -> bytes:
        """What a voice makes of a text, as WAV.

        Args:
            voice: who speaks.
            text: in ASCII.
            pace: from 0 to 1, slow to fast.
            pitch: from 0 to 1, low to high.

        Raises:
            DataError: the program fails.
        """
        out = self._root / "said.wav"
        out.unlink(missing_ok=True)
        if voice.engine == TO_TRAIN:
            speed, height = round(130 + 70 * pace), round(30 + 40 * pitch)
            how = [f"--path={self._data.parent}", "-v", voice.name, "-s", f"{speed}"]
            done = self._run("espeak-ng", [*how, "-p", f"{height}", "-w", str(out), text])
        else:
            stretch = f"duration_stretch={1.25 - 0.4 * pace:.3f}"
            how = ["-voice", voice.name, "--setf", stretch, "-o", str(out)]
            done = self._run("flite", [*how, "-t", text])
        if done.returncode or not out.is_file():
            raise DataError(
                f"{voice.engine} does not speak as {voice.name} ({last_line(done.stderr)}): delete "
                "its package from the cache, and build again"
            )
        return out.read_bytes()

    @property
    def _data(self) -> Path:
        [found] = self._root.glob(f"{_LIBRARIES}/espeak-ng-data")
        return found

    def _unpack(self, packages: Packages, names: Mapping[str, str]) -> None:
        with tempfile.TemporaryDirectory() as lists:
            for name, licence in names.items():
                package = packages.debian(
                    name, licences=[licence] if licence else (), lists=Path(lists)
                )
                debian.unpack(package, self._root)

    def _starts(self) -> bool:
        asked = (self._run("espeak-ng", ["--version"]), self._run("flite", ["--version"]))
        return not any("shared librar" in done.stderr for done in asked)

    def _run(self, program: str, options: Sequence[str]) -> subprocess.CompletedProcess[str]:
        libraries = ":".join(str(path) for path in self._root.glob(_LIBRARIES))
        try:
            return subprocess.run(
                [self._root / "usr/bin" / program, *options],
                env={**os.environ, "LC_ALL": "C", "LD_LIBRARY_PATH": libraries},
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_SECONDS,
                stdin=subprocess.DEVNULL,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DataError(
                f"{program} does not run here ({error}): delete its package from the cache, and "
                "build again"
            ) from error
