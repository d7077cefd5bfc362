"""Gin at the edge: reads config files and command-line bindings, checks every name, and builds configured objects.

Library code never imports gin. A config names entries of `configurables`, mostly frozen dataclasses that also run from
plain Python. To make one more thing configurable, add its line there.

Everything is read, resolved and checked here first, so that a wrong name is one sentence with file and line; gin
then gets a single flat text, which is also what a run saves.
"""

import argparse
import ast
import dataclasses
import importlib
import inspect
import pprint
import tokenize
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import zeroprompt_jax
from zeroprompt_jax.config_values import Delegate, Macro, Meaning, Reference, called, in_words, parts
from zeroprompt_jax.configurables import CONFIGURABLES
from zeroprompt_jax.errors import UserError, nearest, sentence, unknown

REQUIRED = "gin.REQUIRED"
_MODULE = "zeroprompt_jax.configurable"  # the prefix our names carry in gin's registry
_PACKAGE = Path(zeroprompt_jax.__file__).parent


def search_paths() -> tuple[Path, ...]:
    """Where a config named by a relative path is looked for: as given, beside the package, one level above it."""
    return Path(), _PACKAGE / "gin", _PACKAGE.parent / "gin"


def find(name: str, where: str = "") -> Path:
    """The config file that `name` means, by `search_paths`; UserError names the nearest known file if there is none."""
    for folder in search_paths():
        if (folder / name).is_file():
            return folder / name
    known = {str(f.relative_to(folder)) for folder in search_paths()[1:] for f in folder.glob("**/*.gin")}
    close = sorted(k for k in known if Path(k).stem == Path(name).stem)
    hint = f" Did you mean '{close[0]}'?" if close else nearest(name, known)
    raise UserError(f"{where}Config file '{name}' does not exist, here or among the package's own.{hint}")


@dataclasses.dataclass(frozen=True)
class _Configurable:
    """A name that configs may bind: its shortest unambiguous selector, and the class or function behind it."""

    selector: str
    target: Callable


@dataclasses.dataclass
class _Config:
    """What has been read: imports, macro values, parameter values by (scope, selector), and where each was set."""

    imports: list[str] = dataclasses.field(default_factory=list)
    macros: dict[str, Any] = dataclasses.field(default_factory=dict)
    bindings: dict[tuple[str, str], dict[str, Any]] = dataclasses.field(default_factory=dict)
    places: dict[str, str] = dataclasses.field(default_factory=dict)
    used_macros: dict[str, str] = dataclasses.field(default_factory=dict)
    configurables: dict[str, _Configurable] = dataclasses.field(default_factory=dict)


_loaded = _Config()


def load(gin_files: Sequence[str] = (), bindings: Sequence[str] = ()) -> None:
    """Replaces the current configuration by the given files, in order, and then the bindings.

    Args:
      gin_files: paths, resolved by `find`. A file may `include` others, resolved in the same way, and `import` modules
        that register configurables of their own with `@gin.configurable`.
      bindings: single statements, `NAME = value` for a macro or `Name.parameter = value`.

    Raises:
      UserError: for a file that does not exist, a syntax error, a name or parameter that nothing has, a macro that
        nothing uses or defines, a binding of what the files do not use, a number where text belongs and the like, and a
        required value that is missing.
    """
    global _loaded
    config = _Config()
    for name in gin_files:
        _read_file(config, find(name), ())
    in_files = {selector for _, selector in config.bindings}
    for text in bindings:
        _read_text(config, text, f"--gin '{' '.join(text.split())}'", ())
    _check_macros(config)
    if gin_files:
        _check_used(config, in_files)
    _check_types(config)
    import gin

    with gin.unlock_config():
        gin.clear_config()
        try:
            gin.parse_config(_text(config, defaults=False))
        except ValueError as e:  # what only gin can see, such as a user's configurable with the name of one of ours
            raise UserError(str(e).split("\n")[0]) from e
    _loaded = config


def resolved() -> str:
    """The whole current configuration as one gin text without includes: every macro, every bound parameter, and the
    defaults of every configurable that is named, so that the run can be repeated when a default has changed."""
    return "# The resolved configuration of this run.\n\n" + _text(_loaded, defaults=True)


