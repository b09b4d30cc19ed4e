"""Small packages that speak, in the form of the real ones; what they say is a sound of its own."""

import gzip
import io
import subprocess
from collections.abc import Mapping
from pathlib import Path

import av
import numpy as np

from tests.sounds import saved
from tests.tools.tasks.making import keep, keep_index
from tools.media.speech import people
from tools.media.speech.programs import HELD_OUT_TIMBRES, PACKAGES
from tools.media.speech.texts import WORDS

TIMBRES = ("adam", "ed", "whisper", *HELD_OUT_TIMBRES[:2])
"""Of the stand-in; one is an effect, two are held out."""

PROMPTS = {
    **{f"digits/{number}": word for number, word in enumerate(("zero", "one", "two", "three"))},
    "digits/hundred": "hundred",
    **{f"phonetic/{word[0]}_p": word.capitalize() for word in WORDS[:5]},
    "vm-press": "Press 1, then -- after 12 seconds -- hang up.",
    "beep": "[this is a simple beep tone]",
    "letters/at": "at [@]",
    "dir-multi2": "... for ...",
}
"""Texts by name; `letters/at` and `beep` are no words."""

# The question itself, over and over, is the sound: 8 bits a letter.
_SPEAKS = """#!/bin/sh
[ "$1" = --version ] && exit
for word; do
    if [ "$last" = {flag} ]; then out=$word; else said="$said ${{word##--path*}}"; fi
    last=$word
done
{{ cat "${{0%/bin/*}}/share/{name}.wav"; yes "$said" | head -c {samples}; }} > "$out"
"""
_RATE = 22_050


def _speaker(name: str, flag: str) -> dict[str, bytes]:
    """Files of a program that speaks for a tenth of a second."""
    file = saved(np.zeros(_RATE // 10), _RATE, subtype="PCM_U8")
    head = file[: file.index(b"data") + 8]
    program = _SPEAKS.format(name=name, flag=flag, samples=_RATE // 10)
    return {f"usr/bin/{name}": program.encode(), f"usr/share/{name}.wav": head}


def g722(samples: np.ndarray) -> bytes:
    """Samples at 16 kHz as Asterisk keeps them."""
    content = io.BytesIO()
    with av.open(content, "w", format="g722") as file:
        stream = file.add_stream("g722", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples.astype(np.int16)[None], "s16", "mono")
        frame.sample_rate = 16_000
        for packet in (*stream.encode(frame), *stream.encode(None)):
            file.mux(packet)
    return content.getvalue()


def tone(hertz: float, *, silence: int = 1600) -> np.ndarray:
    """A fifth of a second, with silence on either side."""
    heard = 8000 * np.sin(2 * np.pi * hertz / 16_000 * np.arange(3200))
    return np.concatenate([np.zeros(silence), heard, np.zeros(silence)])


def keep_debian(cache: Path, name: str, files: Mapping[str, bytes]) -> Path:
    """Keep a package of Debian, built by Debian's own tool; returns its file."""
    tree = cache / f".{name}"
    texts = {"DEBIAN/control": _CONTROL.format(name=name).encode()}
    texts[f"usr/share/doc/{name}/copyright"] = f"Terms of {name}.".encode()
    for path, content in (texts | dict(files)).items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(content)
        if path.startswith("usr/bin"):
            (tree / path).chmod(0o755)
    package = cache / name / f"{name}_1.0-1_all.deb"
    package.parent.mkdir(parents=True)
    build = ["dpkg-deb", "--build", "-Znone", "--root-owner-group", str(tree), str(package)]
    subprocess.run(build, check=True, capture_output=True)
    keep(package, package.read_bytes())
    return package


_CONTROL = """\
Package: {name}
Version: 1.0-1
Architecture: all
Maintainer: A Person <a@example.org>
Description: stands in for another
"""


def keep_speech(cache: Path, *, prompts: Mapping[str, str] = PROMPTS) -> Path:
    """Keep small packages as downloads leave them."""
    keep_index(cache)
    data = "usr/lib/x86_64-linux-gnu/espeak-ng-data/voices/!v"
    for name in PACKAGES:
        files: dict[str, bytes] = {}
        if name in ("espeak-ng", "flite"):
            files |= _speaker(name, "-w" if name == "espeak-ng" else "-o")
        if name == "espeak-ng-data":
            files |= {f"{data}/{timbre}": b"voice" for timbre in TIMBRES}
        keep_debian(cache, name, files)
    lines = "; Core sounds\n" + "".join(f"{name}: {text}\n" for name, text in prompts.items())
    texts = f"usr/share/doc/{people.TEXTS}/core-sounds-en.txt.gz"
    keep_debian(cache, people.TEXTS, {texts: gzip.compress(lines.encode())})
    sounds = {
        f"usr/share/asterisk/sounds/en_US_f_Allison/{name}.g722": g722(tone(300 + 40 * number))
        for number, name in enumerate(prompts)
    }
    keep_debian(cache, people.SOUNDS, sounds)
    return cache
