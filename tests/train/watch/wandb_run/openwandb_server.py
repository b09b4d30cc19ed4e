"""A live server of W&B's protocol on loopback; runs in `.venv/openwandb`, not in ours.

    .venv/openwandb/bin/python openwandb_server.py DIRECTORY PORT

openwandb keeps every row that it is sent, but does not say to a run that resumes how far it has
come, nor take alerts. W&B does both, and so does it here.
"""

import json
import os
import sys
from pathlib import Path

DIRECTORY, PORT = Path(sys.argv[1]), int(sys.argv[2])
os.environ |= {
    "OPENWANDB_DATA_DIR": str(DIRECTORY),
    "OPENWANDB_HOST": "127.0.0.1",
    "OPENWANDB_PORT": str(PORT),
    "OPENWANDB_BASE_URL": f"http://127.0.0.1:{PORT}",
}

import uvicorn  # noqa: E402  # of openwandb's environment, as the next
from openwandb import graphql_schema, storage  # noqa: E402

run_to_type = graphql_schema._run_to_type


def with_its_history(run: dict) -> graphql_schema.RunType:
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

if __name__ == "__main__":
    uvicorn.run("openwandb.server:app", host="127.0.0.1", port=PORT, log_level="warning")
