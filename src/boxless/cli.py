"""The command line: each command is a function of `boxless.commands`, its arguments are the flags.

Nothing heavy is imported to list the commands; a command's own imports come when it is called.
"""

import argparse
import inspect
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn, get_type_hints

import boxless
from boxless.errors import Unfinished, UserError, is_out_of_memory
from boxless.files import place_in_words
from boxless.launch import Processes

if TYPE_CHECKING:
    from boxless.recipes.overrides import Key

Command = Callable[..., object]

COMMANDS = (
    "demo",
    "statistics",
    "propose",
    "pack",
    "pretrain",
    "finetune",
    "evaluate",
    "probe",
    "compare",
    "predict",
    "figures",
    "export",
    "convert",
    "publish",
    "report",
    "recipes",
)

TOGETHER = ("pretrain", "finetune")
"""Those that `torchrun` or `srun` may start as several processes, to train together."""

OVERVIEW = """\
Pretrain object detectors on images without labels, fine-tune them on few, and see what that bought.

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
        with place_in_words():
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
        print("boxless: this is a fault in boxless, not yours: please report it with the lines above", file=sys.stderr)
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
    functions = [getattr(boxless, name) for name in COMMANDS]
    lines = [f"  {function.__name__:<10} {inspect.getdoc(function)}".partition("\n")[0] for function in functions]
    return OVERVIEW + "\n".join(lines)


def _call(name: str, argv: Sequence[str]) -> None:
    module = import_module(f"boxless.commands.{name}")
    function = getattr(module, name)
    asks_help = "-h" in argv or "--help" in argv
    argv = [_as_declared(token) for token in argv if token not in ("-h", "--help")]
    if hasattr(module, "POSITIONAL") and argv and not argv[0].startswith("--"):
        argv = [_flag(module.POSITIONAL), *argv]
    recipe = _recipe(module, function, argv)
    parser = _parser(function, recipe)
    if asks_help:
        print(parser.format_help(), end="")
        return
    given, unknown = parser.parse_known_args(argv)
    missing = [_flag(key) for key in _types(function) if key not in _defaults(function) | vars(given)]
    strange = [token for token in unknown if token.startswith("--")]  # perhaps the missing one, misspelt
    if missing and not strange:
        raise UserError(f"{name} needs {' and '.join(missing)}: see boxless {name} --help")
    if unknown:
        raise _unknown((strange or unknown)[0], name, [*_types(function), *_keys(recipe)])
    function(**_parsed(function, given))


def _recipe(module: ModuleType, function: Command, argv: Sequence[str]) -> object | None:
    """Return the recipe whose keys are flags too; a command that takes one says which by its `recipe_of(arguments)`."""
    if not hasattr(module, "recipe_of"):
        return None
    given, _ = _parser(function, None).parse_known_args(argv)
    arguments = _defaults(function) | _parsed(function, given)
    return module.recipe_of(arguments) if "recipe" in arguments else None


def _parsed(function: Command, given: argparse.Namespace) -> dict[str, object]:
    """Give the function's own arguments their types; keys of the recipe stay text, `override` knows their types."""
    from boxless.recipes.overrides import parse

    types = _types(function)
    arguments: dict[str, object] = {}
    for key, value in vars(given).items():
        single = value[0] if isinstance(value, list) and len(value) == 1 else value
        arguments[key] = parse(_flag(key), types[key], single) if key in types else single
    return arguments


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def _parser(function: Command, recipe: object | None) -> argparse.ArgumentParser:
    import docstring_parser

    from boxless.recipes.overrides import is_sequence

    doc = docstring_parser.parse(inspect.getdoc(function) or "")
    helps = {entry.arg_name: entry.description or "" for entry in doc.params}
    parser = _Parser(
        usage=f"boxless {function.__name__} [--flag value ...]",
        description="\n\n".join(filter(None, (doc.short_description, doc.long_description))),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        add_help=False,
        allow_abbrev=False,
    )
    group = parser.add_argument_group("flags")
    defaults = _defaults(function)
    for key, expected in _types(function).items():
        note = f"default {_shown(defaults[key])}" if key in defaults else "required"
        form = {"action": "extend", "nargs": "+"} if is_sequence(expected) else {}
        _declare(group, key, expected, f"{helps.get(key, '')} ({note})", **form)
    groups: dict[str, Any] = {}
    for key, entry in _keys(recipe).items():
        if key not in _types(function):
            head = key.rpartition(".")[0]
            groups[head] = groups.get(head) or parser.add_argument_group(f"recipe: {head}" if head else "recipe")
            _declare(groups[head], key, entry.type, f"{entry.help} (default {_shown(entry.value)})")
    return parser


def _declare(group: Any, key: str, expected: Any, text: str, **form: Any) -> None:
    from boxless.recipes.overrides import spell

    if expected is bool:
        form = {"nargs": "?", "const": "true"}
    metavar = spell(expected).partition(" or ")[0]
    group.add_argument(_flag(key), dest=key, metavar=metavar, help=text.strip().replace("%", "%%"), **form)


def _unknown(token: str, name: str, keys: list[str]) -> UserError:
    from boxless.recipes.overrides import did_you_mean

    if not token.startswith("--"):
        return UserError(f"unexpected {token!r}: every value of boxless {name} follows its --flag")
    flag = token.partition("=")[0]
    near = did_you_mean(flag, [_flag(key) for key in keys]) or ":"
    return UserError(f"unknown flag {flag!r}{near} boxless {name} --help lists them all")


def _keys(recipe: object | None) -> "dict[str, Key]":
    from boxless.recipes.overrides import keys

    return {} if recipe is None else keys(recipe)


def _types(function: Command) -> dict[str, Any]:
    """Return the type of each parameter but `**overrides`; the return type may be one that only checkers import."""
    named = [p.name for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
    annotations = {name: function.__annotations__.get(name, Any) for name in named}
    return get_type_hints(SimpleNamespace(__annotations__=annotations), function.__globals__)


def _defaults(function: Command) -> dict[str, Any]:
    return {p.name: p.default for p in inspect.signature(function).parameters.values() if p.default is not p.empty}


def _flag(key: str) -> str:
    """Spell a key as its flag: dashes for the command's own, underscores as in YAML for those inside a recipe."""
    return "--" + (key if "." in key else key.replace("_", "-"))


def _as_declared(token: str) -> str:
    """Let `--label_fraction` and `--optim.base-lr` be written either way."""
    if not token.startswith("--"):
        return token
    key, equals, value = token.removeprefix("--").partition("=")
    return _flag(key.replace("-", "_")) + equals + value


def _shown(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(_shown, value)) if isinstance(value, tuple | list) else str(value) or '""'
