"""Tables as text, as Markdown and as CSV."""

import csv
import io
from collections.abc import Sequence

from prettytable import PrettyTable, TableStyle


def format_table(rows: Sequence[Sequence[object]], markdown: bool = False) -> str:
    """Return a table in aligned columns, the first to the left and the others to the right.

    Args:
        rows: header and rows; the names in the header must differ.
        markdown: draw the lines of a Markdown table.
    """
    header = [str(name) for name in rows[0]]
    table = PrettyTable(header)
    if markdown:
        table.set_style(TableStyle.MARKDOWN)
    else:
        table.border, table.left_padding_width, table.right_padding_width = False, 0, 2
    table.align = 'r'
    table.align[header[0]] = 'l'
    table.add_rows([[str(cell).replace('|', r'\|') if markdown else cell for cell in row] for row in rows[1:]])
    return '\n'.join(line.rstrip() for line in table.get_string().splitlines())


def to_csv(rows: Sequence[Sequence[object]]) -> str:
    """Return a table as comma-separated values."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator='\n').writerows(rows)
    return buffer.getvalue()
