"""Shows what it is told on standard input, a JSON object a line; runs in `.venv/dashboard`.

    .venv/dashboard/bin/python tools/dashboard/shown.py PROJECT PORT

Ends when its standard input does. Knows nothing of ours: trackio wants other versions.
"""

import json
import os
import sys
from typing import Any

# Of an environment that type checks know nothing of.
import trackio  # pyright: ignore[reportMissingImports]
from trackio.sqlite_storage import SQLiteStorage  # pyright: ignore[reportMissingImports]


def take(project: str, told: dict[str, Any]) -> None:
    """Brings a run's news to where the browser's questions are answered from."""
    run = told["run"]
    if told.get("anew"):
        SQLiteStorage.delete_run(project, run)
    if rows := told.get("rows"):
        SQLiteStorage.bulk_log(
            project,
            run,
            [row["values"] | said(row["samples"]) for row in rows],
            steps=[row["step"] for row in rows],
            timestamps=[row["time"] for row in rows],
            config=told.get("config"),
        )
    if hardware := told.get("hardware"):
        SQLiteStorage.bulk_log_system(
            project,
            run,
            [each["values"] for each in hardware],
            timestamps=[each["time"] for each in hardware],
        )
    if alerts := told.get("alerts"):
        SQLiteStorage.bulk_alert(
            project,
            run,
            *(
                [alert[name] for alert in alerts]
                for name in ("title", "text", "level", "step", "time")
            ),
        )


def said(samples: str) -> dict[str, Any]:
    """The model's own words, as a page of its own shows them."""
    return {"samples": trackio.Markdown(samples)._to_dict()} if samples else {}


def main() -> None:
    """Serves until nobody tells any more."""
    project, port = sys.argv[1], int(sys.argv[2])
    # Whoever started it reads the one line only; what else is printed would fill the pipe.
    ready = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    SQLiteStorage.init_db(project)
    trackio.show(project, open_browser=False, block_thread=False, share=False, server_port=port)
    ready.write("ready\n")
    ready.close()
    for line in sys.stdin:
        take(project, json.loads(line))


if __name__ == "__main__":
    main()
