"""Which column of a table holds the images and which the masks: one rule for `metadata.csv` and for Hub datasets."""

from collections.abc import Collection

from cli_utils import UserError, nearest
from data.layouts import IMAGES, MASKS, read_name
from data.synonyms import COLUMNS

ROLES = {"image": IMAGES, "label": MASKS}


def find_columns(
    columns: dict[str, str],
    usable: Collection[str],
    image_column: str | None = None,
    label_column: str | None = None,
    source: str = "",
    holding: str = "names of files",
) -> tuple[str, str]:
    """The names of the image column and the label column: those asked for, or those found.

    Found is the column with a known name, or else the only one with a word for it in its name, as `sat_image_path`, or
    else the only one whose name says nothing.

    Args:
        columns: name → what it holds, for messages. usable: those that can be images at all, by what they hold.
        source, holding: what messages call the table, and what such a column must hold.

    Raises:
        UserError: there is no such column, or several.
    """

    def find(kind: str, wanted: str | None, taken: str | None) -> str:
        if wanted is not None:
            if wanted not in columns:
                raise UserError(f"--{kind}_column {wanted}: no such column{nearest(wanted, columns)}")
            if wanted not in usable:
                raise UserError(f"--{kind}_column {wanted} holds {columns[wanted]}, not images ({holding})")
            return wanted
        free = [name for name in columns if name in usable and name != taken]
        by_name = [name for name in free if name.lower() in COLUMNS[kind]]
        by_word = [name for name in free if read_name(name).role == ROLES[kind]]
        others = [name for name in free if not _is_known(name)]
        candidates = by_name or by_word or others
        if len(candidates) == 1:
            return candidates[0]
        described = ", ".join(f"{name} ({what})" if what else name for name, what in columns.items())
        raise UserError(
            f"{f'{source}: ' if source else ''}{' and '.join(candidates) or 'none'} of the columns could be the "
            f"{kind}s: {described}; say which with --{kind}_column (it must hold {holding})"
        )

    image_column = find("image", image_column, label_column)
    return image_column, find("label", label_column, image_column)


def has_column(kind: str, columns: Collection[str]) -> bool:
    """Whether a name says that a column holds images or labels."""
    return any(name.lower() in COLUMNS[kind] or read_name(name).role == ROLES[kind] for name in columns)


def _is_known(name: str) -> bool:
    return any(has_column(kind, [name]) for kind in ROLES)
