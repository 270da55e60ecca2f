"""The command line: each command is a function of `boxless.commands`, its arguments are the flags.

Nothing heavy is imported to list the commands; a command's own imports come when it is called.
"""

import inspect
import os
import shutil
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import boxless
from boxless.errors import Unfinished, UserError, is_out_of_memory
from boxless.files import explain_path_errors
from boxless.launch import Processes

if TYPE_CHECKING:
    from docstring_parser import Docstring

    from boxless.recipes.overrides import Key

Command = Callable[..., object]

COMMANDS: dict[str, Command] = {
    function.__name__: function
    for function in (
        boxless.demo,
        boxless.statistics,
        boxless.propose,
        boxless.pack,
        boxless.pretrain,
        boxless.finetune,
        boxless.evaluate,
        boxless.probe,
        boxless.compare,
        boxless.predict,
        boxless.figures,
        boxless.export,
        boxless.convert,
        boxless.publish,
        boxless.report,
        boxless.recipes,
    )
}
TOGETHER = ("pretrain", "finetune")
"""Those that `torchrun` or `srun` may start as several processes, to train together."""
POSITIONAL = {"report": "run", "recipes": "name"}
"""The argument that words before the first flag belong to."""

OLD = {"init": "weights"}
"""Flags by their former names, which the commands still take among the keys of their recipe."""

