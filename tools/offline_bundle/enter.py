"""`python3 enter.py DIRECTORY [COMMAND…]`: unpack this bundle there, and run a command in it.

It lies beside the wheels and the code of a bundle that `python -m tools.offline_bundle` made. It
needs Python with pip, torch and transformers, and no network. A package that is installed in the
bundle's version or a later one stays as it is.
"""

import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

BUNDLE = Path(__file__).resolve().parent
TOGETHER = ({"pydantic", "pydantic_core"}, {"boto3", "botocore", "s3transfer"})
"""Packages of which a version goes with one version of the others."""


def main(arguments: list[str]) -> int:
    """Unpack what is not there yet; the exit status of the command."""
    if not arguments or arguments[0].startswith("-"):
        sys.stderr.write(f"{__doc__}")
        return 2
    directory = Path(arguments[0]).absolute()
    project, site = directory / "project", directory / "site"
    if not (directory / "entered").exists():
        for archive in BUNDLE.glob("*.tar.gz"):
            with tarfile.open(archive) as opened:
                opened.extractall(project, filter="data")
        site.mkdir(parents=True, exist_ok=True)
        if wheels := wanted():
            install = ["install", "--quiet", "--no-index", "--no-deps", "--target", str(site)]
            subprocess.run([sys.executable, "-m", "pip", *install, *map(str, wheels)], check=True)
        (directory / "entered").touch()
    paths = [str(project), str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    command = arguments[1:]
    if not command:
        told = f"cd {project} && PYTHONPATH={environment['PYTHONPATH']} python3 -m tools.gpu_check"
        sys.stdout.write(f"{told}\n")
        return 0
    if command[0] == "python":
        command[0] = sys.executable
    return subprocess.run(command, cwd=project, env=environment, check=False).returncode


def wanted() -> list[Path]:
    """The wheels of packages that are not installed, or are older."""
    wheels = {path.name.split("-")[0].lower(): path for path in sorted(BUNDLE.glob("wheels/*.whl"))}
    missing = {name for name, path in wheels.items() if is_older(name, path.name.split("-")[1])}
    for group in TOGETHER:
        if group & missing:
            missing |= group & set(wheels)
    return [wheels[name] for name in sorted(missing)]


def is_older(name: str, version: str) -> bool:
    """Whether what is installed of a package is older than a version, or nothing."""
    try:
        installed = metadata.version(name)
    except metadata.PackageNotFoundError:
        return True
    return list(numbers(installed)) < list(numbers(version))


def numbers(version: str) -> Iterator[int]:
    """The numbers of a version, up to the first part that is none."""
    for part in version.split("+")[0].split("."):
        if not part.isdigit():
            return
        yield int(part)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
