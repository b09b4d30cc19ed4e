"""The page: what one shows and asks, and what a server answers; runs in `.venv/try`.

    .venv/try/bin/python tools/try_it/page.py

It is told once, as a line of JSON on standard input, and ends when that does. Knows nothing of ours
but the protocol: Gradio wants other versions than we do.
"""

import base64
import html
import json
import mimetypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Of an environment that type checks know nothing of.
import gradio as gr  # pyright: ignore[reportMissingImports]
import httpx

SUFFIXES = {
    "image": [".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"],
    "audio": [".wav", ".flac", ".mp3", ".ogg", ".opus"],
    "video": [".mp4", ".webm", ".mkv"],
}
"""Files that the page takes, by modality."""
SLOTS = ["question", "file", "modality", "slots"]
"""Columns of the table beside."""
LONG_SECONDS = 600.0
CSS = """
.gradio-container {max-width: 1240px !important}
footer, #conversation [aria-label="Share"], #conversation [title="Share"] {display: none !important}
#slots table {width: 100%; border-collapse: collapse}
#slots th, #slots td {text-align: left; padding: 4px 8px; border-bottom: 1px solid #8884}
#slots td:last-child {text-align: right}
"""


def kind_of(path: Path) -> str:
    """The modality of a file by its name; what is not known is taken for a picture."""
    return next((kind for kind, some in SUFFIXES.items() if path.suffix.lower() in some), "image")


def part(path: Path) -> dict[str, Any]:
    """A file as the protocol has it: its bytes."""
    coded = base64.b64encode(path.read_bytes()).decode()
    kind = kind_of(path)
    if kind == "audio":
        held = {"data": coded, "format": path.suffix.lower()[1:]}
        return {"type": "input_audio", "input_audio": held}
    mime = mimetypes.guess_type(path.name)[0] or f"{kind}/octet-stream"
    name = f"{kind}_url"
    return {"type": name, name: {"url": f"data:{mime};base64,{coded}"}}


