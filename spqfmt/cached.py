"""A property that is computed once, without the lock that functools' has in Python 3.11."""

import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

_Value = TypeVar("_Value")

if TYPE_CHECKING or sys.version_info >= (3, 12):
    cached_property = functools.cached_property
else:

    class cached_property(functools.cached_property[_Value]):  # noqa: N801  # a decorator, named as its model
        """One lock guards such a property of all objects there, and a child forked while it is held waits for ever.

        Two threads that ask at once may both compute the value, as from Python 3.12 on.
        """

        func: Callable[[Any], _Value]

        def __get__(self, instance: Any, owner: type[Any] | None = None) -> Any:
            if instance is None:
                return self
            name = self.attrname
            if name not in instance.__dict__:
                instance.__dict__[name] = self.func(instance)
            return instance.__dict__[name]