def make(name: str, **overrides: Any) -> Any:
    """Builds the configurable `name` with its configured parameters; `overrides` win over the configuration."""
    import gin

    found = _lookup(_loaded, name, "")
    try:
        return gin.get_configurable(_registered_name(found.selector))(**overrides)
    except UserError as e:
        raise UserError(sentence(e)) from e
    except RecursionError:
        raise UserError(f"Building {name} never ends: its macros or references form a circle.") from None
    except TypeError as e:
        if missing := _missing(found, overrides):
            if not _loaded.bindings:
                raise UserError("There is no config: give --gin_file=FILE, such as experiments/quickstart.gin.") from e
            full = f"{name}.{missing}"
            if not _loaded.bindings.get(("", found.selector)):
                raise UserError(f"The config says nothing of {name}: it is for another command, or lacks {full}.") from e
            raise UserError(f"{full} has no value: bind it in the config or give --gin.{full}=VALUE.") from e
        raise


def bound(name: str) -> bool:
    """Whether the configuration sets a parameter of the configurable `name`."""
    return any(selector == name for _, selector in _loaded.bindings)


def macro(name: str, default: Any = None) -> Any:
    """The value of a macro such as MODEL_DIR, or `default` where the configuration does not set it."""
    return _followed(_loaded, Macro(name), default)[0]


# The command line.


def add_arguments(parser: argparse.ArgumentParser, example: str = "quickstart") -> None:
    """Adds the T5X-style options; example: an experiment that suits the verb. `--gin.NAME=VALUE` is taken out beforehand, by `split_arguments`."""
    group = parser.add_argument_group(
        "configuration",
        "--gin.NAME=VALUE sets a macro (--gin.TRAIN_STEPS=1000) or a parameter (--gin.T5Config.num_heads=4); "
        "it wins over the files.",
    )
    group.add_argument(
        "--gin_file",
        action="append",
        default=[],
        metavar="FILE",
        help=f"config file, such as experiments/{example}.gin; may be repeated, later ones win",
    )
    group.add_argument(
        "--gin_bindings",
        action="append",
        default=[],
        metavar="STATEMENT",
        help="one gin statement, such as \"T5Config.num_heads = 4\"; may be repeated",
    )


