"""Methods of one run, each with its settings: ``--method``, ``--set`` and ``--sweep``."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import cached_property
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints
from urllib.parse import quote

from gsr_kernels.continual.methods import (
    BOUNDS,
    EMPTY,
    METHODS,
    AdapterMethod,
    DenseMethod,
    arguments,
    find_method,
)
from gsr_kernels.continual.settings import RunSettings
from gsr_kernels.messages import need
from gsr_kernels.methods import Chain, Method
from gsr_kernels.methods.base import of_any_task


class Setting(NamedTuple):
    """Type and value of a setting, and where it goes: the argument of one maker, or a field of the run's settings."""

    hint: Any
    value: Any
    field: str = ""
    maker: int = 0


@dataclass(frozen=True)
class Chosen:
    """A method of a run: its name, its folder's too, the methods that it is made of, and all its settings."""

    name: str
    title: str
    parts: tuple[str, ...]
    method: DenseMethod | AdapterMethod
    settings: Mapping[str, Setting]
    run: RunSettings

    @property
    def chained(self) -> bool:
        """Return whether it learns one task after another, as a bound does not."""
        return not self.method.bound

    @cached_property
    def settings_of_run(self) -> RunSettings:
        """Return the run's settings with the method's in their place."""
        return replace(self.run, **{one.field: one.value for one in self.settings.values() if one.field})

    def make(self) -> list[Any]:
        """Return what acts on the steps, in the order of use."""
        given: list[dict[str, Any]] = [{} for _ in self.method.makes]
        for name, one in self.settings.items():
            if not one.field:
                given[one.maker][name.rpartition(".")[2]] = one.value
        return [make(**values) for make, values in zip(self.method.makes, given)]

    def described(self) -> dict[str, Any]:
        """Return all settings for config.json."""
        return {"method": "+".join(self.parts)} | {name: one.value for name, one in self.settings.items()}


def choose(names: Sequence[str], sets: Sequence[str], sweeps: Sequence[str], run: RunSettings) -> dict[str, Chosen]:
    """Return the methods of a run by their names, a swept one once for each of its values.

    ``sets`` are ``METHOD.NAME=VALUE``, ``sweeps`` ``METHOD.NAME=VALUE,VALUE``; without METHOD they are of every method
    that has such a setting. Raises ValueError, that names it, for whatever is unknown or of the wrong type.
    """
    methods = {name: compose(name, run) for name in names}
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"method {name} is given twice")
    for text in sets:
        for name, key, values in _read("--set", text, methods, False):
            methods[name] = _with(methods[name], {key: values[0]})
    swept: dict[str, dict[str, list[Any]]] = {}
    for text in sweeps:
        for name, key, values in _read("--sweep", text, methods, True):
            known = swept.setdefault(name, {}).setdefault(key, [])
            known += [value for value in values if value not in known]
    chosen = []
    for name, one in methods.items():
        of = swept.get(name, {})
        for pairs in itertools.product(*([(key, value) for value in values] for key, values in of.items())):
            told = ",".join(f"{key}={shown(value)}" for key, value in pairs)
            other = _with(one, dict(pairs))
            if told:
                other = replace(other, name=f"{name}.{quote(told, safe='=,+')}", title=f"{one.title} {told}")
            chosen.append(other)
    for one in chosen:
        _check(one)
        if sum(other.title == one.title for other in chosen) > 1:
            raise ValueError(f"method {one.name}: two of this run are called {one.title}")
    return {one.name: one for one in chosen}


def scratch_of(one: Chosen, chosen: Mapping[str, Chosen]) -> str:
    """Return the title of the bound that learns each task alone as this method would, or empty.

    Of several it is the one of the same settings.
    """
    kind = type(one.method)
    alone = [each for each in chosen.values() if each.method.bound == "alone" and type(each.method) is kind]
    equal = [each for each in alone if each.settings_of_run == one.settings_of_run]
    found = equal or (alone if len(alone) == 1 else [])
    return found[0].title if found else ""


def find_baseline(name: str | None, chosen: Mapping[str, Chosen]) -> str:
    """Return the title of the method that the others are compared with, of a swept one its title without values.

    Raises ValueError where the run has none such.
    """
    if name is None:
        return METHODS["seqft"].title
    there = [one for one in chosen.values() if one.chained]
    found = [one.title for one in there if name in (one.name, one.title)]
    found += [one.method.title for one in there if name in ("+".join(one.parts), one.method.title)]
    if not found:
        names = dict.fromkeys(each for one in there for each in ("+".join(one.parts), one.name))
        raise ValueError(f"baseline {name} is no method of this run, which has {', '.join(names)}")
    return found[0]


def check_read(given: Sequence[str], chosen: Sequence[Chosen]) -> None:
    """Raise ValueError for a field of the run's settings that only methods read of which none is in the run."""
    readers = {name: _fields(method) for name, method in METHODS.items()}
    read = {field for one in chosen for field in _fields(one.method)}
    for field in given:
        of = [name for name, fields_of in readers.items() if field in fields_of]
        if of and field not in read:
            names = ",".join(one.name for one in chosen)
            raise ValueError(f"{field} is read by {', '.join(of)}, none of which is in --method {names}")


