"""Values as they are written in a config, so that it can be checked and saved without evaluating it."""

import collections.abc
import dataclasses
import difflib
import inspect
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Reference:
    """`@scope/Name` or, when it is called, `@scope/Name()`."""

    name: str
    called: bool

    @property
    def selector(self) -> str:
        return self.name.rpartition("/")[2]

    def __repr__(self):
        return f"@{self.name}{'()' if self.called else ''}"


@dataclasses.dataclass(frozen=True)
class Macro:
    """`%NAME`."""

    name: str

    def __repr__(self):
        return f"%{self.name}"


class Delegate:
    """What gin's parser calls for references and macros."""

    def configurable_reference(self, scoped_selector: str, evaluate: bool) -> Reference:
        return Reference(scoped_selector, evaluate)

    def macro(self, macro_name: str) -> Macro:
        return Macro(macro_name)


def parts(value: Any) -> Iterable[Reference | Macro]:
    """The references and macros inside a value."""
    if isinstance(value, (Reference, Macro)):
        yield value
    elif isinstance(value, dict):
        yield from parts([*value.keys(), *value.values()])
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from parts(item)


def called(value: Any) -> Any:
    """The value with each of its references called."""
    if isinstance(value, Reference):
        return Reference(value.name, True)
    if isinstance(value, dict):
        return {name: called(item) for name, item in value.items()}
    return type(value)(called(item) for item in value) if isinstance(value, (list, tuple)) else value


_PLAIN = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "text in quotes",
    os.PathLike: "text in quotes",
    type(None): "None",
}
_LISTS = (collections.abc.Sequence, tuple, list)
_MAPPINGS = (collections.abc.Mapping, dict)


def _options(annotation: Any) -> tuple[Any, ...]:
    """What a union is of."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if union else (annotation,)


def _of_ours(kind: Any) -> bool:
    """Whether it is a class of which only configurables make objects."""
    return inspect.isclass(kind) and (dataclasses.is_dataclass(kind) or kind.__module__.startswith("zeroprompt_jax."))


@dataclasses.dataclass(frozen=True)
class Meaning:
    """What macros stand for, and what (the class or function) references name by their selector."""

    macros: Mapping[str, Any]
    target: Callable[[str], Callable]

    def fits(self, value: Any, annotation: Any) -> bool:
        """Whether a value may be what a parameter annotated so takes; True also where only building it can tell."""
        seen: set[str] = set()
        while isinstance(value, Macro):
            if value.name in seen or value.name not in self.macros:  # a circle, which building finds; a constant of gin's
                return True
            seen.add(value.name)
            value = self.macros[value.name]
        return any(self._fits(value, kind) for kind in _options(annotation))

    def _fits(self, value: Any, kind: Any) -> bool:
        origin, of = typing.get_origin(kind) or kind, typing.get_args(kind)
        if isinstance(value, Reference):
            return self._makes(value, origin)
        if origin in _PLAIN:
            return type(value) is origin or (origin is float and type(value) is int)
        if origin in _LISTS:
            item = of[0] if of and (origin is not tuple or of[1:] == (...,)) else Any
            return isinstance(value, (list, tuple)) and all(self.fits(x, item) for x in value)
        if origin in _MAPPINGS:
            key, item = of or (Any, Any)
            return isinstance(value, dict) and all(self.fits(k, key) and self.fits(x, item) for k, x in value.items())
        if origin is collections.abc.Callable:
            return False  # only a reference is
        return value is None or not _of_ours(origin)

    def _makes(self, reference: Reference, origin: Any) -> bool:
        """Whether a reference may be of a kind: what a function gives is not known."""
        wanted = origin in _PLAIN or origin in _LISTS or origin in _MAPPINGS or _of_ours(origin)
        if not (wanted and inspect.isclass(target := self.target(reference.selector))):
            return True
        protocol = getattr(origin, "_is_protocol", False)
        return reference.called and (protocol or (_of_ours(origin) and issubclass(target, origin)))


def in_words(annotation: Any, value: Any, objects: Callable[[type], list[str]]) -> str:
    """What a parameter annotated so must be. objects: class to the configurables that make one; of these the one that is
    nearest to `value` is the example."""

    def words(kind: Any) -> str:
        origin, of = typing.get_origin(kind) or kind, typing.get_args(kind)
        if origin in _PLAIN:
            return _PLAIN[origin]
        if origin is collections.abc.Callable:
            return "a function (@NAME)"
        deeper = [in_words(part, value, objects) for part in of if part is not ...]
        if origin in _LISTS:
            return f"a list [{deeper[0]}, …]" if deeper else "a list"
        if origin in _MAPPINGS:
            return f"a dictionary {{{': '.join(deeper)}, …}}" if deeper else "a dictionary"
        names = objects(kind) if inspect.isclass(kind) else ["NAME"]
        if len(names) == 1:
            return f"@{names[0]}()"
        by_end = {name.rpartition(".")[2].lower(): name for name in names}
        close = [by_end[end] for end in difflib.get_close_matches(str(value).lower(), by_end, n=1)]
        return f"an object of {kind.__name__}, such as @{[*close, *names, 'NAME'][0]}()"

    return " or ".join(dict.fromkeys(words(kind) for kind in _options(annotation)))
