"""Hooks to look at, or replace, the inputs and outputs of modules while a network runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

# see(name, module, tensor)
See = Callable[[str, nn.Module, Tensor], Any]


def first_argument(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Return the first argument of a module's call, which is the input of a layer.

    Without any argument it is None.
    """
    if args:
        return args[0]
    first_keyword = next(iter(kwargs.values()), None)
    return kwargs.get("input", first_keyword)


@contextmanager
def feeding(modules: dict[str, nn.Module], see: See, first: bool = False) -> Iterator[None]:
    """Call ``see(name, module, x)`` before each of `modules` runs on its input x.

    With `first`, x is what the module is called with. Otherwise hooks that exist already may have
    replaced it.
    """

    def hook_for(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            see(name, module, first_argument(args, kwargs))

        return hook

    with ExitStack() as handles:
        for name, module in modules.items():
            handle = module.register_forward_pre_hook(
                hook_for(name), with_kwargs=True, prepend=first
            )
            handles.callback(handle.remove)
        yield


@contextmanager
def returning(modules: dict[str, nn.Module], see: See) -> Iterator[None]:
    """Call ``see(name, module, y)`` after each of `modules` has returned y.

    If `see` returns something other than None, that replaces y.
    """

    # PyTorch takes the hook's result, if it is not None, as the module's output.
    def hook_for(name: str) -> Callable[..., Any]:
        return lambda module, args, y: see(name, module, y)

    with ExitStack() as handles:
        for name, module in modules.items():
            handle = module.register_forward_hook(hook_for(name))
            handles.callback(handle.remove)
        yield


@contextmanager
def replacing(
    modules: dict[str, nn.Module], change: Callable[[str, nn.Module, Tensor], Tensor]
) -> Iterator[None]:
    """Run each of `modules` on ``change(name, module, x)`` in place of its input x."""

    def hook_for(name: str) -> Callable[..., Any]:
        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            x = change(name, module, first_argument(args, kwargs))
            if args:
                return (x, *args[1:]), kwargs
            return args, kwargs | {"input": x}

        return hook

    with ExitStack() as handles:
        for name, module in modules.items():
            handle = module.register_forward_pre_hook(hook_for(name), with_kwargs=True)
            handles.callback(handle.remove)
        yield


@contextmanager
def entering(modules: dict[str, nn.Module], see: Callable[[str], Any]) -> Iterator[list[str]]:
    """Call ``see(name)`` before each of `modules` runs.

    Yields a list that always holds the names of the modules running, outermost first.
    """
    running: list[str] = []

    def before(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            running.append(name)
            see(name)

        return hook

    def after(module: nn.Module, args: tuple[Any, ...], y: Any) -> None:
        running.pop()

    with ExitStack() as handles:
        for name, module in modules.items():
            before_handle = module.register_forward_pre_hook(before(name))
            handles.callback(before_handle.remove)
            after_handle = module.register_forward_hook(after)
            handles.callback(after_handle.remove)
        yield running
