"""The table of docs/models.md is complete, and its measurements can fail."""

from pathlib import Path

import pytest

from llmshearing.commands import family_table
from llmshearing.commands.family_table import BEGIN, END, ROWS, measure, replace_table
from llmshearing.shapes.families import FAMILIES

DOCS = Path(__file__).parents[2] / "docs" / "models.md"


def test_the_page_shows_every_family():
    assert {family for _, family, _ in ROWS} == set(FAMILIES)
    table = DOCS.read_text().partition(BEGIN)[2].partition(END)[0]
    assert all(f"| {name} |" in table for name, _, _ in ROWS)
    assert "DIFFERS" not in table


def test_row_shows_a_fault_in_pruning(monkeypatch):
    _, family, options = next(row for row in ROWS if row[0] == "Qwen3")
    row = measure(family, options)
    assert row.parity < 1e-4  # of transformers 5 to the bit
    assert 0 < row.masked < 1e-4
    assert row.exact
    cut = family_table.cut

    def wrong(weights, gates, arch):
        return cut(weights, {**gates, "mlp": gates["mlp"] * 0.9}, arch)

    monkeypatch.setattr(family_table, "cut", wrong)
    assert measure(family, options).masked > 1e-3


def test_only_the_table_is_replaced():
    text = f"a\n{BEGIN}\nold\n{END}\nb\n"
    assert replace_table(text, "new") == f"a\n{BEGIN}\nnew\n{END}\nb\n"
    with pytest.raises(ValueError, match="has no lines"):
        replace_table("a", "new")
