"""Imports the libraries of jobs, without what only some jobs need: a server is ready a third sooner."""

from __future__ import annotations

import functools
import gc
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any


def load(module: str) -> None:
    """Import `module`, and with it the libraries that it names."""
    with uncollected():
        import torch

        names = vars(torch)
        compile_now = names["compile"]
        names["compile"] = _compiled_when_called(compile_now)
        try:
            importlib.import_module(module)
        finally:
            names["compile"] = compile_now


@contextmanager
def uncollected() -> Iterator[None]:
    """A context without garbage collection; none that comes later searches what is made in it.

    What imports make stays, and a fifth of their time would be the search in it.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _compiled_when_called(compile_now: Callable[..., Any]) -> Callable[..., Any]:
    """As `compile_now`, torch.compile, but what is to be compiled waits for its first call.

    For each function that it decorates, bitsandbytes has torch import its compiler, which few cells call.
    """

    def compiled(model: Any = None, **options: Any) -> Any:
        if model is None:
            return lambda model: compiled(model, **options)
        if not isinstance(model, FunctionType):
            return compile_now(model, **options)
        ready = functools.cache(lambda: compile_now(model, **options))

        @functools.wraps(model)
        def call(*args: Any, **kwargs: Any) -> Any:
            return ready()(*args, **kwargs)

        return call

    return compiled
