"""A stage: one notebook with one set of parameters."""

from __future__ import annotations

import re
from dataclasses import dataclass

Literal = str | int | float | bool
ALWAYS_NAMED = ("model", "seed", "task")  # parameters that every canonical name contains


@dataclass(frozen=True, order=True)
class Stage:
    """A notebook and its given parameters; all other parameters have the notebook's defaults."""

    notebook: str
    given: tuple[tuple[str, Literal], ...] = ()

    @classmethod
    def of(cls, notebook: str, /, **parameters: Literal) -> Stage:
        """A stage from keyword arguments."""
        return cls(notebook, tuple(sorted(parameters.items())))

    @property
    def parameters(self) -> dict[str, Literal]:
        """The given parameters, by name."""
        return dict(self.given)

    @property
    def name(self) -> str:
        """The stage's name in file names and on the command line: ``linear_probe,model=tiny-l,seed=1``."""
        return ",".join([self.notebook, *(f"{name}={value}" for name, value in self.given)])

    @staticmethod
    def words(name: str) -> list[str]:
        """The notebook and the ``name=value`` words of a stage's name; values may contain commas.

        >>> Stage.words("linear_probe,layers=12,16,model=igpt-s")
        ['linear_probe', 'layers=12,16', 'model=igpt-s']
        """
        notebook, comma, rest = name.partition(",")
        return [notebook, *(re.split(r",(?=\w+=)", rest) if comma else [])]

    def canonical(self, defaults: dict[str, Literal]) -> Stage:
        """The same stage under its canonical name: model, seed and task always, other parameters only if not the default.

        A parameter that is added to a notebook later therefore changes no existing name.
        """
        full = {**{name: value for name, value in defaults.items() if name in ALWAYS_NAMED}, **self.parameters}
        return Stage.of(
            self.notebook,
            **{
                name: value
                for name, value in full.items()
                if name in ALWAYS_NAMED or name not in defaults or value != defaults[name]
            },
        )
