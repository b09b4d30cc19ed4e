"""`python -m tools.comparison.several ARGUMENTS…`: evaluations in one process, one by one.

Each is given as one text, `tools.evaluate`'s arguments as a shell reads them. Starting a process
for each would take longer than many of them.
"""

import shlex
import sys

from tools.evaluate import main as evaluate


def main(evaluations: list[str]) -> int:
    """The exit status of the first that fails."""
    for arguments in evaluations:
        if code := evaluate(shlex.split(arguments)):
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
