"""What a table is made of, whoever shows it: a terminal (`check_dataset.py`) or a page (`macros.html.j2`)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """A cell: a count, and what share of `total` it is; `percent` says whether the page writes the share out, too."""

    count: int
    total: int
    percent: bool = True

    @property
    def share(self) -> float:
        return self.count / max(self.total, 1)

    def __str__(self) -> str:
        return f"{self.share:.3%}"


@dataclass(frozen=True)
class NamedClass:
    """A cell: a class by its name, with its training id or its colour ("#rrggbb") if that is to be shown."""

    name: str
    id: int | None = None
    color: str | None = None

    def __str__(self) -> str:
        return self.name if self.id is None else f"{self.id} {self.name}"


@dataclass(frozen=True)
class Score:
    """A cell: a score from 0 to 1, with its interval where one is known; `signed` for what is gained or lost.

    None where it is not defined.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    signed: bool = False

    @property
    def interval(self) -> bool:
        return self.low is not None and self.low == self.low

    def __str__(self) -> str:
        if self.value is None or self.value != self.value:
            return "–"
        return f"{self.value:+.4f}" if self.signed else f"{self.value:.3f}"


Cell = str | int | float | Share | NamedClass | Score


@dataclass(frozen=True)
class Table:
    """note: what the rows do not say, as how many more there are; may be empty. sortable: a page lets people sort."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]]
    note: str = ""
    sortable: bool = False

    @property
    def numeric(self) -> list[bool]:
        """Whether a column holds numbers, which stand to the right."""
        return [isinstance(cell, int | float | Share | Score) for cell in self.rows[0]] if self.rows else []


def more(count: int, noun: str) -> str:
    """ "and 3 more values"; an empty string for none."""
    return f"and {count} more {noun}{'s' * (count != 1)}" if count > 0 else ""