class Page:
    """A page that asks one server.

    Args:
        url: of the server, with `/v1`.
        key: that it wants.
        model: name of what is asked.
    """

    def __init__(self, url: str, key: str, model: str):
        self._client = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=LONG_SECONDS,
            trust_env=False,  # no proxy for what is on this host
        )
        self._model = model
        cards = self._client.get("/models").json()["data"]
        (self._card,) = [card for card in cards if card["id"] == model]
        modalities = [name for name in self._card["input_modalities"] if name in SUFFIXES]
        self._suffixes = [suffix for name in modalities for suffix in SUFFIXES[name]]
        self._reads = ", ".join(["text", *modalities])

    def built(self) -> "gr.Blocks":
        """The page."""
        box: Any
        with gr.Blocks(title=f"{self._model}: try it", analytics_enabled=False) as page:
            gr.Markdown(f"## {self._model}\nIt reads {self._reads}. Nothing leaves this host.")
            said = gr.State([])
            with gr.Row():
                with gr.Column(scale=3):
                    chat = gr.Chatbot(
                        label="conversation",
                        height="62vh",
                        allow_file_downloads=False,
                        render_markdown=False,  # what a model says is text
                        buttons=["copy"],
                        elem_id="conversation",
                    )
                    told = gr.Markdown(elem_id="told")
                    if self._suffixes:
                        box = gr.MultimodalTextbox(
                            show_label=False,
                            placeholder=f"Ask; files show it something ({self._reads})",
                            file_types=self._suffixes,
                            file_count="multiple",
                            sources=["upload"],
                            elem_id="question",
                        )
                    else:
                        box = gr.Textbox(
                            show_label=False, placeholder="Ask", submit_btn=True, elem_id="question"
                        )
                with gr.Column(scale=1, min_width=320):
                    slots = gr.HTML(table([]), elem_id="slots")
                    read = gr.Markdown(elem_id="read")
                    paragraph = gr.Checkbox(
                        True, label="an answer ends with its paragraph", elem_id="paragraph"
                    )
                    most = gr.Slider(
                        1, self._card["max_model_len"], 64, step=1, label="tokens at most"
                    )
                    heat = gr.Slider(0, 2, 0, step=0.05, label="temperature (0: the likeliest)")
                    anew = gr.Button("Begin anew", elem_id="anew")
            settings = [paragraph, most, heat]
            box.submit(
                self.ask,
                [box, said, *settings],
                [box, chat, told, slots, read, said],
                concurrency_limit=8,
                api_visibility="private",
            )
            for begins in (anew.click, chat.clear):
                begins(
                    lambda: (None, [], "", table([]), "", []),
                    None,
                    [box, chat, told, slots, read, said],
                    api_visibility="private",
                )
        return page

    def ask(
        self, given: Any, said: list[Any], paragraph: bool, most: int, heat: float
    ) -> Iterator[tuple[Any, ...]]:
        """What the page shows while an answer comes: all messages of before are sent again."""
        if isinstance(given, str):
            given = {"text": given, "files": []}
        question = {
            "role": "user", "text": given.get("text") or "", "files": list(given["files"] or []),
        }  # fmt: skip
        messages = [*said, question]
        answer, usage, fault = "", {}, None
        yield gr.skip(), shown(messages), "", gr.skip(), gr.skip(), said
        for piece in self._pieces(messages, paragraph, most, heat):
            if isinstance(piece, str):
                answer += piece
                now = [*messages, {"role": "assistant", "text": answer}]
                yield gr.skip(), shown(now), "", gr.skip(), gr.skip(), said
            elif "error" in piece:
                fault = piece["error"]["message"]
            else:
                usage = piece
        if fault is not None:
            # What was asked stays in the box, to be mended.
            yield gr.skip(), shown(said), f"**Refused:** {plain(fault)}", gr.skip(), gr.skip(), said
            return
        said = [*messages, {"role": "assistant", "text": answer}]
        read = f"{usage['prompt_tokens']} slots were read, {usage['completion_tokens']} written."
        yield None, shown(said), "", table(slots_of(said, usage)), read, said

    def _pieces(
        self, messages: list[Any], paragraph: bool, most: int, heat: float
    ) -> Iterator[str | dict[str, Any]]:
        """Pieces of an answer, and in the end its usage; or what went wrong."""
        body = {
            "model": self._model,
            "messages": [sent(message) for message in messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": heat,
            "max_tokens": most,
            **({"stop": "\n\n"} if paragraph else {}),
        }
        try:
            with self._client.stream("POST", "/chat/completions", json=body) as reply:
                if reply.status_code != 200:
                    reply.read()
                    yield reply.json()
                    return
                for line in reply.iter_lines():
                    told = line.removeprefix("data: ")
                    if not told or told == "[DONE]":
                        continue
                    piece = json.loads(told)
                    if "error" in piece:
                        yield piece
                        return
                    for choice in piece["choices"]:
                        yield choice["delta"]["content"]
                    if "usage" in piece:
                        yield piece["usage"]
        except httpx.HTTPError as error:
            yield {"error": {"message": f"the server does not answer ({error})"}}


def slots_of(messages: list[Any], usage: dict[str, Any]) -> list[list[Any]]:
    """Of each item the question it came with, its file, its modality and its slots."""
    rows: list[list[Any]] = []
    for each in usage.get("item_slots", ()):
        _, message, _, place = each["item"].split(".")
        file = Path(messages[int(message)]["files"][int(place)]).name
        rows.append([int(message) // 2 + 1, file, each["modality"], each["slots"]])
    return rows


def table(rows: list[list[Any]]) -> str:
    """Rows for eyes, in which nothing is markup."""
    lines = ["".join(f"<th>{name}</th>" for name in SLOTS)]
    lines += ["".join(f"<td>{html.escape(str(each))}</td>" for each in row) for row in rows]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def sent(message: dict[str, Any]) -> dict[str, Any]:
    """A message of the page as the protocol has it: files first, then what is asked of them."""
    parts = [part(Path(file)) for file in message.get("files", ())]
    text = {"type": "text", "text": message["text"]}
    return {"role": message["role"], "content": [*parts, *([text] if message["text"] else [])]}


def shown(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages as the page shows them."""
    found: list[dict[str, Any]] = []
    for message in messages:
        role = message["role"]
        found += [{"role": role, "content": view(file)} for file in message.get("files", ())]
        if message["text"]:
            found.append({"role": role, "content": message["text"]})
    return found


def view(file: str) -> Any:
    """What shows a file, without a button that would send it to others."""
    kind = kind_of(Path(file))
    if kind == "audio":
        return gr.Audio(file, buttons=[], interactive=False, show_label=False)
    if kind == "video":
        return gr.Video(file, buttons=[], interactive=False, show_label=False, height=160)
    return gr.Image(file, buttons=[], interactive=False, show_label=False, height=160)


def plain(text: str) -> str:
    """A text in which nothing is markup."""
    return "".join(f"\\{sign}" if sign in r"\`*_{}[]()<>#+-.!|~$&" else sign for sign in text)


def main() -> None:
    """Serves until whoever started it has ended."""
    told = json.loads(sys.stdin.readline())
    # Whoever started it reads the one line only; what else is printed would fill the pipe.
    ready = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    page = Page(told["url"], told["key"], told["model"]).built()
    # Fonts of the system: others would be fetched from elsewhere.
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    page.launch(
        server_name="127.0.0.1",
        server_port=told["port"],
        prevent_thread_lock=True,
        share=False,
        inbrowser=False,
        quiet=True,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        max_file_size=told["most_file_bytes"],
        theme=theme,
        css=CSS,
    )
    ready.write("ready\n")
    ready.close()
    sys.stdin.read()
    page.close(verbose=False)


if __name__ == "__main__":
    main()
