"""`boxless recipes`."""

from boxless.files import Place, as_text

PAPERS = "the papers' tables, row by row with the commands that make them: docs/recipes.md"


def recipes(name: Place | None = None, paper: str | None = None) -> None:
    """List the shipped recipes, or show one of them.

    Args:
        name: Recipe to show: its description and all its keys as YAML, ready to be saved, changed and given as a file.
        paper: Former way to the papers' tables; prints the page that has them now.

    Raises:
        UserError: for an unknown name.
    """
    from boxless.recipes.load import describe, docstrings, load

    name = as_text(name)
    if paper is not None:
        print(PAPERS)
    elif name is not None:
        recipe = load(name, object)
        parts = [docstrings().get(name, ""), describe(recipe, name)]
        print("\n\n".join(filter(None, parts)), end="")
    else:
        found = docstrings()
        width = max(map(len, found))
        print("\n".join(f"{each:<{width}}  {text.partition(chr(10))[0]}" for each, text in found.items()))
