"""What came out, for people: a table like the paper's, and what it cost, in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, Final

_NONE: Final = "–"


def page(document: Mapping[str, Any]) -> str:
    """The tables of a comparison.

    Args:
        document: what `python -m tools.comparison` writes.
    """
    return f"{_scores(document)}\n\n{_costs(document)}\n"


def _scores(document: Mapping[str, Any]) -> str:
    """Means over seeds, and differences from the first arm."""
    arms: list[str] = document["arms"]
    first, *others = arms
    titles = ["protocol", "cluster", "majority", *arms]
    titles += [f"{arm} − {first} [95 %], could be seen" for arm in others]
    lines: list[list[str]] = []
    found = {
        (row["protocol"], row["demonstrations"], row["cluster"], row["arm"], row["against"]): row
        for row in document["differences"]
    }
    for protocol, shown, cluster in dict.fromkeys(key[:3] for key in found):
        name = protocol if protocol != "in_context" else f"{protocol}, k = {shown}"
        scores = [
            _score(document["rows"], protocol=protocol, shown=shown, cluster=cluster, arm=arm)
            for arm in arms
        ]
        seen = [found[protocol, shown, cluster, arm, first] for arm in others]
        lines.append([name, cluster, f"{100 * seen[0]['majority']:.1f}"])
        lines[-1] += [f"{100 * score:.1f}" for score in scores]
        lines[-1] += [_difference(row, scale=100, digits=1) for row in seen]
    return _table(titles, lines)


def _score(
    rows: Iterable[Mapping[str, Any]], *, protocol: str, shown: int, cluster: str, arm: str
) -> float:
    return fmean(
        row["clusters"].get(cluster, row["score"])
        for row in rows
        if (row["protocol"], row["demonstrations"], row["arm"]) == (protocol, shown, arm)
    )


def _difference(row: Mapping[str, Any], *, scale: float, digits: int) -> str:
    """A difference, its interval, and the smallest that could have been seen."""

    def number(key: str, sign: str = "+") -> str:
        return _NONE if row[key] is None else f"{scale * row[key]:{sign}.{digits}f}"

    low, high = number("difference_low"), number("difference_high")
    visible = number("visible_difference", "")
    return f"{number('difference')} [{low}, {high}], {visible}"


def _costs(document: Mapping[str, Any]) -> str:
    """Compute, and losses at equal tokens and at equal compute."""
    arms: list[str] = document["arms"]
    first, *others = arms
    titles = ["run", "arm", "10¹² operations", "loss, equal tokens", "loss, equal compute"]
    titles += [f"− {first} [95 %], could be seen: equal tokens", "equal compute"]
    costs: list[dict[str, Any]] = document["costs"]["runs"]
    found = {(row["kind"], row["arm"]): row for row in document["costs"]["differences"]}
    lines: list[list[str]] = []
    for kind in document["steps"]:
        for arm in arms:
            rows = [row for row in costs if (row["kind"], row["arm"]) == (kind, arm)]
            line = [kind, arm, f"{fmean(row['operations'] for row in rows) / 1e12:.1f}"]
            line += [_mean([row[key] for row in rows]) for key in ("loss", "loss_equal_compute")]
            for key in ("equal_tokens", "equal_compute"):
                seen = found[kind, arm][key] if arm in others else None
                line.append(_NONE if seen is None else _difference(seen, scale=1, digits=3))
            lines.append(line)
    return _table(titles, lines)


def _mean(values: Sequence[float | None]) -> str:
    numbers = [value for value in values if value is not None]
    return f"{fmean(numbers):.3f}" if len(numbers) == len(values) else _NONE


def _table(titles: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [titles, ["---"] * len(titles), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
