"""Modes of the command line and their flags. `table.py` lists all modes."""

from __future__ import annotations

import argparse
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from gpt_mesh.commands.model_flag import find_config
from gpt_mesh.config import Config, parse_settings


@dataclass(frozen=True, eq=False)
class Flag:
    """A flag of the command line.

    Attributes:
        name: such as "--stride".
        options: keyword arguments of `argparse`'s `add_argument`.
        heading: the title that `--help` shows it under; "": the general options.
        needs: another flag, without which this one cannot be given.
        without: flags that cannot be given beside this one.
        variable: an environment variable that can say the same.
    """

    name: str
    options: Mapping[str, Any]
    heading: str = ""
    needs: str | None = None
    without: tuple[str, ...] = ()
    variable: str | None = None

    @property
    def key(self) -> str:
        """The attribute of the parsed arguments that holds the value."""
        return self.name.lstrip("-")

    def given(self, arguments: argparse.Namespace) -> bool:
        """Whether the command line has this flag. True too of a flag that has a default."""
        value = getattr(arguments, self.key)
        return value is not None and value is not False


def flag(
    name: str,
    *,
    heading: str = "",
    needs: str | None = None,
    without: tuple[str, ...] = (),
    variable: str | None = None,
    **options: Any,
) -> Flag:
    """A `Flag`; `options` as for `add_argument`."""
    return Flag(name, options, heading, needs, without, variable)


class Mode(ABC):
    """One thing that the program does.

    Attributes:
        switches: the flags that choose this mode, at most one at a time; none for training, the default.
        flags: the flags that this mode takes, beside the general ones. A flag that no mode takes is a general one.
        needs_model: whether --model must be given.
    """

    switches: ClassVar[tuple[Flag, ...]] = ()
    flags: ClassVar[tuple[Flag, ...]] = ()
    needs_model: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """How messages name this mode."""
        return " or ".join(one.name for one in self.switches) or "training"

    def problem(self, arguments: argparse.Namespace) -> str | None:
        """What is wrong with the flags of this mode, beyond what each `Flag` says of itself; None: nothing."""
        return None

    def config(self, arguments: argparse.Namespace) -> tuple[Config, str | None]:
        """The config to run with, and the checkpoint if one is named: those of --model, with the keys of --set.

        Raises:
            InputError: there is none, or it cannot work.
        """
        return find_config(arguments.model, parse_settings(arguments.set or (), "--set"))

    @abstractmethod
    def run(self, config: Config, arguments: argparse.Namespace) -> int:
        """Run the mode; returns the exit status.

        Raises:
            InputError: something that the user gave cannot work.
        """


@dataclass(frozen=True)
class Table:
    """All modes, and the flags that belong to none of them. The first mode is the one without a switch."""

    modes: tuple[Mode, ...]
    general: tuple[Flag, ...]
    flags: tuple[Flag, ...] = field(init=False)

    def __post_init__(self) -> None:
        own = (one for mode in self.modes for one in (*mode.switches, *mode.flags))
        object.__setattr__(self, "flags", tuple(dict.fromkeys((*self.general, *own))))

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Declare every flag, under its heading."""
        groups: dict[str, Any] = {"": parser}
        switches = parser.add_argument_group("modes; without one of these the model is trained")
        exclusive = switches.add_mutually_exclusive_group()
        chosen_by = {one.name for mode in self.modes for one in mode.switches}
        for one in self.flags:
            if one.heading not in groups:
                groups[one.heading] = parser.add_argument_group(one.heading)
            group = exclusive if one.name in chosen_by else groups[one.heading]
            group.add_argument(one.name, **one.options)

    def mode(self, arguments: argparse.Namespace) -> Mode:
        """The mode that the flags choose."""
        chosen = (mode for mode in self.modes if any(switch.given(arguments) for switch in mode.switches))
        return next(chosen, self.modes[0])

    def problem(self, arguments: argparse.Namespace, mode: Mode) -> str | None:
        """The first conflict among the flags, or None."""
        if found := mode.problem(arguments):
            return found
        by_name = {one.name: one for one in self.flags}
        for one in self.flags:
            if not one.given(arguments):
                continue
            takers = [each.name for each in self.modes if one in each.flags]
            if takers and one not in mode.flags:
                return f"{one.name} goes with {_listed(takers)} only"
            if one.needs is not None:
                needed = by_name[one.needs]
                if not needed.given(arguments) and (needed.variable is None or needed.variable not in os.environ):
                    return f"{one.name} goes with {one.needs} only"
            if any(by_name[other].given(arguments) for other in one.without):
                return f"{one.name} goes without {_listed(one.without)}"
        return None


def _listed(names: list[str] | tuple[str, ...]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def count(text: str) -> int:
    """The type of a flag that takes 0, 1, 2, …"""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def positive(text: str) -> int:
    """The type of a flag that takes 1, 2, 3, …"""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
