"""Addresses of datasets, `--dataset_name s3://bucket/folder`: which there are, and which package reads them.

Whatever fsspec knows is read; what lies there is found by `data.object_storage`.
"""

from fsspec.registry import known_implementations

from cli_utils import UserError, check_installed, flag_hint


def is_address(name: str) -> bool:
    return "://" in name


def check_address(name: str) -> None:
    """Raises UserError for an address of a kind that nothing reads, or whose package is not installed, or that names
    nothing. The storage itself is not asked."""
    kind, _, rest = name.partition("://")
    if kind not in known_implementations:
        raise UserError(
            f"--dataset_name {name}: nothing reads addresses that begin with {kind}://"
            f"{flag_hint(kind, known_implementations, '')}; s3://, gs://, az://, hf://, https:// and more are read"
        )
    if not rest.strip("/"):
        raise UserError(f"--dataset_name {name} names nothing: {kind}://BUCKET/FOLDER")
    check_installed(f"--dataset_name {kind}://…", known_implementations[kind]["class"].partition(".")[0])
