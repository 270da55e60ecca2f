"""Every command and Python block of README and docs runs here, on a few small images; every link leads somewhere."""

import functools
import logging
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from documented import (
    DETECTORS,
    LAUNCHERS,
    NOT_RUN,
    OTHER_PROGRAMS,
    PAGES,
    PYTHON_NOT_RUN,
    ROOT,
    STARTS,
    Block,
    blocks,
    make_world,
    reason,
    small,
)
from markdown.extensions.toc import slugify
from mkdocs.commands.build import build
from mkdocs.config import load_config

import boxless
from boxless import cli
from boxless.plots import style
from boxless.recipes.load import load, names
from boxless.recipes.overrides import override
from boxless.recipes.schema import CompareRecipe, FinetuneRecipe, PretrainRecipe

NAMES = {str(page.relative_to(ROOT)): page for page in PAGES}
RUN, CHECKED = 80, 15
"""Least numbers of snippets that run, and of commands that are only checked."""
KINDS = {"pretrain": PretrainRecipe, "finetune": FinetuneRecipe, "compare": CompareRecipe, "demo": CompareRecipe}
PARTS_OF_NAMES = {"large-head-soco"}
"""Words that look like a recipe and are none."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the names that pages use, in which everything runs."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / ".cache"))
        patch.setitem(style._SETTINGS, "savefig.dpi", 24)  # drawing is most of what a small run costs
        make_world(folder)
        yield folder


@pytest.fixture(scope="module")
def done() -> set[str]:
    """Commands that have run: pages share some."""
    return set()


def flags(settings: dict[str, str]) -> list[str]:
    return [word for key, value in settings.items() for word in (f"--{key}", value)]


def given(words: list[str], flag: str) -> list[str]:
    """The values of a flag."""
    values: list[str] = []
    for word in words[words.index(flag) + 1 :] if flag in words else ():
        if word.startswith("--"):
            break
        values.append(word)
    return values


def resolved(words: list[str]) -> tuple[object | None, Any]:
    """The recipe of a command line before changes, and the parsed arguments; raises where a flag is unknown."""
    name, *argv = words
    parsed = cli.arguments(name, argv)
    flags = cli._own(name)
    if name not in KINDS:
        return None, parsed
    recipe = load(parsed.get("recipe", flags["recipe"].value), KINDS[name])
    override(recipe, {key: value for key, value in parsed.items() if key not in flags})
    return recipe, parsed


def prepare(words: list[str], out: Path) -> None:
    """Make the runs that a command takes for granted."""
    for path in (Path(word) for word in words if Path(word) != out and Path(word).parent == Path("runs")):
        if not (path / "summary.json").exists():
            shutil.rmtree(path, ignore_errors=True)
            start = STARTS.get(path.name)
            name = start or DETECTORS[path.name]
            data = ["--data", "images"] if start else ["--data", "NEU:train", "--val", "NEU:val"]
            command = "pretrain" if start else "finetune"
            short = small(command, load(name, PretrainRecipe if start else FinetuneRecipe), weights=False)
            line = [command, "--recipe", name, *data, "--out", str(path), *flags(short), "--quiet"]
            assert cli.main(line) == 0, line


def kind_of(words: list[str], out: str) -> str:
    """A command without its numbers, the name of its output and the order of its flags: one of a kind is run."""
    plain = [word for word in words if word != out and not re.fullmatch(r"[\d.,]+", word)]
    return " ".join(sorted(plain))


def run(words: list[str], done: set[str]) -> None:
    """Run a command of boxless with settings that make it small, once."""
    words = [path for word in words for path in (["runs/soco", "runs/byol"] if word == "W" else [word])]
    words = [f"runs/{word}" if word in STARTS and "--weights" in words else word for word in words]
    out = Path((given(words, "--out") or ["nothing"])[0])
    line = kind_of(words, str(out))
    if line in done and (out.exists() or out.name in {**STARTS, **DETECTORS}):
        return
    prepare(words, out)
    if words[0] in ("pretrain", "finetune", "compare"):
        shutil.rmtree(out, ignore_errors=True)
    recipe, _ = resolved(words)
    small_enough = flags(small(words[0], recipe, weights=bool(given(words, "--weights"))))
    small_enough += ["--label-count", "4"] if "--label_count" in words else []
    assert cli.main([*words, *small_enough]) == 0, line
    done.add(line)


def run_python(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a block of Python; `pretrain` and `finetune` get settings that make them small."""
    for name, kind in (("pretrain", PretrainRecipe), ("finetune", FinetuneRecipe)):
        function = getattr(boxless, name)

        @functools.wraps(function)
        def short(*args: Any, function: Any = function, name: str = name, kind: Any = kind, **changes: Any) -> Any:
            default = {"pretrain": "densecl-auto", "finetune": "faster-rcnn-auto"}[name]
            recipe = load(changes.get("recipe", default), kind)
            shutil.rmtree(changes["out"], ignore_errors=True)
            return function(*args, **{**changes, **small(name, recipe, weights="weights" in changes)})

        monkeypatch.setattr(boxless, name, short)
    exec(compile(block.text, str(block.page), "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("name", NAMES)
def test_what_a_page_shows_runs(
    name: str, world: Path, done: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for block in blocks(NAMES[name]):
        if block.language == "yaml" and (title := re.match(r"# (\S+\.yaml)\n", block.text)):
            (world / title[1]).write_text(block.text)
        if block.language == "python" and not any(part in block.text for part in PYTHON_NOT_RUN):
            run_python(block, monkeypatch)
        for words in block.commands:
            if words[0] in LAUNCHERS:
                words = words[words.index("boxless") :]
                resolved(words[1:])
            elif words[0] == "make":
                assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), words
            elif words[0] == "boxless":
                if reason(words):
                    resolved(words[1:])
                else:
                    run(words[1:], done)
    capsys.readouterr()


def test_how_much_of_what_is_shown_runs() -> None:
    every = [block for page in PAGES for block in blocks(page)]
    commands = [words for block in every for words in block.commands]
    run_here = [words for words in commands if words[0] == "boxless" and not reason(words)]
    python = [block for block in every if block.language == "python"]
    run_python_here = [block for block in python if not any(part in block.text for part in PYTHON_NOT_RUN)]
    assert len(run_here) + len(run_python_here) >= RUN
    assert {words[0] for words in commands} <= {"boxless", *LAUNCHERS, *OTHER_PROGRAMS}
    shown = [" ".join(words) + " " for words in commands]
    assert [part for part in NOT_RUN if not any(part in line for line in shown)] == []  # none is out of date


def test_recipes_that_are_named_exist() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    ends = "small|r50|r50-fpn|r50-c4|voc|cityscapes|12k|soco|lvis|course|mmdetection|mini-5|mini-10"
    named = set(re.findall(rf"(?:`|--recipe )([a-z0-9][a-z0-9-]*-(?:{ends}))\b(?![\w.-])", text))
    assert len(named) > 60 and named - set(names()) <= PARTS_OF_NAMES


def test_links_of_readme_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            file, _, anchor = target.partition("#")
            if not re.match(r"https?:", target):
                assert (page.parent / file).is_file(), target
                headings = re.findall(r"^#+ (.+)$", (page.parent / file).read_text(), re.M)
                assert not anchor or anchor in {slugify(heading, "-") for heading in headings}, target


def test_the_site_builds_without_a_warning_and_needs_no_other_host(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Links between pages and to their headings are followed by the build itself."""
    monkeypatch.chdir(ROOT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the programs that build it
        config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"))
        build(config)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(PAGES) - 3
    for page in pages:
        text = page.read_text()
        fetched = re.findall(r"<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=\"?([^\" >]+)", text)
        assert [target for target in fetched if re.match(r"(?:https?:)?//", target)] == [], page
    for sheet in (tmp_path / "site").rglob("*.css"):
        assert "url(http" not in sheet.read_text() and "@import" not in sheet.read_text(), sheet
