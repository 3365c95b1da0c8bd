"""What a plug-in has to say, and whether all of it is heard: what would be lost in silence is refused in one line.

The settings of a method and of an attack are the fields of a dataclass. Python itself says nothing where one is no
field: a value without annotation, a class without ``@dataclass``, a name that nothing reads.
"""

import dataclasses
import difflib
import inspect
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from bench.spec import UsageError, unknown

Kind = Literal["method", "attack", "encoder", "dataset", "protocol", "tracker"]
# of a method, for OVERRIDES
TRAITS = (
    "all",
    "single",
    "pair",
    "multi",
    "patch",
    "crop",
    "none",
    "pgd",
    "free",
    "nfgsm",
    "distilled",
    "clustered",
    "dual",
)
CLOSE = {True: 0.92, False: 0.85}  # likeness of two names of which one is a slip of the other: of methods, of values


@dataclass(frozen=True)
class Part:
    """A class that a plug-in defines: its base, the methods that it must write, and whether its fields are settings."""

    name: str
    base: type
    must: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()
    settings: bool = False


def parts(kind: Kind) -> list[tuple[str, list[Part]]]:
    """(name, what it may be: the first whose base it has) of each class that a plug-in of this kind defines."""
    if kind == "method":
        from methods.common.base import BaseConfig, BaseMethod

        method = Part("Method", BaseMethod, ("build",), one_of=("loss", "objective"))
        wanted = [Part("Config", BaseConfig, settings=True), method]
    elif kind == "attack":
        from attacks.common.base import BaseAttack

        wanted = [Part("Attack", BaseAttack, ("perturb",), settings=True)]
    elif kind == "encoder":
        from bench.encoders.common.base import BaseEncoder

        wanted = [Part("Encoder", BaseEncoder, ("forward",))]
    elif kind == "dataset":
        from bench.data.images import BaseDataset, EncodedDataset

        return [("Dataset", [Part("Dataset", EncodedDataset, ("listing",)), Part("Dataset", BaseDataset, ("load",))])]
    elif kind == "protocol":
        from bench.protocols.common.base import BaseProtocol

        wanted = [Part("Protocol", BaseProtocol, ("fit", "restore"), settings=True)]
    else:
        from bench.tracking.hooks import Hook

        wanted = [Part("Tracker", Hook, one_of=("started", "progress", "evaluated", "ended"))]
    return [(part.name, [part]) for part in wanted]


def check(kind: Kind, module: ModuleType, where: str) -> None:
    """Raises UsageError, beginning with ``where``, unless the classes are there and nothing of them is lost."""
    wanted = parts(kind)
    missing = [name for name, _ in wanted if not hasattr(module, name)]
    if missing:
        names = " and ".join(name for name, _ in wanted)
        raise UsageError(f"{where} must define {names}; missing: {', '.join(missing)}")
    for name, choices in wanted:
        defined = getattr(module, name)
        for complaint in complaints(defined, choices):
            raise UsageError(f"{where}: {complaint}")


def complaints(found: Any, choices: list[Part]) -> Iterator[str]:
    """What is wrong with a class of a plug-in, the gravest first."""
    usual = choices[-1]
    if not (isinstance(found, type) and issubclass(found, usual.base)):
        got = f"one of {', '.join(b.__name__ for b in found.__bases__)}" if isinstance(found, type) else repr(found)
        yield f"expected {usual.name} to be a class of {usual.base.__name__} ({usual.base.__module__}), got {got}"
        return
    part = next(part for part in choices if issubclass(found, part.base))
    lacking = [name for name in part.must if getattr(found, name) is getattr(part.base, name)]
    if lacking:
        yield f"expected {part.name} to define {' and '.join(lacking)}, found no such method in it"
    if part.one_of and all(getattr(found, name) is getattr(part.base, name) for name in part.one_of):
        yield f"expected {part.name} to define {', '.join(part.one_of[:-1])} or {part.one_of[-1]}, found none of them"
    own = [cls for cls in found.__mro__ if cls not in part.base.__mro__]
    if part.settings:
        yield from lost_settings(found, part.base, own)
    else:
        yield from slips(part.name, part.base, own)
    yield from wrong_values(part.name, found)
    if part.settings:
        yield from lost_values(found)
    if usual.name == "Dataset":
        yield from lost_overrides(getattr(found, "OVERRIDES", {}))


