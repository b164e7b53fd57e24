# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Tables in Markdown, and where a file carries them."""

from collections.abc import Sequence


NONE = "–"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table.

    Raises:
        ValueError: if a row has another length than the header.
    """
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"A row has {len(row)} cells: {row}; expected {len(header)}: {list(header)}.")
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def percent(value: float | None, digits: int = 1) -> str:
    """A share in [0, 1] as per cent, or a dash."""
    return NONE if value is None else f"{100 * value:.{digits}f}"


def mean_and_std(mean: float, std: float | None) -> str:
    """Shares in [0, 1] as "mean ± std" in per cent; the mean alone where there is one value."""
    return percent(mean) if std is None else f"{percent(mean)} ± {percent(std)}"


def render_into(text: str, name: str, content: str) -> str:
    """`text` with `content` between `<!-- results/NAME -->` and the next `<!-- end -->`.

    Raises:
        ValueError: if `text` has no such marks.
    """
    mark, end = f"<!-- results/{name} -->", "<!-- end -->"
    if mark not in text or end not in text.split(mark, 1)[1]:
        raise ValueError(f"There are no marks {mark} and {end}; put them where the table should stand.")
    before, rest = text.split(mark, 1)
    return f"{before}{mark}\n{content}\n{end}{rest.split(end, 1)[1]}"