OVERVIEW = """\
Pretrain object detectors on unlabelled images, fine-tune them on a few labelled ones, and measure the gain.

usage: boxless COMMAND [--flag value ...]
       boxless COMMAND --help
       boxless --version

"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    0 done, 1 a fault in boxless, 2 a mistake of the user, 75 stopped by a signal with what was done kept, 130
    interrupted, 141 the reader of the output went away.
    """
    if "WORLD_SIZE" in os.environ or "SLURM_STEP_NUM_TASKS" in os.environ:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # PyTorch's advice to programmers, once per process
    try:
        with explain_path_errors():
            _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return 0
    except UserError as error:
        if int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0) > 0:
            time.sleep(2)  # the launcher ends this process as soon as another has said the same
        print("boxless: error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except Unfinished as stop:
        if Processes.of(os.environ).rank == 0:
            print("boxless:", stop, file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print("boxless: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the flush at exit fails again, loudly
        return 141
    except Exception as error:
        if is_out_of_memory(error):
            reason = " ".join(str(error).split())[:200] or "the system gave none"
            print(f"boxless: error: out of memory ({reason}); smaller images or batches need less", file=sys.stderr)
            return 2
        traceback.print_exc()
        print("boxless: this is a bug in boxless: please report it with the lines above", file=sys.stderr)
        return 1


def _run(argv: Sequence[str]) -> None:
    name, *arguments = argv or ["--help"]
    if name in ("-h", "--help"):
        print(_overview())
    elif name == "--version":
        print(f"boxless {boxless.__version__}")
    elif name not in COMMANDS:
        from boxless.recipes.overrides import did_you_mean

        near = did_you_mean(name, COMMANDS) or ":"
        raise UserError(f"unknown command {name!r}{near} the commands are {', '.join(COMMANDS)}")
    elif (processes := Processes.of(os.environ)).world > 1 and name not in TOGETHER:
        raise UserError(
            f"{processes.launcher} started {processes.world} processes of boxless {name}, which works as one: only "
            f"{' and '.join(TOGETHER)} are started so"
        )
    else:
        _call(name, arguments)


def _overview() -> str:
    lines = [f"  {name:<10} {inspect.getdoc(function)}".partition("\n")[0] for name, function in COMMANDS.items()]
    return OVERVIEW + "\n".join(lines)


def _call(name: str, argv: Sequence[str]) -> None:
    words = [word for word in argv if word not in ("-h", "--help")]
    if len(words) < len(argv):
        print(_help(name, _recipe(name, _given(words, POSITIONAL.get(name)))))
    else:
        COMMANDS[name](**arguments(name, argv))


def arguments(name: str, argv: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of a command's function; keys of a recipe stay text, because `override` knows their types.

    Raises:
        UserError: for unknown, missing and misplaced words, and for values of the wrong type.
    """
    from boxless.recipes.overrides import accepted, did_you_mean, parse

    given = _given(argv, POSITIONAL.get(name))
    own, recipe = _own(name), _recipe(name, given)
    flags = _flags(own, recipe)
    silent = {old for old, new in OLD.items() if new in own} | (accepted(recipe) if recipe else set())
    for key in given:
        if key is not None and key not in flags and key not in silent:
            near = did_you_mean(_flag(key), [_flag(each) for each in flags]) or ":"
            raise UserError(f"unknown flag {_flag(key)!r}{near} boxless {name} --help lists them all")
    missing = [_flag(key) for key, entry in own.items() if entry.value is inspect.Parameter.empty and key not in given]
    if missing:
        raise UserError(f"{name} needs {' and '.join(missing)}: see boxless {name} --help")
    stray = given.pop(None, [])
    values = {key: _value(key, flags[key].type if key in flags else str, times) for key, times in given.items() if key}
    if stray:
        raise _unexpected(stray[0][0])
    return {key: parse(_flag(key), own[key].type, value) if key in own else value for key, value in values.items()}


def _given(argv: Sequence[str], positional: str | None) -> dict[str | None, list[list[str]]]:
    """Return the words behind each flag, once for each time that it was given; those before any flag are at None."""
    given: dict[str | None, list[list[str]]] = {}
    key = positional
    for word in argv:
        if word.startswith("--"):
            key, equals, value = word.removeprefix("--").partition("=")
            key = key.replace("-", "_")
            given.setdefault(key, []).append([value] if equals else [])
        else:
            given.setdefault(key, [[]])[-1].append(word)
    return given


def _value(key: str, expected: Any, times: list[list[str]]) -> str | list[str]:
    """Return the text of one flag: all words where it takes several, else those of the last time that it was given."""
    from boxless.recipes.overrides import is_sequence

    words = [word for each in times for word in each] if is_sequence(expected) else times[-1]
    if not words and expected is bool:
        return "true"
    if not words:
        raise UserError(f"{_flag(key)}: expected at least one argument")
    if len(words) > 1 and not is_sequence(expected):
        raise _unexpected(words[1])
    return words if len(words) > 1 else words[0]


def _unexpected(word: str) -> UserError:
    return UserError(f"unexpected {word!r}: every value follows its --flag")


def _own(name: str) -> "dict[str, Key]":
    """Return the arguments of a command but `**overrides`, with their docstrings."""
    from boxless.recipes.overrides import Key

    helps = {entry.arg_name: entry.description or "" for entry in _docstring(name).params}
    parameters = [p for p in inspect.signature(COMMANDS[name]).parameters.values() if p.kind is not p.VAR_KEYWORD]
    return {p.name: Key(p.annotation, p.default, helps.get(p.name, "")) for p in parameters}


def _docstring(name: str) -> "Docstring":
    import docstring_parser

    return docstring_parser.parse(inspect.getdoc(COMMANDS[name]) or "")


def _flags(own: "dict[str, Key]", recipe: object | None) -> "dict[str, Key]":
    """Return the arguments of a command and the keys of its recipe; where both have one, it is the command's."""
    from boxless.recipes.overrides import keys

    return own if recipe is None else own | {key: entry for key, entry in keys(recipe).items() if key not in own}


def _recipe(name: str, given: Mapping[str | None, list[list[str]]]) -> object | None:
    """Return the recipe that a command is given or has by default, with the detector that is given."""
    if name not in ("pretrain", "finetune", "compare", "demo"):
        return None
    from boxless.recipes.load import load
    from boxless.recipes.overrides import choose
    from boxless.recipes.schema import CompareRecipe, FinetuneRecipe, PretrainRecipe

    kind = {"pretrain": PretrainRecipe, "finetune": FinetuneRecipe}.get(name, CompareRecipe)
    recipe = str(_value("recipe", str, given["recipe"]) if "recipe" in given else _own(name)["recipe"].value)
    return choose(load(recipe, kind), {key: times[-1][0] for key, times in given.items() if key and times[-1]})


def _help(name: str, recipe: object | None) -> str:
    from boxless.recipes.overrides import is_sequence, spell

    doc, own = _docstring(name), _own(name)
    wrap = textwrap.TextWrapper(max(40, shutil.get_terminal_size().columns - 2), " " * 8, " " * 8)
    groups: dict[str, list[str]] = {}
    for key, entry in _flags(own, recipe).items():
        head = key.rpartition(".")[0]
        group = groups.setdefault("flags" if key in own else f"recipe: {head}" if head else "recipe", [])
        several = " ..." if is_sequence(entry.type) else ""
        note = "required" if entry.value is inspect.Parameter.empty else f"default {_shown(entry.value)}"
        group.append(f"  {_flag(key)} {spell(entry.type).partition(' or ')[0]}{several}")
        group.extend(wrap.wrap(f"{entry.help} ({note})".strip()))
    parts = [f"usage: boxless {name} [--flag value ...]", doc.short_description, doc.long_description]
    return "\n\n".join(filter(None, parts + ["\n".join([f"{title}:", *lines]) for title, lines in groups.items()]))


def _flag(key: str) -> str:
    """Spell a key as its flag: dashes for the command's own, underscores as in YAML for those inside a recipe."""
    return "--" + (key if "." in key else key.replace("_", "-"))


def _shown(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(_shown, value)) if isinstance(value, tuple | list) else str(value) or '""'