def lost_settings(found: type, base: type, own: list[type]) -> Iterator[str]:
    """Attributes of the plug-in's own classes that look like settings and are no fields of ``found``."""
    fields = {field.name: field for field in dataclasses.fields(found)}
    class_variables = {name for ancestor in found.__mro__ for name in annotated(ancestor, class_variable=True)}
    for cls in own:
        decorated = "__dataclass_fields__" in vars(cls)
        for name in annotated(cls, class_variable=False):
            if not decorated:
                yield (
                    f"{cls.__name__}.{name} is no setting, because {cls.__name__} is no dataclass; "
                    f"write @dataclass(frozen=True) above class {cls.__name__}"
                )
            elif name not in fields or not fields[name].init:
                yield f"{cls.__name__}.{name} is no setting; write it as a plain field, {name}: TYPE = VALUE"
        for name, value in vars(cls).items():
            if name in annotated(cls, class_variable=False) or name.startswith("_"):
                continue
            known = name in base.__dataclass_fields__ and name not in annotated(base, class_variable=True)  # type: ignore[attr-defined]
            if known and (name not in fields or not is_value(value)):
                yield f"{cls.__name__}.{name} hides the setting {name} of {base.__name__}; give it another name"
            elif is_value(value) and name not in class_variables:
                kind = f"{name}: {type(value).__name__}" if type(value).__module__ == "builtins" else f"{name}: TYPE"
                yield (
                    f"{cls.__name__}.{name} is no setting, because it has no annotation; "
                    f"write {kind} = {value!r}, or {name}: ClassVar = {value!r} for what is no setting"
                )


def annotated(each: type, class_variable: bool) -> list[str]:
    """Names that the body of a class annotates, those of class variables or all others."""
    hints = inspect.get_annotations(each)
    return [name for name, hint in hints.items() if bool(re.search(r"\bClassVar\b", str(hint))) == class_variable]


def is_value(value: Any) -> bool:
    """Whether an attribute of a class is a value, and no method, property or class."""
    return not (callable(value) or isinstance(value, classmethod | staticmethod) or hasattr(type(value), "__get__"))


def slips(name: str, base: type, own: list[type]) -> Iterator[str]:
    """Names that are nearly those that the harness reads of the base, as ``main_esp`` and ``OVERRIDE``."""
    known = {n for ancestor in base.__mro__ if ours(ancestor) for n in named(ancestor)}
    for cls in own:
        for written in named(cls):
            close = difflib.get_close_matches(written, known, 1, CLOSE[callable(getattr(cls, written, None))])
            if close and not hasattr(base, written) and written not in known:
                yield f"{name}.{written} is read by nothing; did you mean {close[0]}? otherwise give it another name"


def named(each: type) -> list[str]:
    """The public names in the body of a class."""
    return [name for name in {**vars(each), **inspect.get_annotations(each)} if not name.startswith("_")]


def ours(each: type) -> bool:
    """Whether a class is one of this project's."""
    return each.__module__.partition(".")[0] in ("bench", "methods", "attacks")


def wrong_values(name: str, found: type) -> Iterator[str]:
    """Class variables whose values are not of the type that the base says."""
    for cls in found.__mro__:
        hints = typing.get_type_hints(cls) if ours(cls) else {}
        for attribute in annotated(cls, class_variable=True):
            hint = typing.get_args(hints.get(attribute))
            if hint and not fits(getattr(found, attribute), hint[0]):
                kind = getattr(hint[0], "__name__", "") if typing.get_origin(hint[0]) is None else str(hint[0])
                yield f"expected {name}.{attribute} as {kind}, got {getattr(found, attribute)!r}"


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, or becomes one without loss."""
    try:
        TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError:
        return False
    except PydanticUserError:  # a type that pydantic has no rule for
        return True
    return True


def lost_values(found: type) -> Iterator[str]:
    """What a class of settings does to itself when it is made without arguments."""
    try:
        made = found()
        typing.get_type_hints(found)
    except Exception as error:
        yield f"{found.__name__}() cannot be made: {type(error).__name__}: {error}"
        return
    fields = {field.name for field in dataclasses.fields(found)}
    for name in vars(made):
        if name not in fields and not name.startswith("_"):
            yield f"{found.__name__} sets {name}, which is no setting; write {name}: TYPE = VALUE in the class"


def lost_overrides(overrides: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Traits of a dataset's OVERRIDES that no method can have."""
    for traits in overrides:
        for trait in traits.split() or [traits]:
            if trait not in TRAITS:
                yield f"Dataset.OVERRIDES: {unknown('trait', trait, TRAITS)}"
