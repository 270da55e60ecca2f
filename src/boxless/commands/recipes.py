"""`boxless recipes`: what is shipped, and what is in it."""


def recipes(name: str | None = None) -> None:
    """List the shipped recipes, or show one of them.

    Args:
        name: A recipe: prints its description and all its keys as YAML, ready to be saved, changed and given as a file.

    Raises:
        UserError: for an unknown name.
    """
    from boxless.recipes import catalogue

    if name is not None:
        recipe = catalogue.load(name, object)
        print(catalogue.docstring(name), catalogue.describe(recipe, name), sep="\n\n", end="")
        return
    names = catalogue.names()
    width = max(map(len, names), default=0)
    for shipped in names:
        print(f"{shipped:<{width}}  {catalogue.docstring(shipped).partition(chr(10))[0]}")
