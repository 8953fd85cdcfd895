"""Rows of text in columns: the first to the left, the others to the right."""

from hf_sft.visible import one_line


def table(header: list[str], rows: list[list[str]]) -> str:
    """A plain-text table with a rule under its header."""
    header, *rows = ([one_line(cell) for cell in row] for row in [header, *rows])
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [header, rule, *rows]
    )
