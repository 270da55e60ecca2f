"""`boxless recipes`: what is shipped, what is in it, and which tables of the papers it makes."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from boxless.recipes.published import Paper, Row, Table


def recipes(name: str | None = None, paper: str | None = None) -> None:
    """List the shipped recipes with the papers' tables that they belong to, or show one recipe or one paper.

    Args:
        name: A recipe: prints its description, its rows in the papers, and all its keys as YAML, ready to be saved,
            changed and given as a file.
        paper: soco, detco, lc-loss, self-emd, course or up-detr: prints each row of its tables, with the commands that
            make it and the paper's score.

    Raises:
        UserError: for an unknown name.
    """
    from boxless.errors import UserError
    from boxless.recipes import load as catalogue
    from boxless.recipes import published

    if name is not None and paper is not None:
        raise UserError("name, paper: give one of them")
    if paper is not None:
        print(_paper(published.paper(paper)))
    elif name is not None:
        recipe = catalogue.load(name, object)
        rows = "\n".join(_row(table, row) for table, row in published.rows_of(name))
        parts = [catalogue.docstring(name), rows, catalogue.describe(recipe, name)]
        print("\n\n".join(part for part in parts if part), end="")
    else:
        print(_list(catalogue.names()))


def _list(names: list[str]) -> str:
    from boxless.recipes import load as catalogue
    from boxless.recipes import published

    width = max(map(len, names), default=0)
    lines = []
    for name in names:
        lines.append(f"{name:<{width}}  {catalogue.docstring(name).partition(chr(10))[0]}")
        lines += [f"{'':<{width}}  {text}" for text in published.places_of(name)]
    return "\n".join(lines)


def _row(table: "Table", row: "Row") -> str:
    from boxless.recipes.published import score_text

    scores = score_text(table.scores, row.scores)
    return f"{table.paper}, table {table.number}, {row.name}: {table.what}: {scores}".removesuffix(": ")


def _paper(paper: "Paper") -> str:
    from boxless.recipes.published import score_text

    lines = [paper.title, *([paper.note] if paper.note else [])]
    for table in paper.tables:
        lines += ["", f"Table {table.number}: {table.what}; pretrained on {table.pretrained_on}"]
        lines += [table.note] if table.note else []
        for row in table.rows:
            lines.append(f"  {row.name}: {score_text(table.scores, row.scores)}".removesuffix(": "))
            lines += [f"    {row.pretraining}"] if row.recipe else []
            lines.append(f"    {table.command(row)}")
    return "\n".join(lines)
