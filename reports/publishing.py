"""Publishing a run on the Hugging Face Hub: the check before training, the push at the end; and a Space.

What is published of a run is a list of names, not the whole folder: weights, configuration, card and results.
Checkpoints, pickled training arguments, predictions and data stay on the disk, as does `trainer_state.json`, which
holds paths of the machine that trained.
"""

import shlex
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, is_offline_mode
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id

from cli_utils import UserError, one_line, redact

# Glob patterns as `upload_folder` reads them. There `*` also matches `/`, so a pattern with a
# leading or inner star would reach into checkpoint folders; these cannot.
PUBLISHED_FILES = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "model.safetensors",
    "model-?????-of-?????.safetensors",
    "model.safetensors.index.json",
    "README.md",
    "sample.jpg",
    "curves.png",
    "confusion_matrix.png",
    "labels.json",
    "all_results.json",
    "train_results.json",
    "eval_results.json",
    "per_category.csv",
    "confusion_matrix.npy",
)
LOGIN_HINT = (
    "log in with `hf auth login`, or set HF_TOKEN to a token with write access (huggingface.co/settings/tokens)"
)


def check_hub_access(
    repo_id: str | None,
    token: str | None,
    output_dir: str | Path,
    private: bool | None = None,
    revision: str | None = None,
    asked_by: str = "--push_to_hub",
    flag: str = "--hub_model_id",
    space: bool = False,
) -> str:
    """Makes sure, before any long work, that the push at the end can succeed: creates the repository and the branch.

    Args:
        repo_id: `--hub_model_id`; without a namespace it belongs to the token's user. None: the name of `output_dir`.
        token: None takes the one of the environment or of `hf auth login`.
        asked_by: the flag, which can be left out, or the script. flag: that gives the name.
        space: whether the repository is a Space, and no model.

    Returns:
        The full id, NAMESPACE/NAME.

    Raises:
        UserError: no token, a rejected or read-only token, an invalid name, no network; says what to do.
    """
    name = repo_id or Path(output_dir).resolve().name
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        source = f"{flag} {name}" if repo_id else f"the name of the --output_dir, {name!r},"
        raise UserError(
            f"{source} cannot name a repository on the Hub; give {flag} NAME or USER/NAME. {error}"
        ) from None
    api = HfApi(token=token)
    without = f", or leave {asked_by} out" if asked_by.startswith("--") else ""
    try:
        user = api.whoami()
        if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise UserError(f"{asked_by}: the token of {user['name']} may only read; {LOGIN_HINT}")
        full_id = name if "/" in name else f"{user['name']}/{name}"
        _create_repo(api, full_id, private, revision, space)
    except LocalTokenNotFoundError:
        raise UserError(f"{asked_by} needs a Hub token and there is none; {LOGIN_HINT}") from None
    except OfflineModeIsEnabled as error:
        reason, fix = str(error), ""
        if is_offline_mode():
            reason, fix = "HF_HUB_OFFLINE=1 forbids it", "; unset it"
        raise UserError(f"{asked_by} needs the network, but {reason}{fix}{without}") from None
    except HfHubHTTPError as error:
        if _refused(error):
            raise UserError(
                f"{asked_by}: {api.endpoint} refused the token for {name} ({_reason(error)}); {LOGIN_HINT}"
            ) from None
        raise UserError(
            f"{asked_by}: {api.endpoint} answers {_reason(error)} for {name}; try later{without}"
        ) from None
    except HTTPError as error:
        raise UserError(
            f"{asked_by} needs the network, but {api.endpoint} cannot be reached ({_reason(error)}); try "
            f"later{without}"
        ) from None
    return full_id


def push_run(
    output_dir: str | Path,
    repo_id: str,
    token: str | None = None,
    private: bool | None = None,
    commit_message: str = "End of training",
    revision: str | None = None,
) -> CommitInfo:
    """Uploads the `PUBLISHED_FILES` of a finished run in one commit.

    Raises:
        UserError: the push failed for whatever reason. Nothing on the disk was changed; the message holds the command
            that pushes the same files again.
    """
    api = HfApi(token=token)
    try:
        _create_repo(api, repo_id, private, revision)
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=output_dir,
            commit_message=commit_message,
            revision=revision,
            allow_patterns=list(PUBLISHED_FILES),
        )
    # Whatever it is (HTTP status, lost connection, upload engine), a run of hours has to end with its results and the
    # way to publish them, not with a traceback.
    except Exception as error:
        login = f"{LOGIN_HINT}; then " if _refused(error) else ""
        raise UserError(
            f"the push to {repo_id} failed ({_reason(error)}). The run is complete and its results are safe in "
            f"{output_dir}. To push again, {login}run:\n"
            f"  {push_command(output_dir, repo_id, private, revision)}"
        ) from error


def check_model_on_hub(model: str, revision: str | None, token: str | None, asked_by: str) -> bool:
    """Raises UserError where the Hub has no such model, or will not tell; returns whether everybody may load it."""
    api = HfApi(token=token)
    try:
        info = api.model_info(model, revision=revision)
    except Exception as error:  # whatever it is, nothing has been done yet
        at = f" at {revision}" if revision else ""
        raise UserError(
            f"{asked_by}: {api.endpoint} has no model {model}{at}, or not for you ({_reason(error)}); publish.py puts "
            "a run there"
        ) from None
    return not (info.private or info.gated)


def push_space(files: dict[str, bytes], repo_id: str, token: str | None = None, private: bool | None = None) -> str:
    """Uploads the files of a Space, path → content, in one commit, and returns its address.

    Raises:
        UserError: the push failed for whatever reason.
    """
    api = HfApi(token=token)
    try:
        _create_repo(api, repo_id, private, None, space=True)
        api.create_commit(
            repo_id,
            [CommitOperationAdd(path, content) for path, content in files.items()],
            commit_message="A page to try the model on",
            repo_type="space",
        )
    except Exception as error:  # as in `push_run`
        login = f"; {LOGIN_HINT}" if _refused(error) else ""
        raise UserError(
            f"the push to the Space {repo_id} failed ({_reason(error)}){login}. The same command pushes again"
        ) from error
    return f"{api.endpoint}/spaces/{repo_id}"


def push_command(
    output_dir: str | Path, repo_id: str, private: bool | None = None, revision: str | None = None
) -> str:
    """The shell command that publishes a finished run again."""
    command = ["python", "publish.py", str(output_dir), "--hub_model_id", repo_id]
    if private:
        command.append("--private")
    if revision:
        command += ["--revision", revision]
    return shlex.join(command)


def _create_repo(api: HfApi, repo_id: str, private: bool | None, revision: str | None, space: bool = False) -> None:
    kind = {"repo_type": "space", "space_sdk": "gradio"} if space else {}
    api.create_repo(repo_id, private=private, exist_ok=True, **kind)
    if revision and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)


def _root(error: BaseException) -> BaseException:
    """The Hub's answer that led to `error`, or else the first cause. (Uploads wrap it in a RuntimeError.)"""
    while error.__cause__ is not None and not isinstance(error, HfHubHTTPError):
        error = error.__cause__
    return error


def _refused(error: BaseException) -> bool:
    error = _root(error)
    return isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403)


def _reason(error: BaseException) -> str:
    """One line for an error of the Hub's client. Request URLs are left out: those of uploads carry signatures."""
    error = _root(error)
    if isinstance(error, HfHubHTTPError):
        status = f"HTTP {error.response.status_code} {error.response.reason_phrase}"
        return " ".join(f"{status}: {error.server_message}".split()) if error.server_message else status
    return redact(one_line(error))
