"""`gpu.json` as it grows, and a page of it that needs nothing beside it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tools.command import write_json
from train.storage.place import Place
from train.watch.report import Number, render_page

KEYS: Final = (
    "device",
    "versions",
    "matmul_tflops",
    "copy_tbps",
    "parity",
    "rows",
    "train_tokens_per_second",
    "resumed_equal",
)
PARITY: Final = ("case", "loss off by", "norm off by", "may be off by", "")
SPEED: Final = (
    *("case", "off", "sequences", "microbatches", "ms"),
    *("tokens/s", "MFU", "GiB", "host ms", "waits"),
)


@dataclass
class Report:
    """What was found so far.

    Attributes:
        out: file to write; the page lies beside it.
        found: by the keys of `KEYS`.
        remarks: sentences for the page.
        failures: name of a part and why it failed.
    """

    out: Path
    found: dict[str, Any] = field(
        default_factory=lambda: dict.fromkeys(KEYS) | {"parity": [], "rows": []}
    )
    remarks: list[str] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)

    @property
    def page(self) -> Path:
        """Where the page lies."""
        return self.out.with_suffix(".html")

    def write(self) -> None:
        """Write file and page as they stand."""
        write_json(self.out, self.found)
        Place.of(self.page).write(self._page().encode())

    def _page(self) -> str:
        found, parity = self.found, self.found["parity"]
        fastest = max((row["tokens_per_second"] or 0 for row in found["rows"]), default=0)
        equal = sum(row["is_equal"] for row in parity)
        numbers = [
            Number("Matrix product", said(found["matmul_tflops"], "{:,.0f} TFLOP/s"), "bf16"),
            Number("Copy", said(found["copy_tbps"], "{:.2f} TB/s"), "read and written"),
            Number("Parity", f"{equal} of {len(parity)}", "ways give the CPU's losses"),
            Number("Fastest", said(fastest or None, "{:,.0f}"), "tokens a second"),
            Number(
                "A real run",
                said(found["train_tokens_per_second"], "{:,.0f}"),
                "tokens a second, python -m train",
            ),
            Number("Gone on with", said(found["resumed_equal"], "{}"), "equal losses"),
        ]
        versions = ", ".join(f"{name} {value}" for name, value in (found["versions"] or {}).items())
        return render_page(
            Path(__file__).with_name("gpu.html.jinja"),
            title=found["device"] or "GPU check",
            facts=[versions, *self.remarks],
            numbers=numbers,
            ablation=self._ablation(),
            tables=[
                ("Speed", SPEED, [speed_cells(row) for row in found["rows"]]),
                ("Parity with a CPU", PARITY, [parity_cells(row) for row in parity]),
            ],
            failures=self.failures,
        )

    def _ablation(self) -> list[tuple[str, float, str]]:
        """Milliseconds that a step takes longer without a lever: name, share of most, in words."""
        ablated = [row for row in self.found["rows"] if row["case"].startswith("ablation")]
        whole = next((row["ms"] for row in ablated if not row["levers_off"]), None)
        lost = [
            (row["levers_off"][0], row["ms"] - whole)
            for row in ablated
            if whole and row["ms"] and len(row["levers_off"]) == 1
        ]
        most = max((abs(ms) for _, ms in lost), default=1.0) or 1.0
        return [
            (name, max(0.0, ms / most), f"{ms:+.1f} ms, {ms / (whole or 1):+.1%}")
            for name, ms in lost
        ]


def said(value: Any, form: str) -> str:
    """A value in a form, a dash for None."""
    return "–" if value is None else form.format(value)


def speed_cells(row: dict[str, Any]) -> list[str]:
    """A row of speed as cells of a table."""
    return [
        row["case"],
        ", ".join(row["levers_off"]) or "–",
        said(row["sequences"], "{}"),
        said(row["microbatches"], "{}"),
        said(row["ms"], "{:,.1f}"),
        said(row["tokens_per_second"], "{:,.0f}"),
        said(row["mfu"], "{:.1%}"),
        said(row["gib"], "{:.1f}"),
        said(row["host_ms"], "{:,.1f}"),
        said(row["syncs"], "{:g}"),
    ]


def parity_cells(row: dict[str, Any]) -> Sequence[str]:
    """A row of parity as cells of a table."""
    return [
        row["case"],
        said(row["loss_off"], "{:.1e}"),
        said(row["norm_off"], "{:.1e}"),
        said(row["tolerance"], "{:.0e}"),
        "equal" if row["is_equal"] else row["fault"] or "differs",
    ]
