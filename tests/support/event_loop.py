"""Coroutines as tests."""

import asyncio
import inspect
from collections.abc import Callable


def as_test(run: Callable, test: Callable, given: int, *fixtures: str) -> Callable:
    """A test that runs the coroutine ``run(**values)``.

    values: of these fixtures, and of the parameters of ``test`` but for the ``given`` first ones, which ``run`` gives.
    """

    def test_it(**values):
        asyncio.run(run(**values))

    test_it.__name__, test_it.__doc__ = test.__name__, test.__doc__
    test_it.pytestmark = getattr(test, "pytestmark", [])
    more = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in fixtures]
    test_it.__signature__ = inspect.Signature([*more, *[*inspect.signature(test).parameters.values()][given:]])
    return test_it


async def nothing_left() -> None:
    """Raises AssertionError unless all other tasks of this event loop end within two seconds."""
    for _ in range(100):
        if len(asyncio.all_tasks()) == 1:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"left behind: {asyncio.all_tasks()}")