def _fields(method: DenseMethod | AdapterMethod) -> set[str]:
    # those that the demo's recipe leaves alone
    own = {"rho"} if any("rho" in arguments(make) for make in method.makes) else set()
    return own | {"rank", "precision", "adapter_lr", "adapter_rank"}.intersection(method.fields.values())


def compose(name: str, run: RunSettings) -> Chosen:
    """Return a method, or several joined by "+", with the settings that the run's and its own defaults give."""
    parts = tuple(name.split("+"))
    method: Any = None
    for part in parts:
        one: Any = find_method(part)
        if method is not None and (type(method) is not type(one) or {part, *parts} & BOUNDS.keys()):
            raise ValueError(f"method {name}: only methods on weights, or terms of adapters, can be joined")
        # settings are told apart by the parts' names
        if parts.count(part) > 1:
            raise ValueError(f"method {name}: {one.title} is given twice")
        try:
            method = one if method is None else method.joined(one)
        except ValueError as error:
            raise ValueError(f"method {name}: {error}") from error
    if isinstance(method, AdapterMethod):
        need(f"method {name}", "peft")
    hints, read = get_type_hints(RunSettings), {each.name: each for each in fields(RunSettings)}
    settings = {}
    for key, field in method.fields.items():
        choices = read[field].metadata.get("flag", {}).get("choices")
        settings[key] = Setting(Literal[choices] if choices else hints[field], getattr(run, field), field)
    for index, make in enumerate(method.makes):
        for key, (hint, default) in arguments(make).items():
            # a field of the run's settings goes before an argument of its name
            if key not in settings:
                value = getattr(run, key) if default is EMPTY and key in read else default
                settings[f"{parts[index]}.{key}" if len(parts) > 1 else key] = Setting(hint, value, "", index)
    return Chosen(name, method.title, parts, method, settings, run)


def _read(flag: str, text: str, methods: Mapping[str, Chosen], several: bool) -> Iterator[tuple[str, str, list[Any]]]:
    """Yield the methods that a text is for, each with the setting's name and its values."""
    left, equals, right = text.partition("=")
    owner, _, key = left.rpartition(".")
    if not equals or not key:
        raise ValueError(f"{flag} {text}: write METHOD.NAME=VALUE{',VALUE' if several else ''}")
    of = {name: one for name, one in methods.items() if not owner or owner in (name, *one.parts)}
    if not of:
        raise ValueError(f"{flag} {text}: {owner} is no method of this run, which has {', '.join(methods)}")
    found = {name: own for name, one in of.items() for own in (key, f"{owner}.{key}") if own in one.settings}
    if not found:
        there = "; ".join(f"{name}: {', '.join(one.settings)}" for name, one in of.items())
        raise ValueError(f"{flag} {text}: {key!r} is no setting; there are, of {there}")
    for name, own in found.items():
        hint = methods[name].settings[own].hint
        values = [_value(flag, text, each, hint) for each in (right.split(",") if several else [right])]
        if len({shown(value) for value in values}) < len(values):
            raise ValueError(f"{flag} {text}: a value is given twice")
        yield name, own, values


def _value(flag: str, text: str, value: str, hint: Any) -> Any:
    for found in _readings(value.strip(), hint):
        return found
    raise ValueError(f"{flag} {text}: {value!r} is not {describe(hint)}")


def _readings(text: str, hint: Any) -> Iterator[Any]:
    """Yield a text as each of the types of a hint that it can be read as."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        for each in get_args(hint):
            yield from _readings(text, each)
    elif origin is Literal:
        yield from (choice for choice in get_args(hint) if str(choice) == text)
    elif hint is NoneType and text.lower() in ("none", "null"):
        yield None
    elif hint is bool and text.lower() in ("true", "false"):
        yield text.lower() == "true"
    elif hint in (int, float):
        with suppress(ValueError):
            yield hint(text)
    elif hint is str:
        yield text
    elif origin is Mapping and text.startswith("{"):
        with suppress(ValueError):
            read = json.loads(text)
            yield {name: tuple(each) if isinstance(each, list) else each for name, each in read.items()}


def describe(hint: Any) -> str:
    """Return a type in words."""
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(describe, get_args(hint)))
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a text", NoneType: "none"}
    return words.get(hint, "JSON in braces")


def shown(value: Any) -> str:
    """Return a value as ``--set`` takes it."""
    if value is EMPTY:
        return "(wanted)"
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else json.dumps(value) if isinstance(value, dict) else str(value)


def _with(chosen: Chosen, values: Mapping[str, Any]) -> Chosen:
    changed = {key: chosen.settings[key]._replace(value=value) for key, value in values.items()}
    return replace(chosen, settings={**chosen.settings, **changed})


def _check(chosen: Chosen) -> None:
    """Raise ValueError, that names the method, for settings that it cannot have."""
    for name, one in chosen.settings.items():
        if one.value is EMPTY:
            raise ValueError(f"method {chosen.name}: {name} has no default: --set {chosen.name}.{name}=VALUE")
    try:
        made = chosen.make()
        chosen.settings_of_run  # noqa: B018
        weights = [one for one in map(of_any_task, made) if isinstance(one, Method)]
        if len(weights) > 1:
            Chain(tuple(weights))
    except (TypeError, ValueError) as error:
        raise ValueError(f"method {chosen.name}: {error}") from error
