"""Ask the Hugging Face Hub whether a model may be uploaded there, and upload it.

Run by path with the trainer's Python; the request is one JSON object on stdin, the answer the last line of stdout:

    {"name": "me/judge"}
        -> {"ok": true, "user": "me", "private": true}, private null for a model that is not there yet
    {"name": "me/judge", "private": true, "folder": "exported_model", "files": ["config.json", ...], "card": "..."}
        -> {"ok": true, "url": "https://huggingface.co/me/judge", "private": true, "changed": true, "new_card": true}
    either, when it fails, with exit code 1
        -> {"ok": false, "kind": "token", "error": "Invalid user token."}

The login is found by huggingface_hub itself, in HF_TOKEN or where `hf auth login` left it; it is not looked at here.
One commit holds all files, so that the hub has the old model or the new one; what was sent is not sent again.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

CARD = "README.md"
SECONDS_TO_CONNECT = 10
# A model in one file stays where one in several came, or the other way round: transformers would load the old one.
WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
KINDS = {401: "token", 403: "refused", 429: "busy"}


class Refused(Exception):
    """What the hub would refuse, or what the user did not ask for; `kind` says which."""

    def __init__(self, kind: str, words: str) -> None:
        super().__init__(words)
        self.kind = kind


def check(name: str) -> dict[str, Any]:
    """Return who is logged in, and whether the model of that name is private; None when there is none."""
    from huggingface_hub import HfApi, constants, get_session
    from huggingface_hub.errors import RepositoryNotFoundError

    # the library itself waits for as long as the system does
    get_session().head(constants.ENDPOINT, timeout=SECONDS_TO_CONNECT)
    api = HfApi()
    user = api.whoami()
    check_owner(name.partition("/")[0], user)
    try:
        private = api.model_info(name).private
    except RepositoryNotFoundError:
        private = None
    return {"user": user["name"], "private": private}


def check_owner(owner: str, user: Mapping[str, Any]) -> None:
    """Check that the login may write models of an owner. What a fine-grained token may is known to the hub alone."""
    role = user.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise Refused("role", f"the token of {user['name']} may only read")
    owners = [user["name"], *(group["name"] for group in user.get("orgs", []))]
    if owner not in owners and role != "fineGrained":
        raise Refused("owner", f"{user['name']} may write to {', '.join(owners)}, not to {owner}")


def push(request: Mapping[str, Any]) -> dict[str, Any]:
    """Upload the files of a request in one commit, with the model card where there is none.

    Raises:
        Refused: the model on the hub is public, and the request wants a private one.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api, name, folder = HfApi(), request["name"], Path(request["folder"])
    url = api.create_repo(name, private=request["private"], exist_ok=True)
    there = api.model_info(name)
    if request["private"] and not there.private:
        raise Refused("public", f"{name} is public")
    known = {sibling.rfilename for sibling in there.siblings or []}
    operations: list[Any] = [CommitOperationAdd(file, folder / file) for file in request["files"]]
    if CARD not in known:
        operations.append(CommitOperationAdd(CARD, request["card"].encode()))
    stale = sorted(file for file in known - set(request["files"]) if WEIGHTS.fullmatch(file))
    operations += [CommitOperationDelete(file) for file in stale]
    commit = api.create_commit(name, operations, commit_message="Upload a model that trainkit exported and checked")
    changed = commit.oid != there.sha
    return {"url": str(url), "private": there.private, "changed": changed, "new_card": CARD not in known}


def reason_of(error: Exception) -> Exception:
    """Return why a file could not be sent, where huggingface_hub itself says only which one."""
    from httpx import HTTPError

    cause = error.__cause__
    return cause if isinstance(error, RuntimeError) and isinstance(cause, HTTPError) else error


def kind_of(error: Exception) -> str:
    """Return what went wrong, in one word; `failed` where the error's own text must do."""
    from httpx import TransportError
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    if isinstance(error, Refused):
        return error.kind
    if isinstance(error, HfHubHTTPError):
        return KINDS.get(error.response.status_code, "failed")
    kinds = {
        HFValidationError: "name",
        OfflineModeIsEnabled: "offline",
        LocalTokenNotFoundError: "login",
        TransportError: "unreachable",
    }
    return next((kind for error_type, kind in kinds.items() if isinstance(error, error_type)), "failed")


def words_of(error: Exception) -> str:
    """Return an error's text on one line; an address without its query, which may hold the right to write there."""
    text = getattr(error, "server_message", None) or str(error) or type(error).__name__
    return re.sub(r"\?[^\s'\")]+", "?...", " ".join(text.split()))


def main() -> int:
    """Answer the request on stdin with one line of JSON on stdout; return the exit code."""
    from httpx import HTTPError

    stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print goes to stderr
    request = json.load(sys.stdin)
    try:
        answer = {"ok": True, **(push(request) if "folder" in request else check(request["name"]))}
    except (Refused, HTTPError, OSError, ValueError, RuntimeError) as error:
        reason = reason_of(error)
        answer = {"ok": False, "kind": kind_of(reason), "error": words_of(reason)}
    print(json.dumps(answer), file=stdout, flush=True)
    return 0 if answer["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
