"""Cells of a table for spreadsheets, which take some text for a formula and run it."""

_GUARDED = ("=", "+", "-", "@", "\t", "\r", "\n", "'")


def guard(cell: str) -> str:
    """The cell, with an apostrophe before what a spreadsheet might run; removing one leading apostrophe undoes it."""
    return f"'{cell}" if cell.startswith(_GUARDED) else cell
