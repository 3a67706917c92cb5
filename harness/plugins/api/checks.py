"""Refuses settings of models behind an API that can't work, before anything is launched."""

from __future__ import annotations

import os
import re
from urllib.parse import SplitResult, urlsplit

from omegaconf import DictConfig, OmegaConf

from harness.errors import UserError


def check(config: DictConfig) -> None:
    """Refuse a method that needs weights with a model behind an API, the reverse, and settings of the other kind."""
    model, here = config.model, bool(config.method.load)
    if model.base_url is None:
        if not here:
            raise UserError(
                f"method={config.method.name} needs model.base_url=, the address of the model's endpoint, and "
                "model.name=, what that calls it."
            )
        for key in ("tokenizer", "thinking", "key_env"):
            if model[key]:
                raise UserError(f"model.{key} is for models behind an API: add method=api and model.base_url=.")
        return
    if here:
        raise UserError(
            f"method={config.method.name} needs weights, and model.base_url={model.base_url} gives none; a model "
            "behind an API is asked as it is, by method=api."
        )
    if OmegaConf.is_interpolation(model, "name"):
        raise UserError("method=api needs model.name=, what the endpoint calls the model.")
    _check_address(model.base_url)
    _check_asked(config)
    _check_key(model.key_env)
    if config.repeat:
        raise UserError("repeat=true requires a model on this machine: the answers of an API are kept, not measured.")


def address(base_url: str) -> SplitResult | None:
    """The parts of an address of HTTP, whose host and port can be read; None if it is none."""
    try:
        url = urlsplit(base_url)
        _ = url.port
    except ValueError:  # a port that is none, or half an IPv6 address
        return None
    return url if url.scheme in ("http", "https") and url.hostname else None


def _check_address(base_url: str) -> None:
    url = address(base_url)
    if url is None or url.query or url.fragment or "@" in url.netloc:
        raise UserError(
            "model.base_url must be like https://host/v1: where the API is, with neither a key nor a query in it."
        )


def _check_asked(config: DictConfig) -> None:
    """Refuse what a model behind an API can't be asked, and how."""
    model = config.model
    if not config.eval.tasks:
        raise UserError(
            "method=api with eval.tasks=[] has nothing to do; name the tasks that the model is to be asked."
        )
    if config.eval.engine != "auto":
        raise UserError(f"eval.engine={config.eval.engine} is for weights that are here; leave it out for method=api.")
    if config.eval.chat_template:
        raise UserError(
            "eval.chat_template=true is for weights that are here; method=api without model.tokenizer= chats."
        )
    if model.thinking and model.tokenizer is not None:
        raise UserError("model.thinking= is for models that chat; leave out model.tokenizer, or model.thinking.")


def _check_key(key_env: str | None) -> None:
    """Refuse a key itself, and the name of a variable that is not set. The value is not repeated: it may be a key."""
    if key_env is None:
        return
    if not re.fullmatch(r"[A-Z][A-Z0-9_]*", key_env):
        raise UserError(
            "model.key_env must be the name of an environment variable, in capitals; the key itself is never a setting."
        )
    if not os.environ.get(key_env):
        raise UserError(f"model.key_env={key_env} is not set in the environment; set it to the API's key.")
