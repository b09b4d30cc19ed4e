"""`python -m tools.offline_bundle OUT`: what a machine without network needs to run this project.

Wheels for its Python and platform in the versions of constraints.txt, the code of the last commit
and a corpus, in at most 60 MB. There: `python3 OUT/enter.py DIRECTORY python -m tools.gpu_check`.
Taken for granted are torch, transformers and what these need, PyArrow and Pillow.
"""

import base64
import csv
import gzip
import hashlib
import io
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

from tools.arguments import Parser, local_path
from tools.command import command_line
from train.errors import UserError

REPOSITORY: Final = Path(__file__).parents[2]
MOST_BYTES: Final = 60_000_000
PLATFORMS: Final = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")

NEEDED: Final = (
    *("annotated-types", "backports.zstd", "boto3", "botocore", "brotli", "catalogue", "cramjam"),
    *("einops", "hjson", "jaxtyping", "jmespath", "Jinja2", "markdown-it-py"),
    *("MarkupSafe", "mdurl", "megatron-core", "mosaicml-streaming", "msgpack", "peft"),
    *("platformdirs", "psutil", "py-cpuinfo", "pydantic", "pydantic_core", "Pygments"),
    *("python-dateutil", "python-snappy", "rich", "s3transfer", "six", "typing-inspection"),
    *("typing_extensions", "wadler_lindig", "xxhash", "accelerate", "beartype", "hypothesis"),
    *("iniconfig", "pluggy", "pytest", "pytest-timeout", "sortedcontainers", "requests"),
    *("urllib3", "certifi", "idna", "charset-normalizer"),
)
"""Packages that training, its tools and the tests of GPUs import."""

AS_THEY_COME: Final = ("zstd",)
"""Of whose pinned version the index has sources alone."""

WITHOUT_WHEELS: Final = ("deepspeed",)
"""Pure Python, of which the index has sources alone: packed from what is installed here."""


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
    """Write the bundle, and say how large it is."""
    parser = Parser(prog="python -m tools.offline_bundle", description=__doc__)
    parser.add_argument("out", type=local_path, metavar="OUT", help="directory; replaced")
    parser.add_argument("--python", default="3.12", help="version there (default %(default)s)")
    parser.add_argument("--machine", default="x86_64", help="default %(default)s")
    parser.add_argument("--corpus", type=local_path, help="directory that tools.corpus wrote")
    options = parser.parse_args(arguments)
    out: Path = options.out
    if out.exists() and not (out / "enter.py").exists():
        raise UserError(f"{out} is there and is no bundle: name another directory")
    if options.corpus is not None and not (options.corpus / "train").is_dir():
        raise UserError(f"{options.corpus} is no corpus: name a directory that tools.corpus wrote")
    code = archived()
    shutil.rmtree(out, ignore_errors=True)
    (out / "wheels").mkdir(parents=True)
    shutil.copyfile(Path(__file__).with_name("enter.py"), out / "enter.py")
    (out / "code.tar.gz").write_bytes(code)
    if options.corpus is not None:
        with tarfile.open(out / "corpus.tar.gz", "w:gz") as archive:
            archive.add(options.corpus, arcname="data/pretrain")
    for name in WITHOUT_WHEELS:
        pack(name, out / "wheels")
    pack_ourselves(out / "wheels")
    download(pinned(), out / "wheels", python=options.python, machine=options.machine)
    files = sorted((path for path in out.rglob("*") if path.is_file()), key=size)
    total = sum(map(size, files))
    largest = ", ".join(f"{path.name} {size(path) / 1e6:.1f} MB" for path in files[-4:])
    if total > MOST_BYTES:
        raise UserError(
            f"{out} has {total / 1e6:.1f} MB, more than {MOST_BYTES / 1e6:.0f}: take a smaller "
            f"--corpus; its largest files are {largest}"
        )
    sys.stdout.write(f"{out}: {total / 1e6:.1f} MB in {len(files)} files; largest: {largest}\n")


def size(path: Path) -> int:
    """Bytes of a file."""
    return path.stat().st_size


def archived() -> bytes:
    """The code of the last commit.

    Raises:
        UserError: this is no checkout.
    """
    git = ["git", "-C", str(REPOSITORY), "archive", "HEAD"]
    try:
        done = subprocess.run(git, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        told = getattr(error, "stderr", b"").decode() or str(error)
        raise UserError(
            f"the code cannot be archived ({told.strip()}): call this from a checkout of it"
        ) from None
    return gzip.compress(done.stdout)


def pinned() -> list[str]:
    """The needed packages, in the versions of constraints.txt where these have wheels."""
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pins = {canonical(line.split("==")[0]): line for line in lines if "==" in line}
    return [*(pins[canonical(name)] for name in NEEDED), *AS_THEY_COME]


def canonical(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def download(pins: Sequence[str], directory: Path, *, python: str, machine: str) -> None:
    """Wheels of these packages for another Python.

    Raises:
        UserError: the index has none, or does not answer.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}"]
    command += [f"--platform={platform}_{machine}" for platform in PLATFORMS]
    done = subprocess.run(
        [*command, "--dest", str(directory), *pins], capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        told = lines[-1] if lines else done.stderr.strip()
        raise UserError(f"the wheels cannot be downloaded: {told}; look at --python and --machine")


def pack(name: str, directory: Path) -> None:
    """A wheel of an installed package of pure Python."""
    found = metadata.distribution(name)
    contents = {
        str(file): Path(str(file.locate())).read_bytes()
        for file in found.files or []
        if not str(file).startswith("..") and "__pycache__" not in str(file)
    }
    write_wheel(name, found.version, contents, directory)


def pack_ourselves(directory: Path) -> None:
    """A wheel that tells the version of this project, whose code lies beside it."""
    version = metadata.version("semicausal")
    told = f"Metadata-Version: 2.1\nName: semicausal\nVersion: {version}\n"
    contents = {f"semicausal-{version}.dist-info/METADATA": told.encode()}
    write_wheel("semicausal", version, contents, directory)


def write_wheel(name: str, version: str, contents: dict[str, bytes], directory: Path) -> None:
    """A wheel for any machine; its list of files and its tags are written anew."""
    info = f"{name}-{version}.dist-info"
    contents = {path: content for path, content in contents.items() if path != f"{info}/RECORD"}
    wheel = "Wheel-Version: 1.0\nGenerator: semicausal\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    contents[f"{info}/WHEEL"] = wheel.encode()
    record = io.StringIO()
    rows = csv.writer(record, lineterminator="\n")
    for path, content in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        rows.writerow([path, f"sha256={digest}", len(content)])
    rows.writerow([f"{info}/RECORD", "", ""])
    contents[f"{info}/RECORD"] = record.getvalue().encode()
    path = directory / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name_in_it, content in contents.items():
            archive.writestr(name_in_it, content)


if __name__ == "__main__":
    sys.exit(main())