def split_arguments(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Takes `--gin.NAME=VALUE` out of a command line: returns what is left and the bindings as statements."""
    rest, bindings = [], []
    for argument in argv:
        if not argument.startswith("--gin."):
            rest.append(argument)
            continue
        name, equals, value = argument.removeprefix("--gin.").partition("=")
        if not equals:
            raise UserError(f"Option '{argument}' has no value; write {argument}=VALUE, without spaces.")
        bindings.append(statement(name.strip(), value.strip()))
    return rest, bindings


def statement(name: str, value: str) -> str:
    """`NAME = VALUE` as gin reads it. A value that is not gin syntax, such as a bare path, is taken as a string."""
    if value in ("true", "false"):
        raise UserError(f"--gin.{name}={value}: write {value.capitalize()}, as Python does.")
    text = f"{name} = {value}"
    try:
        list(_statements(text))
    except (SyntaxError, tokenize.TokenError, IndentationError):
        if value[:1] in ("'", '"', "[", "(", "{", "@", "%"):
            raise UserError(f"--gin.{name}={value}: the value is not complete gin syntax.") from None
        text = f"{name} = {value!r}"
    return text


# Reading.


def _statements(source) -> Iterable[Any]:
    from gin import config_parser

    return config_parser.ConfigParser(source, Delegate())


def _read_file(config: _Config, path: Path, parents: tuple[Path, ...]) -> None:
    if path in parents:
        raise UserError(f"Config file '{path}' includes itself.")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"Config file '{path}' cannot be read ({e}).") from e
    _read_text(config, text, str(path), (*parents, path))


def _read_text(config: _Config, text: str, origin: str, parents: tuple[Path, ...]) -> None:
    from gin import config_parser

    def place(location) -> str:
        return f"{origin}, line {location.line_num}: " if parents else f"{origin}: "

    try:
        for item in _statements(text):
            where = place(item.location)
            match item:
                case config_parser.IncludeStatement():
                    _read_file(config, find(item.filename, where), parents)
                case config_parser.ImportStatement():
                    _import(config, item, where)
                case config_parser.BlockDeclaration():
                    _lookup(config, item.selector, where)
                case _:
                    _bind(config, item, where)
    except SyntaxError as e:
        location = f", line {e.lineno}" if parents and e.lineno else ""
        raise UserError(f"{origin}{location}: {' '.join(e.msg.split())} Near: {(e.text or '').strip()!r}.") from e
    except tokenize.TokenError as e:
        raise UserError(f"{origin}, line {e.args[1][0]}: a bracket or string is not closed.") from e


def _import(config: _Config, item: Any, where: str) -> None:
    if item.module.startswith("__gin__"):
        raise UserError(f"{where}dynamic registration is not supported; import modules that use @gin.configurable.")
    module = item.module
    try:
        importlib.import_module(module)
    except ImportError as e:
        raise UserError(f"{where}cannot import '{module}' ({e}).") from e
    if item.format() not in config.imports:
        config.imports.append(item.format())


def _bind(config: _Config, item: Any, where: str) -> None:
    for part in parts(item.value):
        if isinstance(part, Reference):
            _lookup(config, part.selector, where)
        elif part.name != REQUIRED:
            config.used_macros.setdefault(part.name, where)
    if not item.arg_name:
        name = f"{item.scope}/{item.selector}" if item.scope else item.selector
        config.macros[name] = item.value
        config.places[name] = where
        return
    found = _lookup(config, item.selector, where)
    known, open_ended = _parameters(found.target)
    if item.arg_name not in known and not open_ended:
        hint = nearest(item.arg_name, known) or f" It has {', '.join(known)}."
        raise UserError(f"{where}{found.selector} has no parameter '{item.arg_name}'.{hint}")
    config.bindings.setdefault((item.scope, found.selector), {})[item.arg_name] = item.value
    config.places[_key(item.scope, found.selector, item.arg_name)] = where


def _check_macros(config: _Config) -> None:
    defined = config.macros
    for name, where in config.used_macros.items():
        if name not in defined and not _is_constant(name):
            hint = nearest(name, defined) or f" Give --gin.{name}=VALUE."
            raise UserError(f"{where}the macro %{name} has no value.{hint}")
    for name in defined:
        if name not in config.used_macros:
            raise UserError(f"{config.places[name]}nothing uses the macro '{name}'.{nearest(name, config.used_macros)}")
    values = {**defined, **{_key(*owner, k): v for owner, own in config.bindings.items() for k, v in own.items()}}
    for name, value in values.items():
        if any(isinstance(part, Macro) and part.name == REQUIRED for part in parts(value)):
            raise UserError(f"{name} has no value and this configuration requires one: give --gin.{name}=VALUE.")


def _values(config: _Config) -> Iterable[Any]:
    yield from config.macros.values()
    for own in config.bindings.values():
        yield from own.values()


def _check_used(config: _Config, in_files: set[str]) -> None:
    """Refuses bindings of the command line to what neither the files nor they themselves use: they would do nothing. In
    files it may stand: another file may have replaced a method whose parameters are still bound."""
    named = [part for value in _values(config) for part in parts(value) if isinstance(part, Reference)]
    used = {_lookup(config, part.selector, "").selector for part in named}
    for (scope, selector), own in config.bindings.items():
        if selector in CONFIGURABLES and selector not in in_files | used:
            where = config.places[_key(scope, selector, next(iter(own)))]
            kind = selector.partition(".")[0]
            near = sorted(name for name in used if "." in selector and name.partition(".")[0] == kind)
            raise UserError(f"{where}nothing in this configuration uses {selector}." + f" It has {', '.join(near)}." * bool(near))


def _followed(config: _Config, value: Any, default: Any = None) -> tuple[Any, str]:
    """What a macro stands for in the end, and the name of the last macro on the way ("" where there was none)."""
    seen: list[str] = []
    while isinstance(value, Macro) and value.name not in seen:
        seen.append(value.name)
        value = config.macros.get(value.name, default)
    return value, seen[-1] if seen else ""


def _check_types(config: _Config) -> None:
    """Refuses what a parameter's annotation shows that it cannot be, such as text for a number, however deep in a list,
    and a class where an object of it belongs."""
    meaning = Meaning(config.macros, lambda name: config.configurables[name].target)
    for (scope, selector), own in config.bindings.items():
        annotations = _annotations(config.configurables[selector].target)
        for parameter, written in own.items():
            annotation = annotations.get(parameter, Any)
            if meaning.fits(written, annotation):
                continue
            value, through = _followed(config, written)
            key = _key(scope, selector, parameter)
            where = f"{config.places[through or key]}{key}"
            uncalled = [part for part in parts(value) if isinstance(part, Reference) and not part.called]
            if uncalled and meaning.fits(called(value), annotation):
                raise UserError(f"{where} {'is' if value is uncalled[0] else 'has'} the class itself; write {uncalled[0]}().")
            raise UserError(f"{where} is {value!r}; it must be {in_words(annotation, value, _objects)}.")


def _objects(kind: type) -> list[str]:
    """The configurables whose objects are of a class; of a protocol those beside it, in its module."""
    targets = {selector: _resolve(selector) for selector in CONFIGURABLES}
    if getattr(kind, "_is_protocol", False):
        return [selector for selector, target in targets.items() if target.__module__ == kind.__module__]
    return [selector for selector, target in targets.items() if inspect.isclass(target) and issubclass(target, kind)]


def _annotations(target: Callable) -> dict[str, Any]:
    try:
        return typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError, AttributeError):  # annotations that only a type checker can resolve
        return {}


def _is_constant(name: str) -> bool:
    import gin

    return bool(gin.config._CONSTANTS.matching_selectors(name))


# Names.


def _lookup(config: _Config, name: str, where: str) -> _Configurable:
    """The configurable that `name` means, registered with gin; a dotted name may be given from any of its dots on."""
    if name in config.configurables:
        return config.configurables[name]
    import gin

    matches = [known for known in CONFIGURABLES if known == name or known.endswith(f".{name}")]
    if len(matches) > 1 and name not in matches:
        raise UserError(f"{where}'{name}' could be any of {', '.join(matches)}.")
    registry = gin.config._REGISTRY  # gin lists what is registered nowhere else
    if matches:
        selector = name if name in matches else matches[0]
        found = _Configurable(selector, _resolve(selector))
        if _registered_name(selector) not in registry:
            gin.external_configurable(found.target, name=selector, module=_MODULE)
    else:
        own = ("gin.", f"{_MODULE}.")
        others = {registry.minimal_selector(s): s for s in registry._selector_map if not s.startswith(own)}
        full = [s for s in others.values() if s == name or s.endswith(f".{name}")]
        if len(full) > 1:
            raise UserError(f"{where}'{name}' could be any of {', '.join(full)}.")
        if not full:
            raise UserError(f"{where}{unknown('configurable', name, [*CONFIGURABLES, *others])}")
        found = _Configurable(registry.minimal_selector(full[0]), registry[full[0]].wrapped)
    config.configurables[name] = config.configurables[found.selector] = found
    return found


def _registered_name(selector: str) -> str:
    return f"{_MODULE}.{selector}" if selector in CONFIGURABLES else selector


def _resolve(selector: str) -> Callable:
    module, _, attribute = CONFIGURABLES[selector].partition(":")
    return getattr(importlib.import_module(module), attribute)


def _parameters(target: Callable) -> tuple[list[str], bool]:
    """The names `target` takes, and whether it takes any other as well."""
    kinds = {name: p.kind for name, p in inspect.signature(target).parameters.items()}
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [n for n, kind in kinds.items() if kind in by_name], inspect.Parameter.VAR_KEYWORD in kinds.values()


def _missing(found: _Configurable, overrides: dict[str, Any]) -> str | None:
    bound = _loaded.bindings.get(("", found.selector), {})
    for name, parameter in inspect.signature(found.target).parameters.items():
        if parameter.default is parameter.empty and name not in bound and name not in overrides:
            return name
    return None


# Writing.


def _key(scope: str, selector: str, parameter: str) -> str:
    return f"{scope}/{selector}.{parameter}" if scope else f"{selector}.{parameter}"


def _live_macros(config: _Config) -> dict[str, Any]:
    """The macros that a binding still reads, itself or through another macro: what a later binding has replaced may
    have been the only reader, and a text that sets a macro for nobody cannot be loaded."""
    found, left = set(), [value for own in config.bindings.values() for value in own.values()]
    while left:
        names = {part.name for part in parts(left.pop()) if isinstance(part, Macro)} & config.macros.keys()
        left += [config.macros[name] for name in names - found]
        found |= names
    return {name: value for name, value in config.macros.items() if name in found}


def _text(config: _Config, *, defaults: bool) -> str:
    lines = sorted(config.imports)
    macros = _live_macros(config)
    lines += ["", *(_line(name, value) for name, value in sorted(macros.items()))] if macros else []
    owners = dict.fromkeys(config.bindings)
    if defaults:
        owners |= dict.fromkeys(("", c.selector) for c in config.configurables.values())
    for scope, selector in sorted(owners, key=lambda o: (o[1].lower(), o[0])):
        values = dict(config.bindings.get((scope, selector), {}))
        if defaults and not scope:
            values = {**_literal_defaults(config.configurables[selector].target), **values}
        lines += ["", *(_line(_key(scope, selector, name), value) for name, value in values.items())] if values else []
    return "\n".join(lines).strip() + "\n"


def _line(name: str, value: Any) -> str:
    text = pprint.pformat(value, width=110, sort_dicts=False)
    return f"{name} = {text}" if "\n" not in text else f"{name} = \\\n    " + text.replace("\n", "\n    ")


def _literal_defaults(target: Callable) -> dict[str, Any]:
    """Defaults that can be written down and read back as the same value."""
    values = {}
    for name, parameter in inspect.signature(target).parameters.items():
        try:
            if ast.literal_eval(repr(parameter.default)) == parameter.default:
                values[name] = parameter.default
        except (ValueError, SyntaxError, TypeError):
            pass
    return values
