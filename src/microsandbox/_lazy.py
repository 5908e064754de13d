"""Names that are imported when they are first used.

``import microsandbox`` is on the way of every program, every ``msb`` command and every supervisor, most of
which use a handful of its 121 names: importing all of them costs 100 ms and more, this costs less than one.
"""

from __future__ import annotations

TYPE_CHECKING = False  # not imported from typing, see above
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any


def lazy_names(
    package: str, names_of: Mapping[str, str], submodules: str = ""
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package.

    ``names_of`` has, for each module below the package, the names that come from it, separated by spaces;
    ``submodules`` are modules that are attributes themselves.
    """
    module_of = {name: module for module, names in names_of.items() for name in names.split()}
    modules = submodules.split()

    def load(name: str) -> Any:
        from importlib import import_module
        from sys import modules as loaded

        if name in modules:
            return import_module(f"{package}.{name}")
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{module_of[name]}"), name)
        setattr(loaded[package], name, value)  # the next access does not come here
        return value

    def names() -> list[str]:
        from sys import modules as loaded

        return sorted({*vars(loaded[package]), *module_of, *modules})

    return load, names
