"""Says what `python -m tools.shards` is called now."""

import shlex
import sys

if __name__ == "__main__":
    sys.stderr.write(
        "error: tools.shards is part of tools.corpus now: type python -m tools.corpus "
        f"{shlex.join(sys.argv[1:])}\n"
    )
    sys.exit(2)
