"""A live server of W&B's protocol on loopback; runs in `.venv/openwandb`, not in ours.

    .venv/openwandb/bin/python openwandb_server.py DIRECTORY PORT

openwandb keeps every row that it is sent, but does not say to a run that resumes how far it has
come, nor take alerts, nor puts rows that are sent again, at the same offset, in the place of those
that it has. W&B does all of this, and so does it here.
"""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

DIRECTORY, PORT = Path(sys.argv[1]), int(sys.argv[2])
os.environ |= {
    "OPENWANDB_DATA_DIR": str(DIRECTORY),
    "OPENWANDB_HOST": "127.0.0.1",
    "OPENWANDB_PORT": str(PORT),
    "OPENWANDB_BASE_URL": f"http://127.0.0.1:{PORT}",
}

import uvicorn  # noqa: E402  # its settings come first

# Of an environment that type checks know nothing of.
from openwandb import (  # noqa: E402  # pyright: ignore[reportMissingImports]
    file_stream,
    graphql_schema,
    server,
    storage,
)
from starlette.requests import Request  # noqa: E402
from starlette.responses import JSONResponse, Response  # noqa: E402

run_to_type: Any = graphql_schema._run_to_type


def with_its_history(run: dict[str, Any]) -> Any:
    """What is told of a run, with the number of its rows and the last of them."""
    told = run_to_type(run)
    name = "wandb-history.jsonl"
    content = storage.read_file(told._entity_name, told._project_name, told.name, name)
    rows = [] if content is None else [line for line in content.decode().splitlines() if line]
    told.history_line_count = len(rows)
    told.history_tail = json.dumps(rows[-1:])
    told.events_tail = json.dumps([])
    # wandb resumes a run whose configuration has telemetry, that is one that has begun.
    told._config_json = json.dumps({"t": 1, **json.loads(told._config_json)})
    return told


graphql_schema._run_to_type = with_its_history


process_file_stream: Any = file_stream.process_file_stream
writing = threading.Lock()


def at_their_offset(entity: str, project: str, run_id: str, payload: Any, **options: Any) -> Any:
    """Take what a service sends, each row of a history in its place."""
    name = "wandb-history.jsonl"
    sent = payload.get("files", {}).get(name)
    with writing:
        before = storage.read_file(entity, project, run_id, name) or b""
        answer = process_file_stream(entity, project, run_id, payload, **options)
        if sent is not None:
            rows, first = before.decode().splitlines(), sent.get("offset", 0)
            rows[first : first + len(sent["content"])] = sent["content"]
            place = storage.get_run_files_dir(entity, project, run_id) / name
            place.write_text("".join(f"{row}\n" for row in rows))
    return answer


file_stream.process_file_stream = at_their_offset


async def with_alerts(request: Request, answer: Any) -> Response:
    """Keep alerts; all else is openwandb's to answer."""
    if request.url.path == "/graphql":
        asked = await request.json()
        if "notifyScriptableRunAlert" in asked["query"]:
            with (DIRECTORY / "alerts.jsonl").open("a") as file:
                file.write(json.dumps(asked["variables"]) + "\n")
            return JSONResponse({"data": {"notifyScriptableRunAlert": {"success": True}}})
    return await answer(request)


server.app.middleware("http")(with_alerts)


def end_with_the_tests() -> None:
    """End once whoever started this has ended, in whatever way."""
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=end_with_the_tests, daemon=True).start()
    uvicorn.run(server.app, host="127.0.0.1", port=PORT, log_level="warning")
