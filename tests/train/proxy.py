"""nginx in front of an S3 server, which sends slowly."""

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Generator
from pathlib import Path

CONFIGURATION = """
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass {endpoint};
            # What the client signed.
            proxy_set_header Host $http_host;
            proxy_http_version 1.1;
            proxy_max_temp_file_size 0;
            limit_rate {bytes_per_second};
        }}
    }}
}}
"""


@contextlib.contextmanager
def slow_proxy(directory: Path, endpoint: str, *, bytes_per_second: int) -> Generator[str]:
    """The URL at which a store answers with so many bytes a second, on each connection."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    assert program is not None, "nginx is not installed: apt-get install nginx-light"
    directory.mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    configuration = directory / "nginx.conf"
    configuration.write_text(
        CONFIGURATION.format(
            directory=directory, port=port, endpoint=endpoint, bytes_per_second=bytes_per_second
        )
    )
    process = subprocess.Popen([program, "-p", directory, "-c", configuration])
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None, (directory / "error.log").read_text()
            assert time.monotonic() < deadline, "nginx does not listen"
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(10)
