"""Looking at what modules are fed and return, while a network runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

See = Callable[[str, nn.Module, Tensor], Any]


def given(args: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    """Return the first argument that a module was called with; that of a layer is its input.

    Without any argument it is None.
    """
    first = next(iter(named.values()), None)
    return args[0] if args else named.get("input", first)


@contextmanager
def feeding(modules: dict[str, nn.Module], see: See, first: bool = False) -> Iterator[None]:
    """Call ``see(name, module, x)`` before each of `modules` runs on x, while the context lasts.

    With `first`, x is what the module is called with, whatever other hooks make of it; otherwise
    hooks that are there already may have replaced it.
    """

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            see(name, module, given(args, named))

        return hook

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.callback(
                module.register_forward_pre_hook(
                    watch(name), with_kwargs=True, prepend=first
                ).remove
            )
        yield


@contextmanager
def returning(modules: dict[str, nn.Module], see: See) -> Iterator[None]:
    """Call ``see(name, module, y)`` after each of `modules` has returned y; what `see` returns, if any, replaces y."""

    def watch(name: str) -> Callable[..., Any]:
        return lambda module, args, y: see(name, module, y)

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.callback(module.register_forward_hook(watch(name)).remove)
        yield


@contextmanager
def replacing(
    modules: dict[str, nn.Module], change: Callable[[str, nn.Module, Tensor], Tensor]
) -> Iterator[None]:
    """Let each of `modules` run on ``change(name, module, x)`` in place of its input x, while the context lasts."""

    def watch(name: str) -> Callable[..., Any]:
        def hook(
            module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            x = change(name, module, given(args, named))
            return ((x, *args[1:]), named) if args else (args, named | {"input": x})

        return hook

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.callback(module.register_forward_pre_hook(watch(name), with_kwargs=True).remove)
        yield


@contextmanager
def entering(modules: dict[str, nn.Module], see: Callable[[str], Any]) -> Iterator[list[str]]:
    """Call ``see(name)`` before each of `modules` runs; give the names of those that are running, outermost first."""
    running: list[str] = []

    def begin(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            running.append(name)
            see(name)

        return hook

    def end(module: nn.Module, args: tuple[Any, ...], y: Any) -> None:
        running.pop()

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.callback(module.register_forward_pre_hook(begin(name)).remove)
            hooks.callback(module.register_forward_hook(end).remove)
        yield running
