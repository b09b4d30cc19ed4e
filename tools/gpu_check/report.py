"""`gpu.json` as it grows, and a page of it that needs nothing beside it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tools.bench.gpu import METALM
from tools.command import write_json
from tools.gpu_check.parity import TINY
from tools.gpu_check.targets import targets
from train.storage.place import Place
from train.watch.report import Number, render_page

SINGLE: Final = (
    *("device", "versions", "matmul_tflops", "copy_tbps"),
    *("train_tokens_per_second", "resumed_equal"),
)
LISTS: Final = ("parity", "rows", "targets")

TABLES: Final = {
    "targets": ("Targets", {"what": "{}", "found": "{:.3g}", "at least": "{:g}", "at most": "{:g}",
                            "is met": "{}"}),
    "rows": ("Speed", {"case": "{}", "levers off": "{}", "sequences": "{}", "microbatches": "{}",
                       "ms": "{:,.1f}", "tokens per second": "{:,.0f}", "mfu": "{:.1%}",
                       "gib": "{:.1f}", "host ms": "{:,.1f}", "syncs": "{:g}"}),
    "parity": ("Parity with a CPU", {"case": "{}", "loss off": "{:.1e}", "norm off": "{:.1e}",
                                     "tolerance": "{:.0e}", "is equal": "{}", "fault": "{}"}),
}  # fmt: skip
"""Of each list its title, and how its columns are written."""


@dataclass
class Report:
    """What was found so far.

    Attributes:
        out: file to write; the page lies beside it.
        is_tiny: whether all is of the tiny model.
        found: what stands in the file.
        launch_seconds: to the first step, with an empty compile cache and with a filled one.
        remarks: sentences for the page.
        failures: name of a part and why it failed.
    """

    out: Path
    is_tiny: bool = False
    found: dict[str, Any] = field(
        default_factory=lambda: dict.fromkeys(SINGLE) | {name: [] for name in LISTS}
    )
    launch_seconds: list[float] = field(default_factory=list[float])
    remarks: list[str] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)

    @property
    def page(self) -> Path:
        """Where the page lies."""
        return self.out.with_suffix(".html")

    def write(self) -> None:
        """Write file and page as they stand."""
        files = [str(TINY)] if self.is_tiny else METALM
        self.found["targets"] = targets(self.found, self.launch_seconds, files=files)
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
                (title, list(columns), [cells(row, columns) for row in found[name]])
                for name, (title, columns) in TABLES.items()
            ],
            failures=self.failures,
        )

    def _ablation(self) -> list[tuple[str, float, str]]:
        """Milliseconds that a step takes longer without a lever: name, share of most, in words."""
        rows = [row for row in self.found["rows"] if row["case"].startswith("ablation")]
        whole = {row["sequences"]: row["ms"] for row in rows if not row["levers_off"]}
        lost = [
            (row["levers_off"][0], row["ms"] - base, base)
            for row in rows
            if row["levers_off"] and row["ms"] and (base := whole.get(row["sequences"]))
        ]
        most = max((abs(ms) for _, ms, _ in lost), default=1.0) or 1.0
        return [
            (name, max(0.0, ms / most), f"{ms:+.1f} ms, {ms / base:+.1%}")
            for name, ms, base in lost
        ]


def said(value: Any, form: str) -> str:
    """A value in a form, a dash for what there is not."""
    value = ", ".join(value) if isinstance(value, list) else value
    return "–" if value in (None, "") else form.format(value)


def cells(row: dict[str, Any], columns: dict[str, str]) -> list[str]:
    """A row of a table, its keys being the columns' names."""
    return [said(row[name.replace(" ", "_")], form) for name, form in columns.items()]
